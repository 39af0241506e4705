// The official JavaScript clients, unmodified, against a server whose model says what speaker.py has.
// Runs beside a node_modules that has them: SERVER=http://127.0.0.1:PORT node javascript.mjs

import { deepStrictEqual as same, ok, rejects, strictEqual as equal } from "node:assert";
import { test } from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import Anthropic from "@anthropic-ai/sdk";
import { generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";
import { z } from "zod";

const { SERVER: server, PLAIN, SUNNY } = process.env;
const model = "speaker";
const openai = new OpenAI({ baseURL: `${server}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: server, apiKey: "none", maxRetries: 0 });
const ollama = new Ollama({ host: server });
const providers = {
  "openai-compatible": createOpenAICompatible({ name: "kvrt", baseURL: `${server}/v1`,
    includeUsage: true, supportsStructuredOutputs: true })(model),
  "openai, chats": createOpenAI({ baseURL: `${server}/v1`, apiKey: "none" }).chat(model),
  "openai, responses": createOpenAI({ baseURL: `${server}/v1`, apiKey: "none" })(model),
  anthropic: createAnthropic({ baseURL: `${server}/v1`, apiKey: "none" })(model),
};
const messages = [{ role: "user", content: "What is there?" }];
const schema = { type: "object", properties: { location: { type: "string" } }, required: ["location"] };
const described = { name: "get_weather", description: "The weather at a place." };
const tools = [{ type: "function", function: { ...described, parameters: schema } }];
const moods = { type: "object", properties: { mood: { enum: ["glad"] } }, required: ["mood"],
  additionalProperties: false };  // unlike what the model would say
const glad = { mood: "glad" };

async function joined(stream, piece) {
  let text = "";
  for await (const each of stream) text += piece(each) ?? "";
  return text;
}

test("openai lists models and tells a bad request", async () => {
  const found = [];
  for await (const each of openai.models.list()) found.push(each.id);
  ok(found.includes(model));
  equal((await openai.models.retrieve(model)).id, model);
  await rejects(openai.chat.completions.create({ model, messages: [] }), OpenAI.BadRequestError);
});

test("openai has a chat, whole and as a stream", async () => {
  const whole = await openai.chat.completions.create({ model, messages });
  equal(whole.choices[0].message.content, PLAIN);
  const options = { model, messages, stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  for await (const chunk of await openai.chat.completions.create(options)) chunks.push(chunk);
  equal(chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join(""), PLAIN);
  equal(chunks.at(-1).usage.completion_tokens, whole.usage.completion_tokens);
});

test("openai parses what is held to a schema", async () => {
  const json_schema = { name: "mood", schema: moods, strict: true };
  const asked = { model, messages, response_format: { type: "json_schema", json_schema } };
  same(JSON.parse((await openai.chat.completions.create(asked)).choices[0].message.content), glad);
  same(JSON.parse(await openai.chat.completions.stream(asked).finalContent()), glad);
  const format = { type: "json_schema", ...json_schema };
  const parsed = await openai.responses.parse({ model, input: "What?", text: { format } });
  same(JSON.parse(parsed.output_text), glad);
});

test("openai runs tools until there are words", async () => {
  const run = (stream) => openai.chat.completions.runTools({ model, messages, stream,
    tools: [{ type: "function", function: { ...described, parameters: schema, parse: JSON.parse,
      function: ({ location }) => `Sunny in ${location}` } }] });
  equal(await run(false).finalContent(), SUNNY);
  equal(await run(true).finalContent(), SUNNY);
});

test("openai has responses, whole, as a stream and with a call", async () => {
  equal((await openai.responses.create({ model, input: "What?" })).output_text, PLAIN);
  const stream = openai.responses.stream({ model, input: "What?" });
  const said = await joined(stream, (e) => (e.type === "response.output_text.delta" ? e.delta : ""));
  equal(said, PLAIN);
  equal((await stream.finalResponse()).output_text, PLAIN);
  const called = await openai.responses.create({ model, input: "What?",
    tools: [{ type: "function", strict: false, ...described, parameters: schema }] });
  same(JSON.parse(called.output.find((item) => item.type === "function_call").arguments), { location: "Oslo" });
});

test("openai has completions and counts of them", async () => {
  const answer = await openai.completions.create({ model, prompt: "aP", max_tokens: 4, logprobs: 1, echo: true });
  equal(answer.usage.completion_tokens, 4);
  equal(answer.choices[0].logprobs.tokens.join(""), answer.choices[0].text);
});

test("openai's stream can be left", async () => {
  const stream = await openai.completions.create({ model, prompt: "P", stream: true, max_tokens: 900, });
  for await (const _ of stream) break;
  const controller = new AbortController();
  const asked = openai.chat.completions.create({ model, messages }, { signal: controller.signal });
  controller.abort();
  await rejects(asked, OpenAI.APIUserAbortError);
});

test("anthropic has messages, whole, as a stream and counted", async () => {
  const asked = { model, max_tokens: 400, messages };
  const whole = await anthropic.messages.create(asked);
  equal(whole.content[0].text, PLAIN);
  equal(whole.stop_reason, "end_turn");
  const stream = anthropic.messages.stream(asked);
  equal(await stream.finalText(), PLAIN);
  const counted = await anthropic.messages.countTokens({ model, messages });
  equal(counted.input_tokens, whole.usage.input_tokens + whole.usage.cache_read_input_tokens);
  const listed = [];
  for await (const each of anthropic.models.list()) listed.push(each.id);
  ok(listed.includes(model));
  await rejects(anthropic.messages.create({ ...asked, max_tokens: -1 }), Anthropic.BadRequestError);
});

test("anthropic calls tools and thinks", async () => {
  const asked = { model, max_tokens: 400, messages, tools: [{ ...described, input_schema: schema }] };
  const { content, stop_reason } = await anthropic.messages.stream(asked).finalMessage();
  equal(stop_reason, "tool_use");
  same(content[0].input, { location: "Oslo" });
  const result = { type: "tool_result", tool_use_id: content[0].id, content: "Sunny" };
  const next = [...messages, { role: "assistant", content }, { role: "user", content: [result] }];
  equal((await anthropic.messages.create({ ...asked, messages: next })).content[0].text, SUNNY);
  const thinking = await anthropic.messages.create({ model, max_tokens: 2048,
    thinking: { type: "enabled", budget_tokens: 1024 }, messages: [{ role: "user", content: "Think!" }] });
  same(thinking.content.map((block) => block.type), ["thinking", "text"]);
});

test("anthropic parses what is held to a schema", async () => {
  const format = { type: "json_schema", schema: moods };
  const asked = { model, max_tokens: 400, messages, output_config: { format } };
  same(JSON.parse((await anthropic.messages.create(asked)).content[0].text), glad);
  same(JSON.parse(await anthropic.messages.stream(asked).finalText()), glad);
});

test("ollama lists, shows, chats and generates", async () => {
  ok((await ollama.list()).models.some((each) => each.name.startsWith(model)));
  ok((await ollama.show({ model })).capabilities.includes("completion"));
  ok((await ollama.ps()).models.length === 1);
  ok((await ollama.version()).version);
  equal((await ollama.chat({ model, messages })).message.content, PLAIN);
  equal(await joined(await ollama.chat({ model, messages, stream: true }), (p) => p.message.content), PLAIN);
  equal((await ollama.generate({ model, prompt: "What?" })).response, PLAIN);
  const called = await ollama.chat({ model, messages, tools });
  same(called.message.tool_calls[0].function.arguments, { location: "Oslo" });
  same(JSON.parse((await ollama.chat({ model, messages, format: moods })).message.content), glad);
  await rejects(ollama.chat({ model, messages, options: { temperature: -1 } }), { status_code: 400 });
});

test("ollama's stream can be left", async () => {
  const stream = await ollama.chat({ model, messages, stream: true });
  for await (const _ of stream) { stream.abort(); break; }
});

for (const [name, provider] of Object.entries(providers)) {
  test(`the AI SDK generates and streams text through ${name}`, async () => {
    equal((await generateText({ model: provider, prompt: "What?" })).text, PLAIN);
    const stream = streamText({ model: provider, prompt: "What?", onError: ({ error }) => { throw error; } });
    equal(await joined(stream.textStream, (text) => text), PLAIN);
    ok((await stream.usage).outputTokens > 0);
    equal(await stream.finishReason, "stop");
  });

  test(`the AI SDK calls tools through ${name}`, async () => {
    const asked = { model: provider, prompt: "What?", stopWhen: stepCountIs(3), tools: {
      get_weather: tool({ description: "The weather.", inputSchema: z.object({ location: z.string() }),
        execute: async ({ location }) => `Sunny in ${location}` }) } };
    equal((await generateText(asked)).text, SUNNY);
    equal(await joined(streamText(asked).textStream, (text) => text), SUNNY);
  });

  test(`the AI SDK generates an object through ${name}`, async () => {
    const asked = { model: provider, prompt: "What?", schema: z.object({ mood: z.enum(["glad"]) }) };
    same((await generateObject(asked)).object, glad);
  });
}
