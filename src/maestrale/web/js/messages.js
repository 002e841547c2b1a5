// How one message looks, and what can be done with it.
import { copyText, h, icon } from "./dom.js";
import { codeBlock, renderMarkdown, renderPlain } from "./markdown.js";

const LONG = 1200; // characters of a question beyond which only its beginning is shown
const PLAIN_WHILE_RUNNING = 60_000;

/** The element of a message; `act` has edit, again, code, key. */
export function messageView(message, act) {
  return message.role === "user" ? questionView(message, act) : answerView(message, act);
}

function tool(name, text, run) {
  const button = h("button", { type: "button", class: "button quiet small" }, icon(name), text);
  button.addEventListener("click", () => run(button));
  return button;
}

function questionView(message, act) {
  const body = h("div", { class: "body", dir: "auto" }, message.content);
  const tools = h("div", { class: "tools" },
    tool("edit", "Edit", () => act.edit(message)),
    tool("copy", "Copy", (button) => copyText(message.content, button)));
  if (message.content.length > LONG) {
    body.classList.add("clamped");
    const more = h("button", { type: "button", class: "button quiet small", "aria-expanded": "false" }, "Show all");
    more.addEventListener("click", () => {
      const clamped = body.classList.toggle("clamped");
      more.setAttribute("aria-expanded", String(!clamped));
      more.textContent = clamped ? "Show all" : "Show less";
    });
    tools.prepend(more);
  }
  const element = h("article", { class: "message user", "aria-label": "You" }, body, h("div", { class: "below" }, tools));
  return { element, update() {} };
}

function answerView(message, act) {
  const prose = h("div", { class: "prose" });
  const thought = thoughtView();
  const paused = h("p", { class: "paused", hidden: true });
  const below = h("div", { class: "below" });
  const element = h("article", { class: "message assistant", "aria-label": "Answer" },
    h("div", { class: "who" }, h("img", { src: "web/icon.svg", alt: "" }), message.sent?.body.model ?? "Answer"),
    thought.element, prose, paused, below);
  let due = 0;
  let cost = 0;

  function draw() {
    due = 0;
    const running = message.state === "running";
    const begun = performance.now();
    prose.classList.toggle("running", running && message.content !== "");
    thought.show(message, running);
    if (running && !message.content) {
      prose.replaceChildren(h("span", { class: "thinking" }, h("i"), h("i"), h("i")));
    } else if (message.sent?.body.response_format) {
      drawJson(prose, message, running);
    } else if (running && message.content.length > PLAIN_WHILE_RUNNING) {
      renderPlain(prose, message.content);
    } else {
      renderMarkdown(prose, message.content, { running });
    }
    cost = performance.now() - begun;
  }

  function update(what) {
    if (message.state === "running") {
      // Drawing never takes more than a fifth of the time, however long the answer grows.
      due ||= setTimeout(() => requestAnimationFrame(draw), Math.min(2000, Math.max(16, cost * 4)));
    } else {
      clearTimeout(due);
      draw();
      below.replaceChildren(...footer(message, act));
    }
    paused.hidden = !message.paused;
    if (what === "paused" || what === "lost") paused.textContent = message.pausedText ?? "";
  }

  draw();
  update("");
  return { element, update };
}

/** What the model thought, folded away. */
function thoughtView() {
  const title = h("summary", {});
  const text = h("div", { class: "text", dir: "auto" });
  const element = h("details", { class: "thought", hidden: true }, title, text);
  return {
    element,
    show({ thought, content }, running) {
      element.hidden = !thought;
      title.textContent = running && !content ? "Thinking" : "Thought";
      if (text.textContent !== (thought ?? "")) text.textContent = thought ?? "";
    },
  };
}

function drawJson(prose, message, running) {
  let text = message.content;
  let label = "JSON";
  if (!running) {
    try {
      text = JSON.stringify(JSON.parse(text), null, 2);
      label = "JSON, valid";
    } catch {
      label = message.state === "done" ? "JSON, cut off at the most tokens allowed" : "JSON, not complete";
    }
  }
  prose.replaceChildren(codeBlock(text, "json", { running, label }));
}

function footer(message, act) {
  const parts = [];
  if (message.figures) parts.push(figures(message));
  const tools = h("div", { class: "tools" });
  if (message.content) tools.append(tool("copy", "Copy", (button) => copyText(message.content, button)));
  if (message.sent) tools.append(tool("code", "As code", () => act.code(message)));
  if (act.isLast(message)) tools.append(tool("again", "Try again", () => act.again(message)));
  parts.push(tools);
  if (message.state === "failed") parts.unshift(faultNotice(message.fault, act));
  if (message.state === "running-before") parts.unshift(h("div", { class: "notice" }, h("p", {}, "The page was closed while this answer came. Try again for a whole one.")));
  return parts;
}

function figures({ figures: f, state, seed }) {
  const rows = [];
  const add = (name, value, title) => value && rows.push(h("div", { title }, h("dt", {}, name), h("dd", {}, value)));
  if (state === "stopped") add("Stopped", `after ${seconds(f.seconds)}`);
  add("First token", f.ttft !== null && seconds(f.ttft), "Time from sending to the first token");
  add("Speed", f.rate !== null && `${f.rate.toFixed(1)} tokens/s`, "Of the tokens after the first");
  add("Tokens", f.tokens !== null && `${f.prompt} in${f.cached ? ` (${f.cached} cached)` : ""}, ${f.tokens} out`, "As the server counted them");
  add("Seed", seed, "The same request with this seed gives the same answer");
  if (f.finish === "length") add("Cut off", "at the most tokens allowed");
  return h("dl", { class: "figures" }, rows);
}

const seconds = (value) => (value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(2)} s`);

function faultNotice(fault, act) {
  const words = [fault.detail, fault.retryAfter && fault.retryAfter < 600 && `Try again in ${fault.retryAfter} s.`].filter(Boolean).join(" ");
  const box = h("div", { class: "notice bad" }, h("p", { dir: "auto" }, h("strong", {}, fault.title), words && `. ${words}`));
  if (fault.status === 401) {
    box.append(h("button", { type: "button", class: "button small", onclick: () => act.key() }, icon("key"), "Enter a key"));
  }
  return box;
}
