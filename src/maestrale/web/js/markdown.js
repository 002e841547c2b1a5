// What a model says, made into elements. Two walls: markdown-it takes HTML in the text for text,
// and DOMPurify lets only the elements and attributes below through. Images are never loaded.
import DOMPurify from "../vendor/purify.min.mjs";
import MarkdownIt from "../vendor/markdown-it.min.mjs";
import { copyText, h, icon } from "./dom.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    "p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "strong", "em", "s", "code", "pre", "a",
    "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "span",
  ],
  ALLOWED_ATTR: ["href", "class", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const BLOCKS = "p, li, h1, h2, h3, h4, h5, h6, blockquote, th, td";
const LONGEST = 200_000; // characters; more is shown as plain text
const LONGEST_COLOURED = 20_000;

const reader = new MarkdownIt({ html: false, linkify: true, breaks: false });
reader.validateLink = (url) => /^(https?:|mailto:)/i.test(url.trim());
reader.renderer.rules.image = (tokens, index) => {
  const url = reader.utils.escapeHtml(tokens[index].attrGet("src") ?? "");
  const text = reader.utils.escapeHtml(tokens[index].content || "image");
  return `<a href="${url}">[${text}]</a>`;
};

/** Fills `element` with the text as Markdown; `running`: more will come, so colours wait. */
export function renderMarkdown(element, text, { running = false } = {}) {
  if (text.length > LONGEST) {
    renderPlain(element, text);
    return;
  }
  const fragment = DOMPurify.sanitize(reader.render(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const block of fragment.querySelectorAll(BLOCKS)) block.dir = "auto";
  for (const table of fragment.querySelectorAll("table")) {
    const frame = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const pre of fragment.querySelectorAll("pre")) {
    const code = pre.querySelector("code") ?? pre;
    const language = /language-([\w+#.-]{1,30})/.exec(code.className)?.[1] ?? "";
    pre.replaceWith(codeBlock(code.textContent.replace(/\n$/, ""), language, { running }));
  }
  element.classList.remove("plain");
  element.replaceChildren(fragment);
}

export function renderPlain(element, text) {
  element.classList.add("plain");
  element.dir = "auto";
  element.textContent = text;
}

/** Code with its language and a button that copies it. */
export function codeBlock(text, language, { running = false, label = "" } = {}) {
  const code = h("code", {}, text);
  const copy = h("button", { type: "button", class: "button quiet small" }, icon("copy"), "Copy");
  copy.addEventListener("click", () => copyText(text, copy));
  if (!running && language && text.length < LONGEST_COLOURED) colour(code, text, language);
  return h("div", { class: "code" },
    h("div", { class: "code-head" }, h("span", {}, label || language || "code"), copy),
    h("pre", { tabindex: "0", role: "region", "aria-label": `${label || language || ""} code`.trim() }, code));
}

let colours; // loaded when the first code with a language is shown

async function colour(code, text, language) {
  colours ??= import("../vendor/highlight.min.mjs").then((module) => module.default);
  const highlighter = await colours.catch(() => null);
  if (!highlighter?.getLanguage(language)) return;
  const { value } = highlighter.highlight(text, { language, ignoreIllegals: true });
  code.replaceChildren(DOMPurify.sanitize(value, ALLOWED));
}
