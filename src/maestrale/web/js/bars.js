// Small bar charts in SVG, a bar a day: of one kind, or of two, the second above the first.
import { h, svg } from "./dom.js";
import { niceTop } from "./charts.js";

const WIDTH = 600;
const HEIGHT = 100;

/** A chart of `parts`: [{key, label}], one or two; `format` spells a value. Its update(days) takes
 * [{day, ...values by key}], all days in order. */
export function bars({ title, parts, format }) {
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  const legend = h("p", { class: "legend" });
  const top = h("span", {});
  const when = h("span", {});
  const element = h("section", { class: "chart" },
    h("header", {}, h("h3", {}, title), legend), drawing, h("p", { class: "axis" }, top, when));
  let days = [];
  let pointed = null;

  const sum = (key) => days.reduce((all, each) => all + each[key], 0);

  function showLegend() {
    const one = days[pointed];
    legend.replaceChildren(...parts.map(({ key, label }, index) => h("span", {},
      h("i", { class: index ? "second" : "" }), label, " ", h("b", {}, format(one ? one[key] : sum(key))))));
    when.textContent = one ? one.day : `${days[0]?.day ?? ""} to ${days.at(-1)?.day ?? ""}`;
  }

  function draw() {
    const highest = niceTop(Math.max(1, ...days.map((each) => parts.reduce((all, { key }) => all + each[key], 0))));
    const width = WIDTH / Math.max(1, days.length);
    const drawn = [0, 0.5, 1].map((share) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT * share, y2: HEIGHT * share }));
    days.forEach((each, index) => {
      let y = HEIGHT;
      parts.forEach(({ key }, part) => {
        const height = (HEIGHT * each[key]) / highest;
        y -= height;
        if (height) drawn.push(svg("rect", { class: part ? "bar second" : "bar", x: (index + 0.12) * width, y, width: width * 0.76, height }));
      });
    });
    if (pointed !== null) {
      const x = (pointed + 0.5) * width;
      drawn.push(svg("line", { class: "cursor", x1: x, x2: x, y1: 0, y2: HEIGHT }));
    }
    drawing.replaceChildren(...drawn);
    top.textContent = `top ${format(highest)}`;
    showLegend();
    const words = parts.map(({ key, label }) => `${label}: ${format(sum(key))} in all, at most ${format(Math.max(0, ...days.map((each) => each[key])))} a day`);
    drawing.setAttribute("aria-label", `${title}. ${words.join("; ")}.`);
  }

  drawing.addEventListener("pointermove", (event) => {
    if (!days.length) return;
    const box = drawing.getBoundingClientRect();
    const at = Math.floor(((event.clientX - box.left) / box.width) * days.length);
    pointed = Math.min(days.length - 1, Math.max(0, at));
    draw();
  });
  drawing.addEventListener("pointerleave", () => { pointed = null; draw(); });

  return { element, update(fresh) { days = fresh; pointed = null; draw(); } };
}
