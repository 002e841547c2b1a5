// The status page: asks /status.json every two seconds, and shows it.
import { call } from "./api.js";
import { chart } from "./charts.js";
import { $, fillIcons, h, notice, svg } from "./dom.js";
import { askForKey, hasKey, addKeyDialog } from "./key.js";

const PERIOD = 2000;
const STATES = {
  ready: "Ready", starting: "Starting", degraded: "Restarting the engine", loading: "Loading", unloaded: "Not loaded", draining: "Shutting down",
  dead: "Stopped", unreachable: "Not reachable",
};
const EVENTS = {
  engine_restarted: "The engine died and was replaced",
  api_process_restarted: "An API process died and was replaced",
  engine_died: "The engine died, and an answer with it",
  invalid_api_key: "A request with no key or a wrong one",
  permission_denied: "A request from a page or name that may not ask",
  model_not_found: "A request for a model that isn't here",
  context_length_exceeded: "A conversation longer than the context",
  model_not_loaded: "A model could not be loaded",
  queue_full: "Turned away: the queue was full",
  queue_timeout: "Waited too long for its turn",
  rate_limit_exceeded: "More requests than the key allows",
  unknown_field: "A request with an unknown field",
  not_found: "Nothing is at this path",
  internal_error: "The server failed on a request",
};

const seconds = (value) => {
  if (value == null) return "–";
  if (value < 0.0995) return `${(value * 1000).toFixed(value < 0.00995 ? 1 : 0)} ms`;
  return value < 0.9995 ? `${Math.round(value * 1000)} ms` : `${Number(value.toFixed(value < 10 ? 2 : 1))} s`;
};
const count = (value) => Math.round(value).toLocaleString("en");
const percent = (value) => `${(value * 100).toFixed(value < 0.1 && value > 0 ? 1 : 0)}\u00a0%`;
const rate = (value) => (value >= 100 ? count(value) : value.toFixed(value >= 10 || value === 0 ? 0 : 1));

const spread = (figures, over) => `90\u00a0%\u00a0${seconds(figures?.p90)}, 99\u00a0%\u00a0${seconds(figures?.p99)} of the last ${over}`.replace(/(\d) (m?s)/g, "$1\u00a0$2");

const CHARTS = [
  { title: "Tokens out per second", format: rate, least: 10, lines: [{ key: "generation_tokens_per_second", label: "tokens/s" }] },
  { title: "Tokens in per second", format: rate, least: 10, lines: [{ key: "prompt_tokens_per_second", label: "tokens/s" }] },
  { title: "Requests", format: count, least: 4, lines: [{ key: "running", label: "running" }, { key: "waiting", label: "waiting" }] },
  { title: "Time to first token", format: seconds, least: 0.1, lines: [{ key: "ttft_p50", label: "median" }, { key: "ttft_p90", label: "90 %" }] },
  { title: "Time between tokens", format: seconds, least: 0.01, lines: [{ key: "inter_token_p50", label: "median" }, { key: "inter_token_p90", label: "90 %" }] },
  { title: "KV cache in use", format: percent, least: 0.1, lines: [{ key: "kv_cache_usage", label: "used" }] },
].map(chart);

function span(total) {
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${total} s`;
}

function tile(name, value, unit = "", note = "", share = null) {
  const parts = [value, unit && h("small", {}, ` ${unit}`)];
  if (share !== null) {
    parts.push(svg("svg", { class: "meter", viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { width: 100, height: 4, rx: 2 }), svg("rect", { width: Math.min(100, share * 100), height: 4, rx: 2 })));
  }
  if (note) parts.push(h("p", { class: "note" }, note));
  return h("div", { class: "tile" }, h("dt", {}, name), h("dd", {}, parts));
}

function show(status) {
  const { engine, now, latency, totals } = status;
  showState(status.state);
  $("#model").textContent = status.models.join(", ") || "Status";
  $("#about").textContent = [
    status.state !== "ready" && status.detail,
    engine && `${engine.name} ${engine.version}`,
    engine?.deterministic && "deterministic",
    engine && `context ${count(engine.context_tokens)} tokens`,
    `maestrale ${status.version}`,
    `up ${span(status.uptime_seconds)}`,
  ].filter(Boolean).join(" · ");
  document.querySelector("main").classList.toggle("waiting-for-data", !now);
  if (now) {
    const { time_to_first_token: ttft, inter_token: gap, window_seconds: window } = latency;
    const minutes = window >= 60 ? `${Math.round(window / 60)}\u00a0min` : `${window ?? 0}\u00a0s`;
    $("#tiles").replaceChildren(
      tile("Running", count(now.running), `of ${engine.max_num_seqs}`),
      tile("Waiting", count(now.waiting)),
      tile("KV cache", percent(now.kv_cache_usage), "", `of ${count(engine.kv_capacity_tokens)} tokens${status.replicas?.length > 1 ? " each" : ""}`, now.kv_cache_usage),
      tile("Tokens out", rate(now.generation_tokens_per_second), "/s"),
      tile("Tokens in", rate(now.prompt_tokens_per_second), "/s"),
      tile("First token", seconds(ttft?.p50), "", spread(ttft, minutes)),
      tile("Between tokens", seconds(gap?.p50), "", spread(gap, minutes)),
      tile("Restarts", count(totals.restarts), "", `${count(totals.replayed)} answers went on after one`),
    );
    $("#totals").replaceChildren(...[
      ["Tokens in", count(totals.prompt_tokens)],
      ["Tokens out", count(totals.generation_tokens)],
      ["Found in the prefix cache", totals.prefix_cache_queries
        ? `${count(totals.prefix_cache_hits)} tokens, ${percent(totals.prefix_cache_hits / totals.prefix_cache_queries)}` : "–"],
      ["Put back to wait", count(totals.preemptions)],
      ["Engine restarts", count(totals.restarts)],
      ["Replayed requests", count(totals.replayed)],
      ["Engine fingerprint", engine.fingerprint],
    ].flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    for (const each of CHARTS) each.update(status.series);
  }
  showParts(status.deployments ?? [], status.api_processes ?? [], status.api_nodes ?? [], status.replicas ?? []);
  showEvents(status.events);
}

// Only where there is more than one of a kind: who they are, where, and what each does.
function showParts(models, processes, nodes, replicas) {
  const rows = [];
  for (const each of models.length > 1 ? models : []) {
    const doing = [
      each.memory_bytes && `${count(Math.ceil(each.memory_bytes / 2 ** 20))}\u00a0MiB`, each.pinned && "pinned",
      each.state === "ready" && each.now && `${count(each.now.running)} running`,
      each.now?.waiting > 0 && `${count(each.now.waiting)} waiting`, each.state !== "ready" && each.detail,
    ];
    rows.push([each.names[0] ?? each.id, (STATES[each.state] ?? each.state).toLowerCase(), doing]);
  }
  for (const each of processes.length > 1 ? processes : []) {
    const doing = [`${count(each.requests)} request${each.requests === 1 ? "" : "s"}`, `up ${span(each.uptime_seconds)}`];
    rows.push([`API process ${each.pid}`, each.state, doing]);
  }
  for (const each of nodes) {
    const doing = [each.url, each.pid && `process ${each.pid}`, each.restarts && `${count(each.restarts)} restart${each.restarts === 1 ? "" : "s"}`, each.detail];
    rows.push([`API on ${each.host || each.address}`, each.state, doing]);
  }
  for (const each of replicas) {
    const doing = [
      `${count(each.running)} running`, `${count(each.waiting)} waiting`,
      `${count(each.generation_tokens)} tokens out`, each.pid && `process ${each.pid}`,
    ];
    rows.push([`Replica ${each.name}${each.host ? ` on ${each.host}` : ""}`, each.state, doing]);
  }
  $("#parts-panel").hidden = rows.length === 0;
  $("#parts").replaceChildren(...rows.map(([name, state, doing]) => h("li", {},
    h("span", { class: "what" }, name),
    h("span", {}, state),
    h("span", { class: "where" }, doing.filter(Boolean).join(" · ")))));
}

function showEvents(events) {
  $("#no-events").hidden = events.length > 0;
  $("#events").replaceChildren(...events.map((event) => {
    const time = new Date(event.time * 1000);
    const where = [event.path, event.status || "", event.kind === "error" && event.request_id].filter(Boolean).join(" · ");
    return h("li", {},
      h("span", { class: "what" }, EVENTS[event.code] ?? event.code.replaceAll("_", " "), event.count > 1 ? ` (${event.count}×)` : ""),
      h("time", { datetime: time.toISOString() }, time.toLocaleTimeString()),
      h("span", { class: "where" }, where));
  }));
}

function showState(state) {
  $("#state").dataset.state = state;
  const text = STATES[state] ?? state;
  const shown = $("#state span");
  if (shown.textContent !== text) shown.textContent = text;
}

let timer = 0;

async function update() {
  clearTimeout(timer);
  let wait = PERIOD;
  try {
    show(await (await call("status.json")).json());
    notice("");
    $("#key-open").hidden = !hasKey();
  } catch (failure) {
    if (failure.status === 401) {
      $("#key-open").hidden = false;
      notice("These numbers need the server's API key.");
      showState("starting");
      if (await askForKey(hasKey() ? failure.detail : "")) update();
      return;
    }
    showState("unreachable");
    notice(`${failure.title ?? "The status could not be read"}. It is tried again.`);
    wait = 2 * PERIOD;
  }
  if (!document.hidden) timer = setTimeout(update, wait);
}

fillIcons();
addKeyDialog();
$("#charts").replaceChildren(...CHARTS.map((each) => each.element));
$("#theme").addEventListener("click", () => window.switchTheme());
$("#key-open").addEventListener("click", async () => { if (await askForKey()) update(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) update(); });
update();
