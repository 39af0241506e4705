// A server, as one key sees it.

import { Batches } from "./batches.js";
import { Connection, type Options } from "./connection.js";
import { lines, said } from "./lines.js";
import type { Model, ModelEvent, Models, Ordered, Status, Usage } from "./types.js";

export interface Message {
  role: string;
  content: string;
}

/** Of a chat: `model`, or the first there is; `signal` ends it; others as of chat completions. */
export interface Asked {
  model?: string;
  signal?: AbortSignal;
  [field: string]: unknown;
}

export class Client {
  readonly batches: Batches;
  private readonly connection: Connection;

  constructor(options: Options = {}) {
    this.connection = new Connection(options);
    this.batches = new Batches(this.connection);
  }

  /** How the server does right now. */
  status(): Promise<Status> {
    return this.connection.json("GET", "/status");
  }

  /** What requests may name. */
  async models(): Promise<readonly Model[]> {
    return (await this.connection.json<Models>("GET", "/v1/models")).data;
  }

  /** Have a model loaded, in a server of several. It is begun when this is done. */
  load(model: string): Promise<Model> {
    return this.order("load", model);
  }

  /** As `load`, of one that sleeps. */
  wake(model: string): Promise<Model> {
    return this.order("wake", model);
  }

  /** Let it give its memory back, once its requests have ended. */
  sleep(model: string): Promise<Model> {
    return this.order("sleep", model);
  }

  /** Likewise, and all else. */
  unload(model: string): Promise<Model> {
    return this.order("unload", model);
  }

  private async order(order: string, model: string): Promise<Model> {
    return (await this.connection.json<Ordered>("POST", `/models/${order}`, { model })).model;
  }

  /** Where each model stands, and from then on each change, until the loop is left. */
  async *events(signal?: AbortSignal): AsyncGenerator<ModelEvent, void, undefined> {
    const answer = await this.connection.ask("GET", "/models/sse", undefined, signal);
    for await (const line of lines(answer)) {
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6)) as ModelEvent;
    }
  }

  /** What was taken, and what may be; days are of UTC, such as `2026-11-01`. */
  usage(wanted: { since?: string; until?: string; workspace?: string } = {}): Promise<Usage> {
    return this.connection.json("GET", `/usage?${new URLSearchParams(wanted)}`);
  }

  /** What the engine does in the seconds to come (5; at most 60), for admins. */
  profile(wanted: { seconds?: number; model?: string } = {}): Promise<Record<string, unknown>> {
    return this.connection.json("POST", "/profile", wanted);
  }

  /** Let the profile that is being made come now. */
  async endProfile(): Promise<void> {
    await this.connection.json("DELETE", "/profile");
  }

  /** What the model says, piece by piece. Who leaves the loop ends the answer. */
  async *chat(
    messages: string | readonly Message[], { model, signal, ...fields }: Asked = {},
  ): AsyncGenerator<string, void, undefined> {
    const name = model ?? (await this.models())[0]?.id;
    const all = typeof messages === "string" ? [{ role: "user", content: messages }] : messages;
    const body = { ...fields, model: name, messages: all, stream: true };
    yield* said(await this.connection.ask("POST", "/v1/chat/completions", body, signal));
  }
}
