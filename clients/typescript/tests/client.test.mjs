// The client in Node, against a real server at SERVER whose key is KEY.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, over, ServerError } from "../dist/index.js";

const client = new Client({ url: process.env.SERVER, key: process.env.KEY });

function asked(name, body = {}) {
  const usual = { model: "tiny", prompt: `say ${name}`, max_tokens: 4, temperature: 0 };
  return { custom_id: name, url: "/v1/completions", body: { ...usual, ...body } };
}

async function all(pieces) {
  const found = [];
  for await (const each of pieces) found.push(each);
  return found;
}

async function ended(id) {
  return (await all(client.batches.watch(id, 20))).at(-1);
}

test("a batch from its requests to its answers", async () => {
  const names = ["a", "b\u2028c", "d"];
  const begun = await client.batches.start(
    names.map((name) => asked(name, name === "d" ? { temperature: 7 } : {})),
    { metadata: { what: "a test" }, priority: 7, window: "1h", name: "mine.jsonl" },
  );
  assert.equal(begun.endpoint, "/v1/completions");
  const seen = await all(client.batches.watch(begun.id, 20));
  assert.deepEqual(seen.map(over), [...Array(seen.length - 1).fill(false), true]);
  const last = seen.at(-1);
  assert.deepEqual(last.request_counts, { total: 3, completed: 2, failed: 1 });
  assert.deepEqual(last.metadata, { what: "a test" });
  assert.equal(last.priority, 7);
  const answers = await all(client.batches.results(last));
  assert.deepEqual(answers.map((each) => each.custom_id), names);
  assert.deepEqual(answers.map((each) => each.response.status_code), [200, 200, 400]);
  const [failure, ...others] = await all(client.batches.failed(last.id));
  assert.deepEqual([failure.line, failure.custom_id, failure.param, others.length], [3, "d", "temperature", 0]);
  await client.batches.retry(last.id);
  assert.equal((await ended(last.id)).status, "completed");
  assert((await all(client.batches.list())).some((each) => each.id === last.id));
  await client.batches.delete(last.id);
  await assert.rejects(client.batches.get(last.id), (error) => error.status === 404 && error.param === "id");
});

test("a file of requests, cancelled", async () => {
  const lines = Array.from({ length: 150 }, (_, n) => asked(`${n}`, { max_tokens: 900, ignore_eos: true }));
  const file = new Blob(lines.map((each) => `${JSON.stringify({ method: "POST", ...each })}\n`));
  const { id } = await client.batches.start(file);
  await client.batches.cancel(id);
  const last = await ended(id);
  assert.equal(last.status, "cancelled");
  assert.equal((await all(client.batches.results(last))).length, 150);
  const failed = await all(client.batches.failed(id));
  assert(failed.length > 100, "several pages");
  assert.equal(failed[0].code, "batch_cancelled");
  await assert.rejects(client.batches.start(new Blob(["x"])), ServerError);
});

test("a chat, whole and left early", async () => {
  const fields = { max_tokens: 12, ignore_eos: true, seed: 1 };
  const pieces = await all(client.chat("Say something.", fields));
  assert(pieces.length > 3);
  const again = client.chat([{ role: "user", content: "Say something." }], { ...fields, model: "tiny" });
  assert.equal((await all(again)).join(""), pieces.join(""));
  for await (const piece of client.chat("x", { max_tokens: 900, ignore_eos: true })) {
    assert(piece);
    break;
  }
  while ((await client.status()).requests.length) await new Promise((done) => setTimeout(done, 20));
  assert.equal((await client.status()).recent[0].state, "left");
  await assert.rejects(all(client.chat("x", { max_tokens: -1 })), (error) => error.param === "max_tokens");
});

test("models, the status, and what is wrong", async () => {
  const profile = await client.profile({ seconds: 0.01 });
  assert.deepEqual([typeof profile.steps, typeof profile.trace], ["number", "object"]);
  await assert.rejects(client.endProfile(), (error) => error.status === 404);
  const [model] = await client.models();
  assert.equal(model.id, "tiny");
  assert.equal((await client.status()).server.state, "ready");
  const usage = await client.usage({ since: "2020-01-01", until: "2020-01-02" });
  assert.deepEqual([usage.data, usage.kept], [[], false]);
  await assert.rejects(client.usage({ since: "soon" }), (error) => error.param === "since");
  const stranger = new Client({ url: process.env.SERVER, key: "wrong" });
  await assert.rejects(stranger.status(), (error) => error.status === 401 && error.code === "invalid_api_key");
  const nowhere = new Client({ url: "http://127.0.0.1:9" });
  await assert.rejects(nowhere.status(), (error) => error instanceof ServerError && error.status === 0);
});
