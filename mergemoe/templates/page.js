"use strict";

const house = JSON.parse(document.getElementById("house").textContent);

// A figure shows the view that its selects name together; an element without one shows those of its children.
function show(id) {
  const selects = [...document.querySelectorAll(`select[data-for~="${CSS.escape(id)}"]`)];
  const key = selects.map((select) => select.value).join(" ");
  const script = document.querySelector(`script[data-plot="${CSS.escape(id)}"]`);
  const element = document.getElementById(id);
  if (!script) {
    for (const child of element.children) child.hidden = child.dataset.key !== key;
    return;
  }
  const { views, figures } = (element.views ??= JSON.parse(script.textContent));
  const { data, layout } = structuredClone(figures[selects.length ? views[key] : 0]);
  if (layout.height) element.style.height = `${layout.height}px`;
  Plotly.react(element, data, { ...layout, template: house }, { displayModeBar: false });
}

for (const { dataset } of document.querySelectorAll("script[data-plot]")) {
  show(dataset.plot);
  const element = document.getElementById(dataset.plot);
  new ResizeObserver(() => Plotly.Plots.resize(element)).observe(element);
}

for (const select of document.querySelectorAll("select[data-for]")) {
  const update = () => select.dataset.for.split(" ").forEach(show);
  select.addEventListener("change", update);
  update(); // a browser may have kept an earlier choice
}

// Numbers sort by their value, the rest by their text; what was not measured stays last.
function sortBy(table, column, descending) {
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "–" || y === "–") return (x === "–") - (y === "–");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return descending ? -order : order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) =>
    head.firstElementChild.addEventListener("click", () => {
      const descending = head.ariaSort === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = descending ? "descending" : "ascending";
      sortBy(table, column, descending);
    })
  );
}
