// The request that was just sent, for a terminal or a program. Pure functions of
// {url: the server's, body: what was sent, keyed: whether a key went with it}.

export const LANGUAGES = [
  { name: "curl", language: "bash", make: curl },
  { name: "Python", language: "python", make: python },
  { name: "JavaScript", language: "javascript", make: javascript },
];
const KEY = "YOUR_KEY";

export function curl({ url, body, keyed }) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const key = keyed ? `  -H 'Authorization: Bearer ${KEY}' \\\n` : "";
  return `curl -N ${url}/v1/chat/completions \\\n${key}`
    + `  -H 'Content-Type: application/json' \\\n  -d '${json}'\n`;
}

export function python({ url, body, keyed }) {
  const fields = Object.entries(body)
    .map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`).join("");
  return `from openai import OpenAI  # pip install openai

client = OpenAI(base_url="${url}/v1", api_key="${keyed ? KEY : "none needed"}")
stream = client.chat.completions.create(
${fields})
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

export function javascript({ url, body, keyed }) {
  const key = keyed ? `    Authorization: "Bearer ${KEY}",\n` : "";
  const json = JSON.stringify(body, null, 2).replaceAll("\n", "\n  ");
  return `// As a module: Node 18 or newer, Deno, Bun, or a page that this server allows.
const response = await fetch("${url}/v1/chat/completions", {
  method: "POST",
  headers: {
${key}    "Content-Type": "application/json",
  },
  body: JSON.stringify(${json}),
});
if (!response.ok) throw new Error(await response.text());

let answer = "";
let buffer = "";
for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (buffer + part).split("\\n");
  buffer = lines.pop();
  for (const line of lines) {
    if (!line.startsWith("data: {")) continue;
    const event = JSON.parse(line.slice(6));
    if (event.error) throw new Error(event.error.message);
    answer += event.choices[0]?.delta.content ?? "";
  }
}
console.log(answer);
`;
}

/** A value as Python writes it; JSON's strings are Python's as well. */
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = `${indent}    `;
  const entries = Array.isArray(value)
    ? value.map((each) => `${inner}${literal(each, inner)},\n`)
    : Object.entries(value).map(([name, each]) => `${inner}${JSON.stringify(name)}: ${literal(each, inner)},\n`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  return entries.length ? `${open}\n${entries.join("")}${indent}${close}` : open + close;
}
