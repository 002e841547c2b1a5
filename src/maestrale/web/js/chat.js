// The chat page. Holds the conversation that is open; the modules beside it do one thing each.
import { answer, requestBody } from "./answer.js";
import { health } from "./api.js";
import { showCode, wireCode } from "./code.js";
import { $, fillIcons, h, toast } from "./dom.js";
import { addKeyDialog } from "./key.js";
import { messageView } from "./messages.js";
import { showScenarios } from "./scenarios.js";
import { changeKey, meet, server } from "./server.js";
import * as settings from "./settings.js";
import { showList, wirePanels } from "./sidebar.js";
import * as store from "./store.js";

const CURRENT = "maestrale.current";
let conversation = store.newConversation();
let views = new Map(); // message → view
let running = null; // {message, conversation, abort}
let panels;

/* What is on the page */

function openConversation(next, { focus = true } = {}) {
  running?.abort.abort();
  conversation = next;
  try { sessionStorage.setItem(CURRENT, conversation.id); } catch { /* not kept */ }
  for (const message of conversation.messages) {
    if (message.state === "running") message.state = "running-before";
  }
  settings.show(conversation.settings);
  draw();
  scrollToEnd(true);
  panels.closeAny({ focus: false });
  if (focus) $("#prompt").focus();
}

function draw() {
  views = new Map(conversation.messages.map((message) => [message, messageView(message, act)]));
  $("#messages").replaceChildren(...[...views.values()].map((view) => view.element));
  $("#welcome").hidden = conversation.messages.length > 0;
  const title = conversation.title || "New conversation";
  $("#title").textContent = title;
  document.title = conversation.title ? `${title} · maestrale` : "maestrale";
  drawList();
  drawSuggestions();
  drawButtons();
}

function drawList() {
  showList(store.list(), conversation.id, {
    open: (id) => openConversation(store.load(id) ?? store.newConversation()),
    remove: removeConversation,
  });
}

function drawSuggestions() {
  const shown = !running && conversation.messages.at(-1)?.state === "done" ? conversation.followUps : [];
  $("#suggestions").replaceChildren(...shown.map((each) => {
    const button = h("button", { type: "button", class: "button small" }, each.title);
    button.addEventListener("click", () => {
      conversation.followUps = conversation.followUps.filter((other) => other !== each);
      Object.assign(conversation.settings, each.settings);
      settings.show(conversation.settings);
      ask(each.content);
    });
    return button;
  }));
}

function drawButtons() {
  $("#send").hidden = running !== null;
  $("#stop").hidden = running === null;
}

function keep(which = conversation) {
  which.updated = Date.now();
  const trouble = store.save(which);
  $("#storage-notice").hidden = trouble === "";
  $("#storage-text").textContent = trouble;
}

function removeConversation(gone) {
  store.remove(gone.id);
  if (gone.id === conversation.id) openConversation(store.newConversation(), { focus: false });
  else drawList();
  $("#new").focus();
  toast("Conversation deleted.", { label: "Undo", run: () => { store.save(gone); openConversation(gone); } });
}

/* Scrolling: stays at the end, unless the reader went elsewhere */

const scroller = () => $("#scroll");
let following = true;

function scrollToEnd(force = false) {
  if (force) following = true;
  if (following) scroller().scrollTop = scroller().scrollHeight;
  $("#to-end").hidden = following;
}

function wireScrolling() {
  let before = 0;
  scroller().addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = scroller();
    const atEnd = scrollHeight - scrollTop - clientHeight < 60;
    // The page growing under the reader is no scrolling up.
    if (atEnd) following = true;
    else if (scrollTop < before) following = false;
    before = scrollTop;
    $("#to-end").hidden = following || atEnd;
  });
  new ResizeObserver(() => scrollToEnd()).observe($("#messages"));
  $("#to-end").addEventListener("click", () => scrollToEnd(true));
}

/* Asking */

function ask(text) {
  conversation.messages.push({ role: "user", content: text });
  conversation.title ||= text.replace(/\s+/g, " ").trim().slice(0, 80);
  return respond();
}

/** Answers the conversation as it stands. */
async function respond() {
  running?.abort.abort();
  const trouble = settings.faultOf(conversation.settings);
  if (trouble) {
    draw();
    panels.openSettings();
    $(trouble.field).focus();
    toast(trouble.text);
    return;
  }
  const message = { role: "assistant", content: "", state: "running" };
  const own = conversation;
  own.messages.push(message);
  const run = { message, conversation: own, abort: new AbortController() };
  running = run;
  const body = requestBody(own, message, server.model);
  message.sent = { body };
  draw();
  scrollToEnd(true);
  announce("The answer begins.");
  keep(own);
  let kept = performance.now();
  await answer(message, body, run.abort.signal, (what) => {
    if (what === "paused") explainPause(message);
    views.get(message)?.update(what);
    if (performance.now() - kept > 2000) {
      kept = performance.now();
      keep(own);
    }
  });
  if (running === run) running = null;
  if (own === conversation || store.load(own.id)) keep(own);
  if (own !== conversation) {
    drawList();
    return;
  }
  drawSuggestions();
  drawButtons();
  drawList();
  views.get(message)?.update("end");
  announce(message.state === "failed" ? `${message.fault.title}. ${message.fault.detail}`
    : message.state === "stopped" ? "Stopped." : `The answer: ${message.content.slice(0, 2000)}`);
  if (message.fault?.status === 401 && message.state === "failed") await changeKey(message.fault.detail);
}

async function explainPause(message) {
  message.pausedText ??= "The server works on it …";
  const { state } = await health();
  if (!message.paused) return;
  message.pausedText = state === "degraded"
    ? "The engine stopped and is being restarted. The answer goes on by itself where it was."
    : state === "loading" || state === "unloaded" ? "The model is being loaded."
    : "The server is busy; the answer waits for its turn.";
  views.get(message)?.update("paused");
}

function stop() {
  if (!running) return;
  running.abort.abort();
  $("#prompt").focus();
}

function announce(text) {
  $("#live").textContent = text;
}

const act = {
  isLast: (message) => conversation.messages.at(-1) === message,
  key: () => changeKey(),
  again(message) {
    conversation.messages.splice(conversation.messages.indexOf(message));
    $("#prompt").focus();
    respond();
  },
  edit(message) {
    const view = views.get(message);
    const area = h("textarea", { rows: "4", "aria-label": "Edit your message", dir: "auto" });
    area.value = message.content;
    const close = () => { editor.replaceWith(view.element); view.element.querySelector("button").focus(); };
    const send = () => {
      if (!area.value.trim()) return;
      running?.abort.abort();
      conversation.messages.splice(conversation.messages.indexOf(message));
      if (conversation.messages.length === 0) conversation.title = "";
      $("#prompt").focus();
      ask(area.value);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); close(); }
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send();
    });
    const editor = h("div", { class: "message user" }, h("div", { class: "edit" }, area,
      h("div", { class: "dialog-actions" },
        h("button", { type: "button", class: "button", onclick: close }, "Cancel"),
        h("button", { type: "button", class: "button primary", onclick: send }, "Send again"))));
    view.element.replaceWith(editor);
    area.focus();
  },
  code(message) {
    const { body, system, keyed } = message.sent;
    const before = conversation.messages.slice(0, conversation.messages.indexOf(message));
    const messages = [
      ...(system ? [{ role: "system", content: system }] : []),
      ...before.map(({ role, content }) => ({ role, content })),
    ];
    const { model: name, ...rest } = body;
    showCode({ url: new URL(".", location.href).href.replace(/\/$/, ""), body: { model: name ?? server.model, messages, ...rest }, keyed });
  },
};

/* The page's own controls */

function wireComposer() {
  const prompt = $("#prompt");
  const grow = () => {
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight}px`;
  };
  const send = () => {
    const text = prompt.value;
    if (!text.trim() || running) return;
    const trouble = settings.faultOf(conversation.settings);
    if (!trouble) {
      prompt.value = "";
      grow();
      ask(text);
      return;
    }
    panels.openSettings();
    $(trouble.field).focus();
    toast(trouble.text);
  };
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    }
    if (event.key === "ArrowUp" && prompt.value === "") {
      const asked = conversation.messages.findLast(({ role }) => role === "user");
      if (asked) { event.preventDefault(); act.edit(asked); }
    }
  });
  $("#composer").addEventListener("submit", (event) => { event.preventDefault(); send(); });
  $("#stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]") && !panels.closeAny()) stop();
    const typing = event.target.closest("input, textarea, select, dialog");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      prompt.focus();
    }
  });
}

function begin() {
  fillIcons();
  addKeyDialog();
  panels = wirePanels();
  wireComposer();
  wireScrolling();
  settings.wireSettings((changed) => {
    conversation.settings = changed;
    if (conversation.messages.length) keep();
  });
  $("#new").addEventListener("click", () => openConversation(store.newConversation()));
  $("#theme").addEventListener("click", () => window.switchTheme());
  $("#key-open").addEventListener("click", () => changeKey());
  wireCode();
  addEventListener("pagehide", () => { if (running) keep(running.conversation); });
  store.watch((id) => {
    // Another tab wrote: what is open here and quiet follows it.
    if ((id === undefined || id === conversation.id) && !running) {
      const fresh = store.load(conversation.id);
      if (fresh) { conversation = fresh; draw(); return; }
    }
    drawList();
  });
  showScenarios((start) => {
    const next = store.newConversation(start.settings);
    Object.assign(next, { title: start.title, messages: start.messages.slice(0, -1), followUps: start.followUps });
    openConversation(next);
    ask(start.messages.at(-1).content);
  });
  let last = null;
  try { last = sessionStorage.getItem(CURRENT); } catch { /* a new one, then */ }
  openConversation((last && store.load(last)) || store.newConversation(), { focus: matchMedia("(hover: hover)").matches });
  server.onDefaults = (before) => {
    if (conversation.messages.length || conversation.settings.temperature !== before) return;
    conversation.settings.temperature = store.DEFAULTS.temperature;
    settings.show(conversation.settings);
  };
  meet();
}

begin();
