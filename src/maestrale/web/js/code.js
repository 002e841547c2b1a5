// The dialog that shows a request as curl, Python or JavaScript.
import { $, h } from "./dom.js";
import { codeBlock } from "./markdown.js";
import { LANGUAGES } from "./snippets.js";

/** `request` is what snippets.js takes. */
export function showCode(request) {
  const dialog = $("#code-dialog");
  const tabs = LANGUAGES.map(({ name }, index) => h("button", {
    type: "button", class: "button small", role: "tab", id: `tab-${index}`, "aria-controls": "snippet",
  }, name));
  const select = (index, focus) => {
    tabs.forEach((tab, each) => {
      tab.setAttribute("aria-selected", String(each === index));
      tab.tabIndex = each === index ? 0 : -1;
    });
    if (focus) tabs[index].focus();
    const { name, language, make } = LANGUAGES[index];
    $("#snippet").setAttribute("aria-labelledby", tabs[index].id);
    $("#snippet").replaceChildren(codeBlock(make(request), language, { label: name }));
  };
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => select(index));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) select((index + step + tabs.length) % tabs.length, true);
    });
  });
  $("#code-tabs").replaceChildren(...tabs);
  $("#code-key").hidden = !request.keyed;
  select(0);
  dialog.showModal();
}

export function wireCode() {
  $("#code-close").addEventListener("click", () => $("#code-dialog").close());
}
