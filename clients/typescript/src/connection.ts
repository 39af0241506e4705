// How a server is asked.

import { refused, ServerError } from "./errors.js";

export interface Options {
  /** Where the server is, without `/v1`; empty: where the page comes from. */
  url?: string;
  /** As `kvrt serve --new-key` has made it, where the server asks for one. */
  key?: string;
  /** In place of the platform's. */
  fetch?: typeof fetch;
}

export class Connection {
  private readonly url: string;
  private readonly headers: Record<string, string>;
  private readonly fetch: typeof fetch;

  constructor({ url = "", key, fetch: own }: Options) {
    this.url = url.replace(/\/$/, "");
    this.headers = key === undefined ? {} : { authorization: `Bearer ${key}` };
    this.fetch = own ?? ((...given) => globalThis.fetch(...given));
  }

  /** What comes back, unless it is an error. */
  async ask(
    method: string, path: string, body?: FormData | object, signal?: AbortSignal,
  ): Promise<Response> {
    const form = body instanceof FormData;
    const json: Record<string, string> =
      body === undefined || form ? {} : { "content-type": "application/json" };
    let answer: Response;
    try {
      answer = await this.fetch(this.url + path, {
        method,
        headers: { ...this.headers, ...json },
        ...(body !== undefined && { body: form ? body : JSON.stringify(body) }),
        ...(signal && { signal }),
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ServerError(`the server gives no answer: ${String(error)}`);
    }
    if (!answer.ok) throw await refused(answer);
    return answer;
  }

  async json<T>(method: string, path: string, body?: FormData | object): Promise<T> {
    return (await (await this.ask(method, path, body)).json()) as T;
  }
}

/** Something that is not sent. */
export function refusedInput(message: string): ServerError {
  return new ServerError(message, 0, "invalid_input");
}
