// The map of a layer's experts: two bars each, its usage and its saliency. Experts that became one stand together, in one
// colour and on one band, the most used first and in bold; who stays alone is grey, the pruned are last and hollow.
function drawExperts({ profiles, groupings }, [choice, layer]) {
  const colours = house.layout.colorway;
  const grey = "#8a919c";
  const clear = "rgba(0,0,0,0)";
  const { usage, saliency } = profiles[choice.split("/")[0]][layer];
  const told = groupings[choice]?.[layer] ?? { groups: usage.map((_, expert) => [expert]), shares: [], pruned: [] };

  const rows = [];
  const bands = [];
  let merged = 0;
  told.groups.forEach((members, group) => {
    if (members.length === 1) {
      rows.push({ expert: members[0], label: `${members[0]}`, fill: grey, edge: grey, hint: "alone" });
      return;
    }
    const colour = colours[merged % colours.length];
    const share = `${(100 * told.shares[group]).toPrecision(3)}% of all choices together`;
    if (merged % 2 === 0) bands.push([rows.length - 0.5, rows.length + members.length - 0.5]);
    members.forEach((expert, place) => {
      const tie = place === 0 ? "┐" : place === members.length - 1 ? "┘" : "┤";
      const number = place === 0 ? `<b>${expert}</b>` : expert;
      const label = `${number} <span style="color: ${colour}">${tie}</span>`;
      rows.push({ expert, label, fill: colour, edge: colour, hint: `one with ${members[0]}; ${share}` });
    });
    merged += 1;
  });
  for (const expert of told.pruned) {
    rows.push({ expert, label: `<i>${expert}</i>`, fill: clear, edge: grey, hint: "pruned" });
  }

  const bars = (values, axis) => ({
    type: "bar",
    orientation: "h",
    xaxis: axis,
    x: rows.map(({ expert }) => values[expert]),
    y: rows.map((_, row) => row),
    customdata: rows.map(({ expert, hint }) => `expert ${expert}, ${hint}`),
    hovertemplate: "%{customdata}<br>%{x:.3g}<extra></extra>",
    marker: { color: rows.map(({ fill }) => fill), line: { color: rows.map(({ edge }) => edge), width: 1 } },
  });
  const band = ([y0, y1]) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0, y1, line: { width: 0 }, layer: "below" });
  const axis = (text, side) => ({ title: { text }, domain: side ? [0.52, 1] : [0, 0.48], side: "top", nticks: 5 });
  return {
    data: [bars(usage, "x"), bars(saliency, "x2")],
    layout: {
      height: 60 + 17 * rows.length,
      margin: { t: 48, b: 8 },
      bargap: 0.3,
      shapes: bands.map((rect) => ({ ...band(rect), fillcolor: "rgba(128, 136, 148, 0.13)" })),
      xaxis: { ...axis("share of all choices", 0), tickformat: ".1~%" },
      xaxis2: axis("saliency", 1),
      yaxis: {
        range: [rows.length - 0.5, -0.5],
        tickvals: rows.map((_, row) => row),
        ticktext: rows.map(({ label }) => label),
      },
    },
  };
}
