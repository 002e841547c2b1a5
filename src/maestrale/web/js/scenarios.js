// The collection's scenarios: cards on the empty page, and what follows as suggestions.
import { $, h, icon } from "./dom.js";
import { settingsOf } from "./settings.js";

const ICONS = ["chat", "book", "braces"];

/** Shows the cards; `start({title, messages, settings, followUps})` begins a conversation. */
export async function showScenarios(start) {
  const cards = $("#cards");
  try {
    const scenarios = await (await fetch("web/scenarios.json")).json();
    cards.replaceChildren(...scenarios.map((scenario, index) => card(scenario, index, start)));
  } catch {
    cards.replaceChildren(h("p", {}, "The examples could not be loaded. Reload the page to try again."));
  }
}

function card(scenario, index, start) {
  const starts = scenario.starts.flatMap((each) => {
    const button = h("button", { type: "button", class: "start" }, each.title, icon("next"));
    button.addEventListener("click", () => start(begin(each)));
    return [h("li", {}, button), ...each.follow_ups.map(({ title }) => h("li", { class: "then" }, title))];
  });
  return h("section", { class: "card" }, icon(ICONS[index] ?? "chat"), h("h3", {}, scenario.title),
    h("p", {}, scenario.text), h("ul", {}, starts));
}

function begin({ title, messages, settings, follow_ups: followUps }) {
  const system = messages[0]?.role === "system" ? messages[0].content : "";
  return {
    title,
    messages: messages.filter(({ role }) => role !== "system"),
    settings: { ...settingsOf(settings), system },
    followUps: followUps.map(({ title: name, content, settings: own }) => ({ title: name, content, settings: settingsOf(own) })),
  };
}
