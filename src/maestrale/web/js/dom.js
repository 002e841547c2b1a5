// Makes elements. Text is always text: nothing here takes markup.

export const $ = (selector, root = document) => root.querySelector(selector);

/** h("a", {class: "x", onclick: f, "aria-label": "y", hidden: false}, "text", node, null) */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const PATHS = {
  plus: "M12 5v14M5 12h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 13l4 4L19 7",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5",
  again: "M4 12a8 8 0 1 0 2.6-5.9M4 4v4h4",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
  chart: "M4 20V4M4 20h16M8 16v-4M12 16V8M16 16v-6",
  people: "M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7M3 20a6 6 0 0 1 12 0M16 4.5a3.5 3.5 0 0 1 0 6.5M17 14.5a6 6 0 0 1 4 5.5",
  theme: "M12 4a8 8 0 1 0 8 8 6 6 0 0 1-8-8z",
  key: "M14 10a4 4 0 1 0-3.5 4L13 16h2v2h2v2h3v-3z",
  close: "M6 6l12 12M18 6L6 18",
  down: "M12 5v14M6 13l6 6 6-6",
  next: "M9 6l6 6-6 6",
  book: "M5 4h11a3 3 0 0 1 3 3v13H8a3 3 0 0 1-3-3zM5 17a3 3 0 0 1 3-3h11",
  chat: "M4 5h16v11H9l-5 4z",
  braces: "M9 4c-3 0-2 3-2 5s-1 3-3 3c2 0 3 1 3 3s-1 5 2 5M15 4c3 0 2 3 2 5s1 3 3 3c-2 0-3 1-3 3s1 5-2 5",
};

export function icon(name) {
  return svg("svg", {
    class: "icon", viewBox: "0 0 24 24", fill: "none", stroke: "currentColor",
    "stroke-width": "1.8", "stroke-linecap": "round", "stroke-linejoin": "round",
    "aria-hidden": "true",
  }, svg("path", { d: PATHS[name] }));
}

/** Puts the icons that the page's markup names (data-icon) into their places. */
export function fillIcons() {
  for (const each of document.querySelectorAll("[data-icon]")) each.prepend(icon(each.dataset.icon));
}

/** Says something in passing, with at most one thing to do about it. */
export function toast(text, action) {
  const box = h("div", { class: "toast" }, h("span", {}, text));
  const done = () => box.remove();
  if (action) {
    box.append(h("button", { type: "button", onclick: () => { done(); action.run(); } }, action.label));
  }
  $(".toasts").append(box);
  setTimeout(done, action ? 10000 : 5000);
}

export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS, beyond loopback, the clipboard's own interface is closed: the old way is open.
    const area = h("textarea", { class: "visually-hidden", readonly: true });
    area.value = text;
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    button.focus();
    if (!copied) {
      toast("The browser did not let this page copy. Select the text and copy it yourself.");
      return;
    }
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"), "Copied");
  setTimeout(() => button.replaceChildren(...before), 1500);
}

/** Show this in the place for notices of the page; "": nothing. */
export function notice(text) {
  $("#notice").hidden = text === "";
  if ($("#notice-text").textContent !== text) $("#notice-text").textContent = text;
}
