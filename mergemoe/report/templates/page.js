"use strict";

const house = JSON.parse(document.getElementById("house").textContent);

// What a place for a picture shows, by the values of its selects: a picture of its own, or one drawn from numbers.
const drawings = {
  views: ({ views, figures, layout }, values) => {
    const figure = figures[values.length ? views[values.join(" ")] : 0];
    return { data: figure.data, layout: { ...layout, ...figure.layout } };
  },
  experts: drawExperts,
};

// Elements without a picture show one of their children, by the same values.
function show(id) {
  const values = [...document.querySelectorAll(`select[data-for~="${CSS.escape(id)}"]`)].map(({ value }) => value);
  const element = document.getElementById(id);
  const script = document.querySelector(`script[data-plot="${CSS.escape(id)}"]`);
  if (!script) {
    for (const child of element.children) child.hidden = child.dataset.key !== values.join(" ");
    return;
  }
  const content = (element.content ??= JSON.parse(script.textContent));
  const { data, layout } = structuredClone(drawings[script.dataset.drawing](content, values));
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
