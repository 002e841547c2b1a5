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

const RESUME_SECONDS = 120; // for which a server that is gone may come again
const RESUME_PAUSE = 500; // milliseconds between two attempts
// What may be over when one asks again: no connection, and a server that ends or begins.
const PASSING = ["unreachable", "cut", "starting", "draining", "engine_died", "unavailable"];

const cutOff = () => new Failure("The connection broke off before the answer was complete", "What came is kept. Try again for a whole answer.", { code: "cut" });

function pause(signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, RESUME_PAUSE);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

/** The events of one answer, over as many connections as it takes: where the server keeps its
    streams, a lost one is gone on with. `onHead` gets each response, `onLost` is told of a pause.
    Raises: Failure, AbortError. */
async function* allEvents(body, signal, { onHead, onLost }) {
  let stream = "";
  let last = "";
  let lost = 0; // since when nothing came
  try {
    for (;;) {
      try {
        const response = stream
          ? await call(`v1/streams/${stream}`, { signal, headers: last ? { "last-event-id": last } : {} })
          : await call("v1/chat/completions", { body, signal });
        if (response.status === 204) return;
        stream = response.headers.get("x-stream-id") ?? stream;
        onHead(response);
        for await (const event of events(response.body)) {
          if (event.comment !== undefined) {
            yield event;
            continue;
          }
          const done = event.data === "[DONE]";
          const told = done ? null : JSON.parse(event.data);
          if (told?.error) throw failureOf(told.error);
          last = event.id;
          lost = 0;
          if (done) stream = "";
          yield { told, done };
          if (done) return;
        }
        throw cutOff();
      } catch (error) {
        if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
        const failure = error instanceof Failure ? error : cutOff();
        lost ||= performance.now();
        if (!stream || !PASSING.includes(failure.code) || performance.now() - lost > RESUME_SECONDS * 1000) throw failure;
        onLost();
        await pause(signal);
      }
    }
  } finally {
    // Left before its end: the server needn't make the rest, nor keep the question.
    if (stream) call(`v1/streams/${stream}`, { method: "DELETE" }).catch(() => {});
  }
}

/** Runs until the answer's end; never raises. `onChange(what)` after each change of `message`:
 * "text", "paused" (the server lives, but the answer waits), "lost" (it is gone, and is asked again)
 * or "end". */
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
    const hooks = {
      onHead: (response) => { message.seed = response.headers.get("x-seed") ?? message.seed ?? ""; },
      onLost: () => {
        message.paused = true;
        message.pausedText = "The connection is lost. The answer goes on by itself where it was.";
        onChange("lost");
      },
    };
    for await (const { told: event, done, comment } of allEvents(body, signal, hooks)) {
      if (comment !== undefined) {
        message.paused = true;
        onChange("paused");
        continue;
      }
      message.paused = false;
      if (done) {
        complete = true;
        break;
      }
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
    if (!complete) throw cutOff();
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
