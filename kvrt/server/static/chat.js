// A conversation with the model, by /v1/chat/completions as a stream.

import { ask } from "./ask.js";

export class Chat {
  // Takes the elements of the page by their ids.
  constructor(page) {
    this.at = (id) => page.getElementById(id);
    this.messages = [];
    this.answering = null;
    this.at("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.at("say").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.at("ask").requestSubmit();
      }
    });
    page.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stop();
    });
    this.at("stop").addEventListener("click", () => this.stop());
    this.at("clear").addEventListener("click", () => this.clear());
  }

  // Models to choose from; the one that is chosen stays.
  offer(names) {
    const list = this.at("which");
    if (names.join() === [...list.options].map((each) => each.value).join()) return;
    const chosen = list.value;
    list.replaceChildren(...names.map((name) => new Option(name)));
    if (names.includes(chosen)) list.value = chosen;
  }

  stop() {
    this.answering?.abort();
  }

  clear() {
    this.stop();
    this.messages = [];
    this.at("said").replaceChildren();
    this.at("fault").textContent = "";
    this.at("say").focus();
  }

  async send() {
    const text = this.at("say").value;
    if (this.answering || !this.at("which").value || !text.trim()) return;
    this.at("say").value = "";
    this.at("fault").textContent = "";
    this.messages.push({ role: "user", content: text });
    this.add("user", text);
    const shown = this.add("assistant", "");
    const begun = performance.now();
    const told = { text: "", first: null, usage: null };
    this.begin();
    try {
      await this.stream(told, shown, begun);
    } catch (error) {
      if (error.name !== "AbortError") this.at("fault").textContent = error.message;
    }
    this.end(told, shown, begun);
  }

  begin() {
    this.answering = new AbortController();
    this.at("send").disabled = true;
    this.at("stop").disabled = false;
    this.at("said").setAttribute("aria-busy", "true"); // read out as a whole, when it has ended
  }

  end(told, shown, begun) {
    this.answering = null;
    this.at("send").disabled = false;
    this.at("stop").disabled = true;
    if (told.text) {
      this.messages.push({ role: "assistant", content: told.text });
      this.note(told, shown, begun);
    } else {
      shown.remove();
    }
    this.at("said").setAttribute("aria-busy", "false");
  }

  note(told, shown, begun) {
    const parts = [];
    if (told.first !== null) parts.push(`first token after ${Math.round(told.first)} ms`);
    const seconds = (performance.now() - begun - told.first) / 1000;
    const tokens = told.usage?.completion_tokens;
    if (tokens > 1) parts.push(`${tokens} tokens, ${((tokens - 1) / seconds).toFixed(1)} a second`);
    const cached = told.usage?.prompt_tokens_details?.cached_tokens;
    if (cached) parts.push(`${cached} of ${told.usage.prompt_tokens} prompt tokens cached`);
    const note = document.createElement("small");
    note.textContent = parts.join("; ");
    shown.append(note);
    this.at("said").scrollTop = this.at("said").scrollHeight;
  }

  async stream(told, shown, begun) {
    const answer = await ask("v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(this.request()),
      signal: this.answering.signal,
    });
    const said = shown.querySelector("span");
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      told.usage = piece.usage ?? told.usage;
      const text = piece.choices[0]?.delta.content ?? "";
      if (!text) continue;
      told.first ??= performance.now() - begun;
      told.text += text;
      said.append(text);
      this.at("said").scrollTop = this.at("said").scrollHeight;
    }
    throw new Error("the server ended the answer early");
  }

  request() {
    const system = this.at("system").value.trim();
    const first = system ? [{ role: "system", content: system }] : [];
    const request = {
      model: this.at("which").value,
      messages: [...first, ...this.messages],
      stream: true,
      stream_options: { include_usage: true },
    };
    for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
      const value = this.at(name).valueAsNumber;
      if (!Number.isNaN(value)) request[name] = value;
    }
    return request;
  }

  add(role, text) {
    const item = document.createElement("li");
    item.className = role;
    const who = document.createElement("b");
    who.textContent = role === "user" ? "You" : "Model";
    const said = document.createElement("span");
    said.textContent = text; // never markup: a model may say anything
    item.append(who, said);
    this.at("said").append(item);
    this.at("said").scrollTop = this.at("said").scrollHeight;
    return item;
  }
}

// The data of server-sent events, as they come; comments are passed over.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((each) => each.startsWith("data: "));
      if (line) yield line.slice(6);
    }
  }
}
