// Batches of a client's key.

import { refusedInput, type Connection } from "./connection.js";
import { lines } from "./lines.js";
import type { Answer, Batch, BatchPage, Failure, FailurePage, File } from "./types.js";

const PAGE = 100; // of lists, so many are asked for at once
const BEGINNING = 1 << 20; // bytes of a file in which its first line ends

/** A line of a batch. */
export interface Request {
  custom_id: string;
  url: string;
  method?: "POST";
  body: Record<string, unknown>;
}

export interface Start {
  /** What all requests ask; else what the first one does. */
  endpoint?: string;
  /** How long it may take: `24h`, if it is not said. */
  window?: string;
  /** Comes back with the batch. */
  metadata?: Record<string, string>;
  /** Of this workspace's batches, those of a higher one go on first. */
  priority?: number;
  /** How the file is called. */
  name?: string;
}

export class Batches {
  constructor(private readonly connection: Connection) {}

  /** Send requests, and have them answered. */
  async start(requests: Blob | Iterable<Request>, given: Start = {}): Promise<Batch> {
    const file = requests instanceof Blob ? requests : written(requests);
    const endpoint = given.endpoint ?? (await route(file));
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file, given.name ?? ("name" in file ? String(file.name) : "requests.jsonl"));
    const sent = await this.connection.json<File>("POST", "/v1/files", form);
    return this.connection.json<Batch>("POST", "/v1/batches", {
      input_file_id: sent.id,
      endpoint,
      completion_window: given.window ?? "24h",
      ...(given.metadata && { metadata: given.metadata }),
      ...(given.priority !== undefined && { priority: given.priority }),
    });
  }

  /** As it stands. */
  get(id: string): Promise<Batch> {
    return this.connection.json("GET", path(id));
  }

  /** All, the newest first. */
  async *list(): AsyncGenerator<Batch, void, undefined> {
    for (let after = ""; ; ) {
      const page = await this.connection.json<BatchPage>("GET", `/v1/batches?limit=${PAGE}${after}`);
      yield* page.data;
      if (!page.has_more || page.last_id === null) return;
      after = `&after=${encodeURIComponent(page.last_id)}`;
    }
  }

  /** A batch as it goes on, whenever something has changed, until it is over. */
  async *watch(id: string, everyMs = 1000): AsyncGenerator<Batch, void, undefined> {
    for (let last = ""; ; ) {
      const batch = await this.get(id);
      const now = JSON.stringify(batch);
      if (now !== last) yield batch;
      if (over(batch)) return;
      last = now;
      await new Promise((done) => setTimeout(done, everyMs));
    }
  }

  /** Ask no more lines of it. */
  cancel(id: string): Promise<Batch> {
    return this.connection.json("POST", `${path(id)}/cancel`);
  }

  /** Ask lines again that have no good answer. */
  retry(id: string): Promise<Batch> {
    return this.connection.json("POST", `${path(id)}/retry`);
  }

  /** Forget a batch that is over; its files stay. */
  async delete(id: string): Promise<void> {
    await this.connection.json("DELETE", path(id));
  }

  /** Lines that have no good answer, in the order of the input. */
  async *failed(id: string): AsyncGenerator<Failure, void, undefined> {
    for (let after = ""; ; ) {
      const page = await this.connection.json<FailurePage>(
        "GET", `${path(id)}/failed?limit=${PAGE}${after}`,
      );
      yield* page.data;
      const last = page.data.at(-1);
      if (!page.has_more || last === undefined) return;
      after = `&after=${last.line}`;
    }
  }

  /** What came of each line: the good ones in the order of the input, then the others. */
  async *results(batch: Batch): AsyncGenerator<Answer, void, undefined> {
    for (const file of [batch.output_file_id, batch.error_file_id]) {
      if (file === null) continue;
      const answer = await this.connection.ask("GET", `/v1/files/${encodeURIComponent(file)}/content`);
      for await (const line of lines(answer)) yield JSON.parse(line) as Answer;
    }
  }
}

/** Nothing becomes of it any more, unless it is retried. */
export function over(batch: Batch): boolean {
  return ["completed", "failed", "expired", "cancelled"].includes(batch.status);
}

function path(id: string): string {
  return `/v1/batches/${encodeURIComponent(id)}`;
}

function written(requests: Iterable<Request>): Blob {
  return new Blob([...requests].map((each) => `${JSON.stringify({ method: "POST", ...each })}\n`));
}

/** What the first line of a file asks. */
async function route(file: Blob): Promise<string> {
  const [first] = (await file.slice(0, BEGINNING).text()).split("\n", 1);
  try {
    const { url } = JSON.parse(first ?? "") as { url?: unknown };
    if (typeof url === "string") return url;
  } catch {
    // told below
  }
  throw refusedInput("the first line is no request: it has no url");
}
