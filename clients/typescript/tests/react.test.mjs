// The hook, in a component that is drawn by React, against the same server.

import assert from "node:assert/strict";
import { test } from "node:test";

import { createElement } from "react";
import { act, create } from "react-test-renderer";

import { Client } from "../dist/index.js";
import { useStream } from "../dist/react.js";

globalThis.IS_REACT_ACT_ENVIRONMENT = true;
const client = new Client({ url: process.env.SERVER, key: process.env.KEY });
const LONG = { max_tokens: 900, ignore_eos: true };

async function drawn() {
  const shown = { texts: new Set() };
  function Answer() {
    shown.stream = useStream(client);
    shown.texts.add(shown.stream.text);
    return shown.stream.text;
  }
  await act(async () => {
    shown.root = create(createElement(Answer));
  });
  return shown;
}

async function until(shown, holds) {
  while (!holds(shown.stream)) await act(() => new Promise((done) => setTimeout(done, 10)));
}

test("an answer is drawn as it comes", async () => {
  const shown = await drawn();
  assert.equal(shown.stream.state, "idle");
  await act(() => shown.stream.ask("Say something.", { max_tokens: 12, ignore_eos: true, seed: 1 }));
  assert.equal(shown.stream.state, "done");
  assert(shown.stream.text);
  assert.equal(shown.root.toJSON(), shown.stream.text);
});

test("an answer that is stopped stays as it is", async () => {
  const shown = await drawn();
  let asking;
  await act(async () => {
    asking = shown.stream.ask("Count.", LONG);
  });
  await until(shown, () => shown.texts.size > 3); // piece by piece
  assert.equal(shown.stream.state, "streaming");
  await act(async () => {
    shown.stream.stop();
    await asking;
  });
  assert.equal(shown.stream.state, "stopped");
  assert(shown.stream.text);
});

test("of two questions the second is answered", async () => {
  const shown = await drawn();
  await act(async () => {
    const first = shown.stream.ask("Count.", LONG);
    await shown.stream.ask("Say something.", { max_tokens: 3, ignore_eos: true });
    await first;
  });
  assert.equal(shown.stream.state, "done");
});

test("a refusal is told, and the next question is answered", async () => {
  const shown = await drawn();
  await act(() => shown.stream.ask("x", { max_tokens: -1 }));
  assert.equal(shown.stream.state, "failed");
  assert.equal(shown.stream.error.param, "max_tokens");
  await act(() => shown.stream.ask("x", { max_tokens: 2, ignore_eos: true }));
  assert.equal(shown.stream.state, "done");
  assert.equal(shown.stream.error, null);
});

test("the answer to a component that is gone is ended", async () => {
  const shown = await drawn();
  await act(async () => {
    shown.stream.ask("Count.", LONG);
  });
  await until(shown, (stream) => stream.text);
  await act(async () => shown.root.unmount());
  while ((await client.status()).requests.length) await new Promise((done) => setTimeout(done, 20));
  assert.equal((await client.status()).recent[0].state, "left");
});
