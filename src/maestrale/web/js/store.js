// Conversations in the browser's localStorage, one entry each; nothing leaves this browser.

const PREFIX = "maestrale.conversation.";

export const DEFAULTS = {
  system: "", temperature: 0.7, max_tokens: 512, seed: null, format: "text", schema: "",
};

export function newConversation(settings = {}) {
  return {
    id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`,
    title: "", created: Date.now(), updated: Date.now(),
    settings: { ...DEFAULTS, ...settings }, messages: [], followUps: [],
  };
}

/** All conversations, newest first. What can't be read is passed over, and stays where it is. */
export function list() {
  const found = [];
  try {
    for (let index = 0; index < localStorage.length; index += 1) {
      const name = localStorage.key(index);
      if (!name.startsWith(PREFIX)) continue;
      const conversation = parse(localStorage.getItem(name));
      if (conversation) found.push(conversation);
    }
  } catch { /* storage is forbidden: there is nothing to list */ }
  return found.sort((one, other) => other.updated - one.updated);
}

export function load(id) {
  try { return parse(localStorage.getItem(PREFIX + id)); } catch { return null; }
}

/** Returns "" when kept, else why not, in words. */
export function save(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return "";
  } catch (error) {
    return error.name === "QuotaExceededError"
      ? "The browser's storage is full. This conversation is lost when the page is closed, unless you delete older ones."
      : "The browser does not let this page store anything. Conversations are lost when the page is closed.";
  }
}

export function remove(id) {
  try { localStorage.removeItem(PREFIX + id); } catch { /* nothing was kept */ }
}

/** Calls back when another tab changes conversation `id`. */
export function watch(changed) {
  addEventListener("storage", (event) => {
    if (event.key === null || event.key.startsWith(PREFIX)) changed(event.key?.slice(PREFIX.length));
  });
}

function parse(text) {
  try {
    const read = JSON.parse(text);
    if (!Array.isArray(read?.messages)) return null;
    read.settings = { ...DEFAULTS, ...read.settings };
    read.followUps ??= [];
    return read;
  } catch { return null; }
}
