// The server as the chat page knows it: its model, its state, whether it asks for a key.
import { call, health } from "./api.js";
import { $, h } from "./dom.js";
import { askForKey, hasKey } from "./key.js";
import { DEFAULTS } from "./store.js";

/** `model`: the name to ask for, once `meet` has learned it; without one the server takes its own.
    `onDefaults(before)`: called when the server has told which temperature is usual. */
export const server = { model: undefined, onDefaults: () => {} };

export async function changeKey(why = "") {
  if (await askForKey(why)) await meet();
}

/** Learns the model's name; asks for a key where one is needed; waits while the server starts. */
export async function meet() {
  $("#server-notice").hidden = true;
  try {
    const { data } = await (await call("v1/models")).json();
    offer(data.filter((each) => each.id === each.root && (each.task ?? "chat") === "chat"), data[0]);
    $("#key-open").hidden = !hasKey();
    $("#docs").hidden = hasKey(); // a page opened by a link can't bring a key
  } catch (failure) {
    if (failure.status === 401) {
      showState("dead", "A key is needed");
      $("#key-open").hidden = false;
      $("#docs").hidden = true;
      await changeKey(hasKey() ? failure.detail : "");
      return;
    }
    const { state, detail } = await health();
    showState(state, { starting: "Starting", draining: "Shutting down", unreachable: "Not reachable" }[state] ?? failure.title);
    $("#server-notice").hidden = false;
    $("#server-text").textContent = `${failure.title}. ${detail || failure.detail}`;
    setTimeout(meet, 2000);
  }
}

/** Lets the reader choose where there are several; the first answers until then. */
function offer(models, first) {
  const chosen = models.find((each) => each.id === server.model) ?? models[0] ?? first;
  const picker = $("#model");
  $("#model-field").hidden = models.length < 2;
  picker.replaceChildren(...models.map((each) => h("option", { value: each.id }, each.id)));
  const take = (model) => {
    server.model = model.id;
    adopt(model.default_model_temperature);
    showState("ready", model.id);
  };
  take(chosen);
  picker.value = chosen.id;
  picker.onchange = () => take(models.find((each) => each.id === picker.value));
}

/** What the model's makers advise is what a new conversation begins with. */
function adopt(temperature) {
  if (!Number.isFinite(temperature)) return;
  const before = DEFAULTS.temperature;
  DEFAULTS.temperature = temperature;
  server.onDefaults(before);
}

function showState(state, text) {
  $("#state").dataset.state = state;
  $("#state span").textContent = text;
}
