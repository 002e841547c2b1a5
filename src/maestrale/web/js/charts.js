// Small line charts in SVG. A missing value is a gap, never a zero.
import { h, svg } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 100;
const LEAST_SPAN = 120; // seconds shown; more as there is more, up to what the server keeps

/** A chart of `lines`: [{key, label}], one or two; `format` spells a value; `least` is the
 * smallest top of the scale. Its update(series) takes the columns of /status.json. */
export function chart({ title, lines, format, least }) {
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const legend = h("p", { class: "legend" });
  const top = h("span", {});
  const when = h("span", {});
  const element = h("section", { class: "chart" },
    h("header", {}, h("h3", {}, title), legend), drawing, h("p", { class: "axis" }, top, when));
  let series = null;
  let pointed = null;
  let span = LEAST_SPAN;

  function showLegend(index) {
    legend.replaceChildren(...lines.map(({ key, label }, line) => {
      const value = series[key][index];
      return h("span", {}, h("i", { class: line ? "second" : "" }), label, " ", h("b", {}, value == null ? "–" : format(value)));
    }));
    const time = series.time[index];
    when.textContent = pointed === null || time === undefined ? `last ${Math.round(span / 60)} min` : new Date(time * 1000).toLocaleTimeString();
  }

  function draw() {
    const { time } = series;
    const end = time.at(-1) ?? 0;
    span = Math.max(LEAST_SPAN, end - (time[0] ?? 0));
    const x = (each) => WIDTH * (1 - (end - each) / span);
    const values = lines.flatMap(({ key }) => series[key].filter((value) => value != null));
    const highest = niceTop(Math.max(least, ...values));
    const y = (value) => HEIGHT - (HEIGHT * value) / highest;
    const parts = [0, 0.5, 1].map((share) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * share, y2: HEIGHT * share }));
    series.restarts.forEach((count, index) => {
      if (index && count > series.restarts[index - 1]) {
        parts.push(svg("line", { class: "restart", x1: x(time[index]), x2: x(time[index]), y1: 0, y2: HEIGHT }));
      }
    });
    lines.forEach(({ key }, line) => {
      for (const run of runs(series[key], time)) {
        const path = run.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(2)}`).join("L");
        if (!line) parts.push(svg("path", { class: "area", d: `M${x(run[0][0]).toFixed(1)},${HEIGHT}L${path}L${x(run.at(-1)[0]).toFixed(1)},${HEIGHT}Z` }));
        parts.push(svg("path", { class: line ? "line second" : "line", d: `M${path}${run.length === 1 ? "h1" : ""}` }));
      }
    });
    if (pointed !== null && pointed < time.length) {
      parts.push(svg("line", { class: "cursor", x1: x(time[pointed]), x2: x(time[pointed]), y1: 0, y2: HEIGHT }));
    }
    drawing.replaceChildren(...parts);
    top.textContent = `top ${format(highest)}`;
    showLegend(pointed ?? time.length - 1);
    const words = lines.map(({ key, label }) => {
      const known = series[key].filter((value) => value != null);
      if (!known.length) return `${label}: nothing measured`;
      return `${label}: now ${series[key].at(-1) == null ? "nothing" : format(series[key].at(-1))}, highest ${format(Math.max(...known))}`;
    });
    drawing.setAttribute("aria-label", `${title}. ${words.join("; ")}.`);
  }

  drawing.addEventListener("pointermove", (event) => {
    if (!series?.time.length) return;
    const box = drawing.getBoundingClientRect();
    const at = series.time.at(-1) - span * (1 - (event.clientX - box.left) / box.width);
    pointed = series.time.reduce((best, time, index) => (Math.abs(time - at) < Math.abs(series.time[best] - at) ? index : best), 0);
    draw();
  });
  drawing.addEventListener("pointerleave", () => { pointed = null; if (series) draw(); });

  return { element, update(fresh) { series = fresh; draw(); } };
}

/** Stretches without a gap: lists of [time, value]. A pause in the samples is a gap, too. */
function runs(values, times) {
  const found = [];
  let run = [];
  values.forEach((value, index) => {
    const late = index > 0 && times[index] - times[index - 1] > 10;
    if ((value == null || late) && run.length) { found.push(run); run = []; }
    if (value != null) run.push([times[index], value]);
  });
  if (run.length) found.push(run);
  return found;
}

/** The next of 1, 2, 5, 10 … at or above `value`. */
export function niceTop(value) {
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((each) => each >= value * 0.999);
}
