// Streams, line by line: events of a chat, and answers of a batch.

import { ServerError } from "./errors.js";

interface Event {
  error?: { message: string; code?: string | null };
  choices: { delta: { content?: string | null } }[];
}

/** Texts as they come, cut at line feeds alone. */
export async function* lines(answer: Response): AsyncGenerator<string, void, undefined> {
  if (answer.body === null) return;
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = parts.pop() ?? "";
      yield* parts;
    }
  } finally {
    await reader.cancel().catch(() => undefined); // who leaves early ends the request
  }
}

/** What the events of a chat say, piece by piece. */
export async function* said(answer: Response): AsyncGenerator<string, void, undefined> {
  for await (const line of lines(answer)) {
    if (!line.startsWith("data: ")) continue;
    const data = line.slice(6);
    if (data === "[DONE]") return;
    const event = JSON.parse(data) as Event;
    if (event.error) throw new ServerError(event.error.message, 0, event.error.code ?? null);
    const text = event.choices[0]?.delta.content;
    if (text) yield text;
  }
  throw new ServerError("the server ended the answer early");
}
