// Texts embedded or ranked with a client on npm: node embedding.mjs URL MODEL CLIENT
// Prints what came as JSON.
import { createCohere } from '@ai-sdk/cohere';
import { createMistral } from '@ai-sdk/mistral';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Mistral } from '@mistralai/mistralai';
import { embed, embedMany, rerank } from 'ai';
import OpenAI from 'openai';

const [url, model, client] = process.argv.slice(2);
const texts = ['The sea.', 'A lighthouse.', 'Bread.'];
const options = { apiKey: 'none', baseURL: `${url}/v1` };

async function withAiSdk(provider) {
  const common = { model: provider.embeddingModel(model), maxRetries: 0 };
  const one = await embed({ ...common, value: texts[0] });
  const many = await embedMany({ ...common, values: texts });
  return { one: one.embedding, many: many.embeddings, tokens: many.usage.tokens };
}

async function withOpenAi() {
  const { embeddings } = new OpenAI({ ...options, maxRetries: 0 });
  const one = await embeddings.create({ model, input: texts[0] }); // asks for base64
  const many = await embeddings.create({ model, input: texts, encoding_format: 'float' });
  const { prompt_tokens: tokens } = many.usage;
  return { one: one.data[0].embedding, many: many.data.map((each) => each.embedding), tokens };
}

async function withMistral() {
  const { embeddings } = new Mistral({ serverURL: url, apiKey: 'none' });
  const one = await embeddings.create({ model, inputs: texts[0] });
  const many = await embeddings.create({ model, inputs: texts });
  const { promptTokens: tokens } = many.usage;
  return { one: one.data[0].embedding, many: many.data.map((each) => each.embedding), tokens };
}

async function ranked() {
  const provider = createCohere({ apiKey: 'none', baseURL: `${url}/v2` });
  const asked = { model: provider.reranking(model), query: 'What burns?', topN: 2 };
  const { ranking } = await rerank({ ...asked, documents: texts, maxRetries: 0 });
  return { ranking };
}

const clients = {
  openai: withOpenAi,
  mistral: withMistral,
  'AI SDK, openai': () => withAiSdk(createOpenAI(options)),
  'AI SDK, compatible': () => withAiSdk(createOpenAICompatible({ name: 'maestrale', ...options })),
  'AI SDK, mistral': () => withAiSdk(createMistral(options)),
  'AI SDK, cohere': ranked,
};
console.log(JSON.stringify(await clients[client]()));
