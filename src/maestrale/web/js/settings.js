// The panel with the conversation's settings.
import { $ } from "./dom.js";
import { DEFAULTS } from "./store.js";

const EXAMPLE = {
  type: "object",
  properties: { title: { type: "string" }, year: { type: "integer" } },
  required: ["title", "year"],
  additionalProperties: false,
};
const form = () => $("#settings-form");
let changed = () => {};

/** Calls `onChange(settings)` after each change by the reader. */
export function wireSettings(onChange) {
  changed = onChange;
  form().addEventListener("input", () => {
    if (format() === "json_schema" && !$("#schema").value.trim()) {
      $("#schema").value = JSON.stringify(EXAMPLE, null, 2);
    }
    const settings = read();
    reflect(settings);
    changed(settings);
  });
  form().addEventListener("submit", (event) => event.preventDefault());
  $("#settings-reset").addEventListener("click", () => { show(DEFAULTS); changed(read()); });
}

export function show(settings) {
  $("#system").value = settings.system;
  $("#temperature").value = settings.temperature;
  $("#max-tokens").value = settings.max_tokens ?? "";
  $("#seed").value = settings.seed ?? "";
  $("#schema").value = settings.schema;
  $(`#settings-form [name="format"][value="${settings.format}"]`).checked = true;
  reflect(settings);
}

function format() {
  return $('#settings-form [name="format"]:checked').value;
}

function read() {
  const number = (id) => ($(id).value === "" ? null : $(id).valueAsNumber);
  return {
    system: $("#system").value,
    temperature: $("#temperature").valueAsNumber,
    max_tokens: number("#max-tokens"),
    seed: number("#seed"),
    format: format(),
    schema: $("#schema").value,
  };
}

function reflect(settings) {
  $("#temperature-shown").textContent = String(settings.temperature);
  $("#schema-field").hidden = settings.format !== "json_schema";
  fault("#schema", settings.format === "json_schema" ? schemaFault(settings.schema) : "");
  fault("#max-tokens", wholeFault(settings.max_tokens, 1));
  fault("#seed", wholeFault(settings.seed, 0));
  $("#summary").textContent = summary(settings);
}

function fault(id, text) {
  $(id).setAttribute("aria-invalid", text !== "");
  $(`${id}-fault`).textContent = text;
}

function wholeFault(value, least) {
  if (value === null || (Number.isSafeInteger(value) && value >= least)) return "";
  return `A whole number from ${least} on, or nothing.`;
}

function schemaFault(text) {
  try {
    const schema = JSON.parse(text);
    if (schema && typeof schema === "object" && !Array.isArray(schema)) return "";
    return "A JSON schema is an object: { … }.";
  } catch (error) {
    return `This is no JSON yet: ${error.message}`;
  }
}

/** The first thing that keeps these settings from being sent, and the field to look at. */
export function faultOf(settings) {
  if (settings.format === "json_schema" && schemaFault(settings.schema)) {
    return { text: "The schema is not valid JSON.", field: "#schema" };
  }
  if (wholeFault(settings.max_tokens, 1)) return { text: "'Max tokens' must be a whole number.", field: "#max-tokens" };
  if (wholeFault(settings.seed, 0)) return { text: "The seed must be a whole number.", field: "#seed" };
  return null;
}

/** The settings as the API's fields. */
export function fields(settings) {
  const body = { temperature: settings.temperature };
  if (settings.max_tokens !== null) body.max_tokens = settings.max_tokens;
  if (settings.seed !== null) body.seed = settings.seed;
  if (settings.format === "json_object") body.response_format = { type: "json_object" };
  if (settings.format === "json_schema") {
    const schema = JSON.parse(settings.schema);
    const name = (schema.title ?? "answer").replace(/[^\w-]+/g, "_").slice(0, 64) || "answer";
    body.response_format = { type: "json_schema", json_schema: { name, strict: true, schema } };
  }
  return body;
}

/** The API's fields, as a scenario has them, as settings. */
export function settingsOf({ temperature, max_tokens, seed, response_format: wanted }) {
  const settings = { format: wanted?.type ?? "text" };
  if (temperature !== undefined) settings.temperature = temperature;
  if (max_tokens !== undefined) settings.max_tokens = max_tokens;
  if (seed !== undefined) settings.seed = seed;
  if (wanted?.json_schema) settings.schema = JSON.stringify(wanted.json_schema.schema, null, 2);
  return settings;
}

const FORMATS = { json_object: "JSON", json_schema: "JSON by schema" };

function summary(settings) {
  return [
    `temperature ${settings.temperature}`,
    settings.max_tokens !== null && `at most ${settings.max_tokens} tokens`,
    settings.seed !== null && `seed ${settings.seed}`,
    FORMATS[settings.format],
    settings.system.trim() && "system prompt",
  ].filter(Boolean).join(" · ");
}
