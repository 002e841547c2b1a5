// The list of conversations, and the two panels that slide over a narrow page.
import { $, h, icon } from "./dom.js";

/** Draws the list; `act` has open(id) and remove(conversation). */
export function showList(conversations, currentId, act) {
  const items = conversations.map((conversation) => {
    const title = conversation.title || "New conversation";
    const open = h("button", { type: "button", class: "open", dir: "auto", title }, title);
    open.addEventListener("click", () => act.open(conversation.id));
    const remove = h("button", { type: "button", class: "button quiet small square remove", "aria-label": `Delete ${title}` }, icon("trash"));
    remove.addEventListener("click", () => act.remove(conversation));
    const current = conversation.id === currentId;
    if (current) open.setAttribute("aria-current", "true");
    return h("li", { "data-current": current }, open, remove);
  });
  $("#conversations").replaceChildren(...items);
  $("#conversations-head").hidden = items.length === 0;
}

const wide = matchMedia("(min-width: 74.01rem)");
const NAME = "maestrale.settings-open";

export function wirePanels() {
  const panel = $("#settings");
  const setSettings = (open, { focus = true } = {}) => {
    panel.hidden = !open;
    document.body.classList.toggle("settings-open", open);
    $("#settings-toggle").setAttribute("aria-expanded", String(open));
    if (open && focus) panel.querySelector("textarea").focus();
    if (!open && focus) $("#settings-toggle").focus();
    if (wide.matches) try { localStorage.setItem(NAME, open ? "1" : ""); } catch { /* not kept */ }
  };
  const setSidebar = (open, { focus = true } = {}) => {
    document.body.classList.toggle("sidebar-open", open);
    $("#sidebar-toggle").setAttribute("aria-expanded", String(open));
    $("#main").inert = open;
    if (focus) (open ? $("#new") : $("#sidebar-toggle")).focus();
  };
  $("#settings-toggle").addEventListener("click", () => setSettings(panel.hidden));
  $("#settings-close").addEventListener("click", () => setSettings(false));
  $("#summary").addEventListener("click", () => setSettings(true));
  $("#sidebar-toggle").addEventListener("click", () => setSidebar(true));
  $("#veil").addEventListener("click", () => closeAny());
  let kept = "";
  try { kept = localStorage.getItem(NAME) ?? ""; } catch { /* closed, then */ }
  setSettings(wide.matches && kept === "1", { focus: false });

  /** Closes what lies over the page; whether there was anything. */
  function closeAny({ focus = true } = {}) {
    if (document.body.classList.contains("sidebar-open")) { setSidebar(false, { focus }); return true; }
    if (!panel.hidden && !wide.matches) { setSettings(false, { focus }); return true; }
    return false;
  }
  return { closeAny, openSettings: () => setSettings(true) };
}
