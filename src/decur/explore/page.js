"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const about = JSON.parse($("about").textContent);
const { ids, sensors } = about;
const TYPES = { f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array, u1: Uint8Array };
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const array = (text, type) => new TYPES[type](bytes(text).buffer);

const places = Object.fromEntries(sensors.map((s) => [s, array(about.places[s], "f4")]));
const ranking = Object.fromEntries(Object.entries(about.ranking).map(([pair, r]) => [pair, {
  ...r, rows: array(r.rows, "i4"), cosine: array(r.cosine, "i1"), rank: array(r.rank, "i4"),
}]));
const kinds = { class: "i2", scalar: "f4", multilabel: "u1" };
const labels = about.labels.map((l) => ({ ...l, values: array(l.values, kinds[l.kind]) }));

/* Colours: of Okabe and Ito, and of Tol where there are more; lighter on a dark page. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const SENSORS = [["#0072b2", "#56b4e9"], ["#d55e00", "#e69f00"], ["#009e73", "#44d0a8"], ["#aa4499", "#e08ad0"]];
const CLASSES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800", "#882255",
  "#44aa99", "#999933", "#6699cc", "#aa4466", "#117733", "#ddaa77", "#aa88ff", "#885522"];
const sensorColour = (k) => SENSORS[k % SENSORS.length][dark.matches ? 1 : 0];
const unknownColour = () => (dark.matches ? "#5a6472" : "#c3c9d1");
const scaleColour = (t) => `hsl(${260 - 210 * t} 75% ${dark.matches ? 45 + 20 * t : 30 + 25 * t}%)`;

/* What dots are coloured by. */
const colourings = [{ name: "sensor" }];
for (const label of labels) {
  if (label.kind !== "multilabel") colourings.push({ name: label.name, label });
  else label.classes.slice(0, 40).forEach((c, k) => colourings.push({ name: `${label.name}: ${c}`, label, k }));
}
let colouring = colourings[0];
const valueOf = (c, i) => (c.label.kind === "multilabel" ? c.label.values[i * c.label.classes.length + c.k] : c.label.values[i]);
function limits(label) {
  let low = Infinity, high = -Infinity;
  for (const v of label.values) if (v === v) { low = Math.min(low, v); high = Math.max(high, v); }
  return [low, high > low ? high : low + 1];
}
for (const l of labels) if (l.kind === "scalar") l.limits = limits(l);
function colourOf(k, i) {
  const { label } = colouring;
  if (!label) return sensorColour(k);
  const v = valueOf(colouring, i);
  if (label.kind === "scalar") {
    return v === v ? scaleColour((v - label.limits[0]) / (label.limits[1] - label.limits[0])) : unknownColour();
  }
  if (label.kind === "multilabel") return v === 1 ? CLASSES[1] : v === 0 ? sensorColour(0) : unknownColour();
  return v >= 0 ? CLASSES[v % CLASSES.length] : unknownColour();
}
function told(label, i) {
  if (label.kind === "class") return label.values[i] < 0 ? "–" : label.classes[label.values[i]];
  if (label.kind === "scalar") return label.values[i] === label.values[i] ? String(+label.values[i].toPrecision(4)) : "–";
  const n = label.classes.length;
  return label.classes.filter((_, k) => label.values[i * n + k] === 1).join(", ") || "–";
}

/* The map. */
const canvas = $("map"), pen = canvas.getContext("2d");
const shown = new Set(sensors);
const has = (s, i) => places[s][2 * i] === places[s][2 * i];
let view = null, chosen = -1, waiting = false, colours = null;
function fit() {
  let right = 1;
  for (const s of sensors) for (let i = 0; i < ids.length; i++) if (has(s, i)) right = Math.max(right, places[s][2 * i]);
  const { width, height } = canvas.getBoundingClientRect();
  const scale = 0.92 * Math.min(width / right, height);
  view = { scale, x: (width - right * scale) / 2, y: (height - scale) / 2, least: scale / 2 };
  redraw();
}
const at = (s, i) => [view.x + places[s][2 * i] * view.scale, view.y + places[s][2 * i + 1] * view.scale];
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}
function dot(x, y, r, k) {
  if (r < 2.5) { pen.fillRect(x - r, y - r, 2 * r, 2 * r); return; }
  pen.beginPath();
  if (k === 1) { pen.moveTo(x, y - 1.3 * r); pen.lineTo(x + 1.2 * r, y + r); pen.lineTo(x - 1.2 * r, y + r); }
  else if (k === 2) pen.rect(x - r, y - r, 2 * r, 2 * r);
  else if (k === 3) { pen.moveTo(x, y - 1.4 * r); pen.lineTo(x + 1.4 * r, y); pen.lineTo(x, y + 1.4 * r); pen.lineTo(x - 1.4 * r, y); }
  else pen.arc(x, y, r, 0, 7);
  pen.fill();
}
function draw() {
  const { width, height } = canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const zoom = Math.sqrt(view.scale / (2 * view.least));
  const r = Math.min(7, Math.max(1.3, 0.08 * Math.min(width, 800) / Math.sqrt(ids.length)) * Math.max(1, zoom));
  pen.globalAlpha = chosen < 0 ? 0.85 : 0.55;
  sensors.forEach((s, k) => {
    if (!shown.has(s)) return;
    for (let i = 0; i < ids.length; i++) {
      if (!has(s, i)) continue;
      const [x, y] = at(s, i);
      if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
      pen.fillStyle = colours[k][i];
      dot(x, y, r, k);
    }
  });
  pen.globalAlpha = 1;
  if (chosen >= 0) mark(r);
}
function mark(r) {
  const line = getComputedStyle(document.body).color;
  const own = sensors.filter((s) => has(s, chosen) && shown.has(s));
  pen.strokeStyle = line; pen.lineWidth = 1.5;
  if (about.together && own.length > 1) {
    pen.beginPath();
    own.forEach((s, k) => (k ? pen.lineTo(...at(s, chosen)) : pen.moveTo(...at(s, chosen))));
    pen.stroke();
  }
  pen.lineWidth = 1;
  for (const [pair, found] of Object.entries(ranking)) {
    const [a, b] = pair.split(">");
    if (!shown.has(b) || !has(a, chosen)) continue;
    for (let j = 0; j < found.k; j++) {
      const row = found.rows[chosen * found.k + j];
      if (row < 0) continue;
      pen.beginPath(); pen.arc(...at(b, row), r + 3, 0, 7); pen.stroke();
    }
  }
  pen.lineWidth = 3;
  for (const s of own) {
    const k = sensors.indexOf(s), [x, y] = at(s, chosen);
    pen.fillStyle = colours[k][chosen]; dot(x, y, Math.max(r, 5), k);
    pen.beginPath(); pen.arc(x, y, Math.max(r, 5) + 4, 0, 7); pen.stroke();
  }
}
function nearest(x, y, reach) {
  let best = null, least = reach * reach;
  for (const s of sensors) {
    if (!shown.has(s)) continue;
    for (let i = 0; i < ids.length; i++) {
      if (!has(s, i)) continue;
      const [px, py] = at(s, i), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least) { least = d; best = [s, i]; }
    }
  }
  return best;
}

/* Pictures lie in sheets of many, which become images when one of them is first shown. */
const sheets = new Map();
function sheet(sensor, number) {
  const name = `sheet-${sensor}-${number}`;
  if (!sheets.has(name)) {
    sheets.set(name, URL.createObjectURL(new Blob([bytes($(name).textContent)], { type: "image/jpeg" })));
  }
  return sheets.get(name);
}
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
function picture(sensor, i) {
  const made = element("div", { className: "picture", role: "img", ariaLabel: `${sensor} of ${ids[i]}` });
  if (!about.pictured.includes(sensor) || !has(sensor, i)) return made;
  const inside = i % about.perSheet, c = about.columns;
  const rows = Math.ceil(Math.min(about.perSheet, ids.length - i + inside) / c);
  const part = (k, n) => (n > 1 ? (100 * k) / (n - 1) : 0);
  made.style.backgroundImage = `url(${sheet(sensor, Math.floor(i / about.perSheet))})`;
  made.style.backgroundSize = `${100 * c}% ${100 * rows}%`;
  made.style.backgroundPosition = `${part(inside % c, c)}% ${part(Math.floor(inside / c), rows)}%`;
  return made;
}
const pictured = about.pictured.length > 0;

/* The sample that is chosen. */
function strip(a, b, i) {
  const found = ranking[`${a}>${b}`], made = element("div", { className: "strip" });
  for (let j = 0; j < found.k; j++) {
    const row = found.rows[i * found.k + j];
    if (row < 0) continue;
    const own = row === i, cosine = (found.cosine[i * found.k + j] / 100).toFixed(2);
    const text = [own ? "its own" : pictured ? "" : ids[row], cosine, colouring.label ? told(colouring.label, row) : ""];
    const button = element("button", { type: "button", className: own ? "near own" : "near", title: ids[row] });
    if (pictured) button.append(picture(b, row));
    button.append(element("small", {}, text.filter(Boolean).join(", ")));
    button.addEventListener("click", () => choose(row));
    made.append(button);
  }
  return made;
}
function choose(i) {
  chosen = i;
  const panel = $("chosen"), list = element("dl");
  for (const label of labels) list.append(element("dt", {}, label.name), element("dd", {}, told(label, i)));
  const large = element("div", { className: "strip" });
  for (const s of sensors) {
    const note = has(s, i) ? s : `${s}: none`;
    if (pictured || !has(s, i)) {
      large.append(element("div", { className: "large" }, ...(pictured ? [picture(s, i)] : []), element("small", {}, note)));
    }
  }
  panel.replaceChildren(element("h2", {}, ids[i]), list, large);
  for (const a of sensors) {
    if (!has(a, i)) continue;
    for (const b of sensors) {
      const found = ranking[`${a}>${b}`];
      if (!found) continue;
      let title = `Nearest to its ${a} in ${b}`;
      if (a !== b) title += found.rank[i] ? `: true partner at rank ${found.rank[i].toLocaleString("en")} of ${found.searched.toLocaleString("en")}` : ": no true partner";
      panel.append(element("h3", {}, title), strip(a, b, i));
    }
  }
  history.replaceState(null, "", `#${encodeURIComponent(ids[i])}`);
  redraw();
}

/* Controls. */
function recolour() {
  colours = sensors.map((_, k) => ids.map((_, i) => colourOf(k, i)));
  const legend = $("legend"), { label } = colouring, entries = [];
  const entry = (colour, text) => element("span", {}, Object.assign(element("i"), { style: `background:${colour}` }), text);
  if (!label) sensors.forEach((s, k) => entries.push(entry(sensorColour(k), `${s} ${["●", "▲", "■", "◆"][k % 4]}`)));
  else if (label.kind === "class") label.classes.slice(0, 24).forEach((c, k) => entries.push(entry(CLASSES[k % CLASSES.length], c)));
  else if (label.kind === "multilabel") entries.push(entry(CLASSES[1], "yes"), entry(sensorColour(0), "no"));
  else {
    const stops = [0, 0.25, 0.5, 0.75, 1].map(scaleColour).join(",");
    entries.push(element("span", {}, `${+label.limits[0].toPrecision(3)} `,
      Object.assign(element("i", { className: "scale" }), { style: `background:linear-gradient(90deg,${stops})` }), `${+label.limits[1].toPrecision(3)}`));
  }
  if (label) entries.push(entry(unknownColour(), "not known"));
  legend.replaceChildren(...entries);
  if (chosen >= 0) choose(chosen); else redraw();
}
colourings.forEach((c, k) => $("colour").append(element("option", { value: k }, c.name)));
$("colour").addEventListener("change", (e) => { colouring = colourings[+e.target.value]; recolour(); });
for (const s of sensors) {
  const box = element("input", { type: "checkbox", checked: true });
  box.addEventListener("change", () => { box.checked ? shown.add(s) : shown.delete(s); redraw(); });
  $("sensors").append(element("label", { className: "sensor" }, box, ` ${s}`));
}
$("find").addEventListener("change", (e) => {
  const wanted = e.target.value.trim().toLowerCase();
  const from = ids[chosen]?.toLowerCase().includes(wanted) ? chosen + 1 : 0;
  let found = ids.findIndex((id, i) => i >= from && id.toLowerCase().includes(wanted));
  if (found < 0) found = ids.findIndex((id) => id.toLowerCase().includes(wanted));
  if (wanted && found >= 0) choose(found);
});
$("random").addEventListener("click", () => choose(Math.floor(Math.random() * ids.length)));
$("whole").addEventListener("click", fit);
const crossing = Object.entries(ranking).filter(([pair]) => pair.split(">")[0] !== pair.split(">")[1]);
let worst = null, turn = 0;
$("worst").hidden = !crossing.length;
$("worst").addEventListener("click", () => {
  worst ??= ids.map((_, i) => [Math.max(...crossing.map(([, r]) => r.rank[i])), i]).sort((a, b) => b[0] - a[0]);
  choose(worst[turn++ % worst.length][1]);
});
addEventListener("keydown", (e) => {
  if (/INPUT|SELECT/.test(e.target.tagName) || !ids.length) return;
  const step = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
  if (step) { e.preventDefault(); choose((Math.max(chosen, 0) + step + ids.length) % ids.length); }
});

/* Pointers: one chooses or drags, two zoom. */
const fingers = new Map();
let moved = 0;
const place = (e) => { const box = canvas.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
function zoom(x, y, factor) {
  const scale = Math.min(Math.max(view.scale * factor, view.least), view.least * 400), f = scale / view.scale;
  view = { ...view, scale, x: x - (x - view.x) * f, y: y - (y - view.y) * f };
  redraw();
}
canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom(...place(e), Math.exp(-e.deltaY / 400)); }, { passive: false });
canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, place(e)); moved = fingers.size > 1 ? 99 : 0; });
canvas.addEventListener("pointermove", (e) => {
  const now = place(e), before = fingers.get(e.pointerId);
  if (!before) { hint(now); return; }
  moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
  if (fingers.size === 1) { view.x += now[0] - before[0]; view.y += now[1] - before[1]; redraw(); }
  else {
    const [other] = [...fingers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
    const gap = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
    zoom((now[0] + other[0]) / 2, (now[1] + other[1]) / 2, gap(now) / Math.max(gap(before), 1));
  }
  fingers.set(e.pointerId, now);
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => {
  if (end === "pointerup" && fingers.size === 1 && moved < 6) {
    const hit = nearest(...place(e), e.pointerType === "mouse" ? 12 : 24);
    if (hit) choose(hit[1]);
  }
  fingers.delete(e.pointerId);
});
canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
function hint([x, y]) {
  const hit = nearest(x, y, 10), tip = $("tip");
  tip.hidden = !hit;
  if (!hit) return;
  const [s, i] = hit, text = colouring.label ? `, ${told(colouring.label, i)}` : "";
  tip.replaceChildren(`${s}: ${ids[i]}${text}`);
  if (pictured) { const p = picture(s, i); p.style.cssText += "width:6rem;height:6rem;margin-top:.3rem"; tip.append(p); }
  tip.style.left = `${Math.min(x + 14, canvas.clientWidth - 150)}px`;
  tip.style.top = `${y + 14}px`;
}

/* How well partners find each other, over all samples of the page. */
const number = (n) => n.toLocaleString("en");
const dims = { common: "the common dimensions", unique: "the unique dimensions", embedding: "the whole embedding", features: "the encoders' features" };
$("summary").textContent = `Neighbours by the cosine of ${dims[about.part] ?? `the block ${about.part}`}.`
  + (ids.length < about.total ? ` These are ${number(ids.length)} of ${number(about.total)} samples, evenly spaced; neighbours and ranks are among them.` : "")
  + (about.together || sensors.length < 2 ? "" : " Each sensor has a map of its own, as these cannot be compared across all sensors.");
for (const [pair, r] of crossing) {
  const ranks = r.rank.filter((v) => v > 0).sort(), [a, b] = pair.split(">");
  if (!ranks.length) continue;
  const cells = [`${a} to ${b}`, `${(100 * ranks.filter((v) => v === 1).length / ranks.length).toFixed(1)} %`,
    `${(100 / r.searched).toPrecision(2)} %`, number(ranks[ranks.length >> 1]), number((r.searched + 1) / 2), number(r.searched)];
  $("partners").tBodies[0].append(element("tr", {}, ...cells.map((text, k) => element("td", { className: k ? "number" : "" }, text))));
}
$("partners").hidden = $("trained").hidden = !$("partners").tBodies[0].rows.length;
$("trained").textContent = about.trained;

dark.addEventListener("change", recolour);
addEventListener("resize", fit);
fit();
recolour();
const start = ids.indexOf(decodeURIComponent(location.hash.slice(1)));
if (start >= 0) choose(start);
})();
