"use strict";

for (const script of document.querySelectorAll("script[data-plot]")) {
  const { data, layout } = JSON.parse(script.textContent);
  const plot = document.getElementById(script.dataset.plot);
  Plotly.newPlot(plot, data, layout, { displayModeBar: false });
  new ResizeObserver(() => Plotly.Plots.resize(plot)).observe(plot);
}

for (const select of document.querySelectorAll("select[data-layers]")) {
  const plot = document.getElementById(select.dataset.layers);
  const show = () => Plotly.restyle(plot, { visible: plot.data.map((trace) => trace.meta === select.value) });
  select.addEventListener("change", show);
  show(); // a browser may have kept an earlier choice
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
