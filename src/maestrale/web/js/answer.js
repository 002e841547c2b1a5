// One answer: sends the conversation so far, and reads the stream into a message.
import { call, failureOf, Failure } from "./api.js";
import { hasKey } from "./key.js";
import { fields } from "./settings.js";
import { events } from "./sse.js";

/** What is sent for the messages before `message`. */
export function requestBody(conversation, message, model) {
  const { settings, messages } = conversation;
  const before = messages.slice(0, messages.indexOf(message));
  return {
    model,
    messages: [
      ...(settings.system.trim() ? [{ role: "system", content: settings.system }] : []),
      ...before.map(({ role, content }) => ({ role, content })),
    ],
    ...fields(settings),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Runs until the answer's end; never raises. `onChange(what)` after each change of `message`:
 * "text", "paused" (the server lives, but the answer waits) or "end". */
export async function answer(message, body, signal, onChange) {
  // The messages are in the conversation; what is kept is what was sent beside them.
  const { messages, ...rest } = body;
  message.sent = { body: rest, system: messages[0]?.role === "system" ? messages[0].content : "", keyed: hasKey() };
  message.state = "running";
  const begun = performance.now();
  let first = 0;
  let last = 0;
  let usage = null;
  let complete = false;
  let finish = "";
  try {
    const response = await call("v1/chat/completions", { body, signal });
    message.seed = response.headers.get("x-seed") ?? "";
    for await (const { data, comment } of events(response.body)) {
      if (comment !== undefined) {
        message.paused = true;
        onChange("paused");
        continue;
      }
      message.paused = false;
      if (data === "[DONE]") {
        complete = true;
        break;
      }
      const event = JSON.parse(data);
      if (event.error) throw failureOf(event.error);
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      finish = choice?.finish_reason ?? finish;
      const thought = choice?.delta.reasoning_content ?? "";
      if (!choice?.delta.content && !thought && !choice?.finish_reason) continue;
      last = performance.now();
      if (!first) first = last;
      message.thought = (message.thought ?? "") + thought;
      message.content += choice.delta.content ?? "";
      onChange("text");
    }
    if (!complete) throw new Failure("The connection broke off before the answer was complete", "What came is kept. Try again for a whole answer.", { code: "cut" });
    message.state = "done";
  } catch (error) {
    if (error.name === "AbortError") message.state = "stopped";
    else {
      message.state = "failed";
      const broken = error instanceof Failure ? error
        : new Failure("The connection broke off", "What came is kept. Try again for a whole answer.", { code: "cut" });
      message.fault = { title: broken.title, detail: broken.detail, status: broken.status, code: broken.code, param: broken.param, retryAfter: broken.retryAfter };
    }
  }
  message.paused = false;
  message.figures = {
    ttft: first ? (first - begun) / 1000 : null,
    seconds: (performance.now() - begun) / 1000,
    tokens: usage?.completion_tokens ?? null,
    prompt: usage?.prompt_tokens ?? null,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? null,
    // Of the tokens after the first: the first one's time is the prompt's.
    rate: usage?.completion_tokens > 1 && last > first ? (usage.completion_tokens - 1) / ((last - first) / 1000) : null,
    finish,
  };
  onChange("end");
}
