// The API key: kept for this tab's session, or on this device if the reader asks for it.
import { $, h } from "./dom.js";

const NAME = "maestrale.key";
let key = read(sessionStorage) || read(localStorage) || "";

function read(storage) {
  try { return storage.getItem(NAME); } catch { return null; }
}

export const hasKey = () => key !== "";

/** The headers that a request needs. */
export const keyHeaders = () => (key ? { authorization: `Bearer ${key}` } : {});

function keep(value, lasting) {
  key = value;
  try {
    sessionStorage.removeItem(NAME);
    localStorage.removeItem(NAME);
    if (key) (lasting ? localStorage : sessionStorage).setItem(NAME, key);
  } catch { /* storage is forbidden: the key lasts as long as this page */ }
}

/** Ask for a key; `why` is shown. Resolves to whether one was given (or taken away). */
export function askForKey(why = "") {
  const dialog = $("#key-dialog");
  const input = $("#key");
  const fault = $("#key-fault");
  if (dialog.open) {
    fault.textContent = why;
    return Promise.resolve(false);
  }
  input.value = key;
  $("#key-lasting").checked = read(localStorage) !== null;
  $("#key-forget").hidden = !key;
  fault.textContent = why;
  dialog.returnValue = "";
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if (dialog.returnValue === "use") keep(input.value.trim(), $("#key-lasting").checked);
      if (dialog.returnValue === "forget") keep("", false);
      input.value = "";
      resolve(dialog.returnValue === "use" || dialog.returnValue === "forget");
    }, { once: true });
  });
}

/** Puts the dialog into the page. */
export function addKeyDialog() {
  const fault = h("p", { class: "fault", id: "key-fault", role: "alert" });
  const form = h("form", {},
    h("h2", { id: "key-head" }, "This server asks for a key"),
    h("p", { class: "hint" }, "The server showed it when it started; ", h("code", {}, "maestrale keys add NAME"), " makes more."),
    h("label", { class: "field" }, h("span", {}, "API key"),
      h("input", { type: "password", id: "key", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-fault" })),
    fault,
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "key-lasting" }),
      h("span", {}, "Keep it on this device. Otherwise it is forgotten with this tab.")),
    h("div", { class: "dialog-actions" },
      h("button", { type: "button", class: "button quiet", id: "key-forget", onclick: () => dialog.close("forget") }, "Forget the key"),
      h("button", { type: "button", class: "button", onclick: () => dialog.close("") }, "Cancel"),
      h("button", { type: "submit", class: "button primary" }, "Use this key")));
  const dialog = h("dialog", { id: "key-dialog", "aria-labelledby": "key-head" }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault(); // the policy lets no form submit by itself
    if ($("#key").value.trim()) dialog.close("use");
    else fault.textContent = "Type the key first.";
  });
  document.body.append(dialog);
}
