// A stream in a component.

import { useCallback, useEffect, useRef, useState } from "react";

import type { Asked, Client, Message } from "./client.js";

export interface Streamed {
  /** What was said so far. */
  text: string;
  /** `stopped`: by `stop`, by another question, or because the component is gone. */
  state: "idle" | "streaming" | "done" | "stopped" | "failed";
  /** Why it failed. */
  error: Error | null;
}

export interface Stream extends Streamed {
  /** Ask; what was asked before is stopped. */
  ask(messages: string | readonly Message[], asked?: Asked): Promise<void>;
  /** End the answer. */
  stop(): void;
}

const IDLE: Streamed = { text: "", state: "idle", error: null };

/** An answer as it comes: the component is drawn again with each piece. */
export function useStream(client: Client): Stream {
  const [streamed, set] = useState(IDLE);
  const now = useRef<AbortController | null>(null);

  const stop = useCallback(() => now.current?.abort(), []);
  useEffect(() => stop, [stop]);

  const ask = useCallback(
    async (messages: string | readonly Message[], asked: Asked = {}) => {
      stop();
      const own = (now.current = new AbortController());
      const show = (change: Partial<Streamed>): void => {
        if (now.current === own) set((last) => ({ ...last, ...change }));
      };
      show({ ...IDLE, state: "streaming" });
      try {
        for await (const piece of client.chat(messages, { ...asked, signal: own.signal })) {
          if (own.signal.aborted) break;
          if (now.current === own) set((last) => ({ ...last, text: last.text + piece }));
        }
        show({ state: own.signal.aborted ? "stopped" : "done" });
      } catch (error) {
        if (own.signal.aborted) show({ state: "stopped" });
        else show({ state: "failed", error: error as Error });
      }
    },
    [client, stop],
  );
  return { ...streamed, ask, stop };
}
