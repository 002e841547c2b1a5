// One question asked with Vercel's AI SDK: node ai_sdk.mjs URL MODEL PROVIDER WHAT
// Prints what came as JSON.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createMistral } from '@ai-sdk/mistral';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const [url, model, provider, what] = process.argv.slice(2);
const options = { apiKey: 'none', baseURL: `${url}/v1` };
const compatible = { name: 'maestrale', supportsStructuredOutputs: true, includeUsage: true };
const models = {
  compatible: () => createOpenAICompatible({ ...compatible, ...options })(model),
  responses: () => createOpenAI(options)(model),
  chat: () => createOpenAI(options).chat(model),
  mistral: () => createMistral(options)(model),
  anthropic: () => createAnthropic(options)(model),
};

const asked = [];
const tools = {
  get_weather: tool({
    description: 'The weather in a city.',
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return '21 degrees';
    },
  }),
};
const common = { model: models[provider](), maxRetries: 0 };
const weather = {
  ...common,
  tools,
  stopWhen: stepCountIs(3),
  prompt: 'What is the weather in Lyon?',
};
// Of Anthropic's models that it doesn't know it asks for a call of a tool of its own.
const asking = provider === 'anthropic' ? 'Call json' : 'Extract';
const person = { ...common, prompt: `${asking}: Ada is 36.` };
const output = () => Output.object({ schema: z.object({ name: z.string(), age: z.number() }) });

async function streamed(question) {
  const result = streamText({ ...question, onError: ({ error }) => { throw error; } });
  const parts = [];
  for await (const part of result.textStream) parts.push(part);
  const usage = await (result.totalUsage ?? result.usage);
  return { text: parts.join(''), parts: parts.length, usage, finish: await result.finishReason };
}

async function whole(question) {
  const { text, usage, finishReason } = await generateText(question);
  return { text, usage, finish: finishReason };
}

const whats = {
  text: () => whole({ ...common, prompt: 'Hello' }),
  stream: () => streamed({ ...common, prompt: 'Hello' }),
  tool: () => whole(weather),
  toolStream: () => streamed(weather),
  async object() {
    return { object: (await generateText({ ...person, output: output() })).output };
  },
};
console.log(JSON.stringify({ ...(await whats[what]()), asked }));
