// The server as the chat page knows it: its model, its state, whether it asks for a key.
import { call, health } from "./api.js";
import { $ } from "./dom.js";
import { askForKey, hasKey } from "./key.js";

/** `model`: the name to ask for, once `meet` has learned it; without one the server takes its own. */
export const server = { model: undefined };

export async function changeKey(why = "") {
  if (await askForKey(why)) await meet();
}

/** Learns the model's name; asks for a key where one is needed; waits while the server starts. */
export async function meet() {
  $("#server-notice").hidden = true;
  try {
    const { data } = await (await call("/v1/models")).json();
    server.model = data[0].id;
    showState("ready", server.model);
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

function showState(state, text) {
  $("#state").dataset.state = state;
  $("#state span").textContent = text;
}
