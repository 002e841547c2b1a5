// The usage page: asks /usage.json, and shows who used what, by day, key and model.
import { call } from "./api.js";
import { bars } from "./bars.js";
import { $, fillIcons, h, notice } from "./dom.js";
import { addKeyDialog, askForKey, hasKey } from "./key.js";

const PERIOD = 60000;
const FIGURES = ["requests", "errors", "prompt_tokens", "cached_tokens", "completion_tokens", "seconds"];
const HEADINGS = ["Requests", "Errors", "Tokens in", "from the cache", "Tokens out", "Compute"];
const ALL = "";

const count = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => (value < 600 ? `${value.toFixed(value < 10 ? 1 : 0)} s` : value < 36000 ? `${Math.round(value / 60)} min` : `${count(value / 3600)} h`);
const spell = (name, value) => (name === "seconds" ? seconds(value) : count(value));

const CHARTS = [
  { title: "Requests", format: count, parts: [{ key: "good", label: "answered" }, { key: "errors", label: "errors" }] },
  { title: "Tokens", format: count, parts: [{ key: "prompt_tokens", label: "in" }, { key: "completion_tokens", label: "out" }] },
  { title: "Compute", format: seconds, parts: [{ key: "seconds", label: "engine time" }] },
].map(bars);

let asked = null; // the answer of /usage.json

function none() {
  return Object.fromEntries(FIGURES.map((name) => [name, 0]));
}

function sums(rows, key) {
  const found = new Map();
  for (const row of rows) {
    const into = found.get(row[key]) ?? none();
    for (const name of FIGURES) into[name] += row[name];
    found.set(row[key], into);
  }
  return found;
}

function everyDay(since, until) {
  const days = [];
  for (let at = Date.parse(since); at <= Date.parse(until); at += 86400000) days.push(new Date(at).toISOString().slice(0, 10));
  return days;
}

function tile(name, value, note = "") {
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, value, note && h("p", { class: "note" }, note)));
}

function table(element, heading, found) {
  const rows = [...found].sort(([, one], [, other]) => other.prompt_tokens + other.completion_tokens - one.prompt_tokens - one.completion_tokens);
  element.replaceChildren(
    h("thead", {}, h("tr", {}, [heading, ...HEADINGS].map((each) => h("th", { scope: "col" }, each)))),
    h("tbody", {}, rows.map(([name, figures]) => h("tr", {},
      h("th", { scope: "row" }, name === "-" ? "none" : name), FIGURES.map((each) => h("td", {}, spell(each, figures[each])))))));
}

function choices(element, names) {
  const chosen = element.value;
  const shown = [ALL, ...[...names].sort()];
  element.replaceChildren(...shown.map((name) => h("option", { value: name }, name === ALL ? "all" : name === "-" ? "none" : name)));
  element.value = shown.includes(chosen) ? chosen : ALL;
}

function show() {
  if (!asked) return;
  choices($("#key-filter"), new Set(asked.rows.map((row) => row.key)));
  choices($("#model-filter"), new Set(asked.rows.map((row) => row.model)));
  const [key, model] = [$("#key-filter").value, $("#model-filter").value];
  const rows = asked.rows.filter((row) => (key === ALL || row.key === key) && (model === ALL || row.model === model));
  const all = sums(rows.map((row) => ({ ...row, all: "" })), "all").get("") ?? none();
  $("#about").textContent = `${asked.since} to ${asked.until}, days of UTC`;
  $("#tiles").replaceChildren(
    tile("Requests", count(all.requests), `${count(all.errors)} with an error`),
    tile("Tokens in", count(all.prompt_tokens), `${count(all.cached_tokens)} from the cache`),
    tile("Tokens out", count(all.completion_tokens)),
    tile("Compute", seconds(all.seconds), "from first step to last, all requests"),
  );
  const byDay = sums(rows, "day");
  const days = everyDay(asked.since, asked.until).map((day) => {
    const figures = byDay.get(day) ?? none();
    return { day, ...figures, good: Math.max(0, figures.requests - figures.errors) };
  });
  for (const each of CHARTS) each.update(days);
  table($("#keys"), "Key", sums(rows, "key"));
  table($("#models"), "Model", sums(rows, "model"));
}

let timer = 0;

async function update() {
  clearTimeout(timer);
  try {
    const since = new Date(Date.now() - 86400000 * (Number($("#days").value) - 1)).toISOString().slice(0, 10);
    asked = await (await call(`usage.json?since=${since}`)).json();
    show();
    notice("");
    $("#key-open").hidden = !hasKey();
  } catch (failure) {
    if (failure.status === 401) {
      $("#key-open").hidden = false;
      notice("These numbers need the server's API key.");
      if (await askForKey(hasKey() ? failure.detail : "")) update();
      return;
    }
    notice(`${failure.detail || failure.title || "The usage could not be read"} It is tried again.`);
  }
  if (!document.hidden) timer = setTimeout(update, PERIOD);
}

fillIcons();
addKeyDialog();
$("#charts").replaceChildren(...CHARTS.map((each) => each.element));
$("#theme").addEventListener("click", () => window.switchTheme());
$("#key-open").addEventListener("click", async () => { if (await askForKey()) update(); });
$("#days").addEventListener("change", update);
for (const name of ["#key-filter", "#model-filter"]) $(name).addEventListener("change", show);
document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
update();
