"use strict";
/* Draws the charts of a page, which lie in it as JSON, in place of their pictures. Texts become text
nodes or, where plotly shows them, were escaped for it; none becomes markup. */
(async () => {
const narrow = matchMedia("(max-width: 40rem)"), touch = matchMedia("(pointer: coarse)").matches;
const INK = "#1b2330", LINE = "#dbe0e7", ZERO = "#a3aebd";

/* The library, packed by gzip. The policy of the page admits its text by the digest. */
async function load() {
  const packed = Uint8Array.from(atob(document.querySelector('script[type="text/plain"]').textContent), (c) => c.charCodeAt(0));
  const text = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(text).text();
  document.head.append(script);
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/* A name on an axis, cut where it would leave no room for the bars, but not within "&lt;". */
function short(text) {
  const letters = text.match(/&\w+;|<br>|./gsu) ?? [], most = narrow.matches ? 18 : 44;
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : text;
}

/* What all charts have in common; on a phone the panels stand below one another. */
function layout(chart) {
  const made = structuredClone(chart.layout), { grid } = made;
  Object.assign(made, {
    autosize: true, dragmode: touch ? false : chart.points ? "lasso" : "zoom",
    paper_bgcolor: "#0000", plot_bgcolor: "#0000", font: { family: "system-ui, sans-serif", size: 13, color: INK },
    margin: { l: 10, r: 10, t: 34, b: 10 }, hoverlabel: { namelength: -1, bgcolor: "#fff", bordercolor: LINE, font: { color: INK } },
    modebar: { bgcolor: "#0000", color: ZERO, activecolor: INK },
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
  });
  for (const [key, axis] of Object.entries(made)) {
    if (!/^[xy]axis/.test(key)) continue;
    axis.ticktext = axis.ticktext?.map(short);
    Object.assign(axis, { automargin: true, gridcolor: LINE, zerolinecolor: ZERO, title: { ...axis.title, standoff: 8 } });
  }
  if (grid) Object.assign(grid, { xgap: 0.2, ygap: 0.35 });
  if (grid && narrow.matches) {
    const panels = grid.rows * grid.columns;
    made.height = panels > 1 && grid.columns > 1 ? Math.max(240, made.height / grid.rows) * panels : made.height;
    Object.assign(grid, { rows: panels, columns: 1 });
    for (const [key, axis] of Object.entries(made)) if (key.startsWith("yaxis")) axis.showticklabels = true;
  }
  if (chart.points && narrow.matches) made.height = innerWidth;
  return made;
}

async function draw(chart, picture) {
  const figure = picture.closest("figure"), area = element("div", { className: "drawn" });
  area.setAttribute("role", "img");
  area.setAttribute("aria-label", picture.querySelector("img").alt);
  const zoom = ["zoom2d", "pan2d", "resetScale2d"];
  const config = { // named buttons only: one of plotly's own would send the data away
    displaylogo: false, plotlyServerURL: "", responsive: true, typesetMath: false,
    modeBarButtons: [chart.points ? ["lasso2d", ...zoom] : zoom],
    displayModeBar: chart.points ? true : touch ? false : "hover",
  };
  if (chart.width) area.style.maxWidth = `${chart.width}px`;
  picture.before(area);
  try {
    await Plotly.newPlot(area, chart.data, layout(chart), config);
  } catch (error) {
    area.remove();
    throw error;
  }
  picture.hidden = true;
  narrow.addEventListener("change", () => Plotly.react(area, area.data, layout(chart), config));
  if (chart.points) describe(chart, figure, area);
}

/* A map of points: what it is coloured by, what is under the pointer, and which are chosen. */
function describe({ looks, points }, figure, area) {
  const number = (n) => n.toLocaleString("en"), { thumbnails } = points;
  if (looks.length > 1) {
    const choice = element("select", { className: "look", ariaLabel: "colours" });
    looks.forEach(([name], k) => choice.append(element("option", { value: k }, `colours: ${name}`)));
    choice.addEventListener("change", () => {
      const shown = new Set(looks[+choice.value][1]);
      Plotly.restyle(area, { visible: area.data.map((_, k) => shown.has(k)) });
    });
    area.before(choice);
  }
  const tip = element("div", { className: "tip", hidden: true });
  const list = element("textarea", { readOnly: true, rows: 4, hidden: true }), told = element("span");
  const start = `Draw around points${touch ? ", with the lasso above them," : ""} to list their ${points.what}.`;
  told.textContent = [points.left_out && `${points.left_out}.`, start].filter(Boolean).join(" ");
  area.after(tip, element("label", { className: "chosen" }, told, list));

  function thumbnail(sensor, sheet, place) {
    const { columns: c, count } = thumbnails, rows = Math.ceil(count / c);
    const part = (k, n) => (n > 1 ? (100 * k) / (n - 1) : 0), made = element("i");
    made.style.backgroundImage = `url(${sheet})`;
    made.style.backgroundSize = `${100 * c}% ${100 * rows}%`;
    made.style.backgroundPosition = `${part(place % c, c)}% ${part(Math.floor(place / c), rows)}%`;
    return element("div", {}, made, sensor);
  }
  area.on("plotly_hover", ({ points: [{ customdata }], event }) => {
    const box = figure.getBoundingClientRect(), place = thumbnails?.places[customdata] ?? -1, pictures = [];
    for (const [sensor, sheet] of place < 0 ? [] : Object.entries(thumbnails.sheets)) {
      if (!thumbnails.absent[sensor].includes(place)) pictures.push(thumbnail(sensor, sheet, place));
    }
    tip.replaceChildren(points.about[customdata], ...(pictures.length ? [element("br"), ...pictures] : []));
    tip.hidden = false;
    const x = event.clientX - box.left;
    tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
  });
  area.on("plotly_unhover", () => { tip.hidden = true; });
  area.on("plotly_selected", (event) => {
    const found = event ? event.points.map((p) => p.customdata) : [];
    const chosen = [...new Set(found.map((k) => points.names[k]))];
    list.hidden = !chosen.length;
    list.value = chosen.join("\n");
    told.textContent = chosen.length ? `${number(found.length)} points are chosen: ${number(chosen.length)} ${points.what}` : start;
  });
}

await load();
for (const data of document.querySelectorAll('figure > script[type="application/json"]')) {
  try {
    await draw(JSON.parse(data.textContent), data.closest("figure").querySelector(".zoom"));
  } catch (error) {
    console.error(error); // the picture stays
  }
}
})();
