// Files of requests that are answered in the background: begun, watched, cancelled, asked again.

import { ask, json, post } from "./ask.js";
import { duration, element, percent, rows, tell } from "./dom.js";

const SHOWN = 20, FAILED_SHOWN = 100;
const BEGINNING = 1 << 20; // bytes of a file in which its first line ends
const GOES_ON = ["validating", "in_progress"], ENDS = ["finalizing", "cancelling"];

export class Batches {
  constructor(page) {
    this.at = (id) => page.getElementById(id);
    this.cards = new Map();
    this.names = new Map();
    this.at("begin").addEventListener("submit", (event) => {
      event.preventDefault();
      this.attempt(() => this.begin());
    });
  }

  async look() {
    try {
      const { data } = await json(`v1/batches?limit=${SHOWN}`);
      this.at("begin").hidden = false;
      tell(this.at("batches-told"), data.length ? "" : "There are none yet.");
      await this.show(data);
    } catch (error) {
      this.at("begin").hidden = this.cards.size === 0;
      tell(this.at("batches-told"), error.message);
    }
  }

  // Do what a button says, and tell why not.
  async attempt(action) {
    tell(this.at("batch-fault"), "");
    try {
      await action();
    } catch (error) {
      tell(this.at("batch-fault"), error.message);
    }
    await this.look();
  }

  async begin() {
    const file = this.at("file").files[0];
    const endpoint = await route(file);
    this.at("start").disabled = true;
    try {
      const form = new FormData();
      form.append("purpose", "batch");
      form.append("file", file);
      const { id } = await (await ask("v1/files", { method: "POST", body: form })).json();
      const completion_window = this.at("window").value;
      await post("v1/batches", { input_file_id: id, endpoint, completion_window });
      this.at("begin").reset();
    } finally {
      this.at("start").disabled = false;
    }
  }

  async show(all) {
    await Promise.all(all.map((batch) => this.learn(batch.input_file_id)));
    const shown = new Set(all.map((batch) => batch.id));
    for (const [id, card] of this.cards) {
      if (shown.has(id)) continue;
      card.item.remove();
      this.cards.delete(id);
    }
    for (const batch of [...all].reverse()) {
      if (!this.cards.has(batch.id)) {
        const name = this.names.get(batch.input_file_id);
        const card = new Card(batch.id, name, (action) => this.attempt(action));
        this.cards.set(batch.id, card);
        this.at("all-batches").prepend(card.item);
      }
      this.cards.get(batch.id).show(batch);
    }
  }

  // What its owner calls a file.
  async learn(id) {
    if (this.names.has(id)) return;
    let name = id;
    try {
      name = (await json(`v1/files/${id}`)).filename;
    } catch {
      // it is deleted
    }
    this.names.set(id, name);
  }
}

class Card {
  constructor(id, name, attempt) {
    this.path = `v1/batches/${id}`;
    this.item = element("li", "");
    this.state = element("p", "", { role: "status", class: "hint" });
    this.bar = element("progress", "", { "aria-label": `Lines of ${name} that are answered` });
    this.told = element("p", "", { class: "hint" });
    this.cancel = button("Cancel", name, () => attempt(() => post(`${this.path}/cancel`, {})));
    this.retry = button("Retry failed lines", name, () => attempt(() => post(`${this.path}/retry`, {})));
    this.output = link("Download output", name);
    this.errors = link("Download errors", name);
    const row = element("div", "", { class: "row" });
    row.append(this.cancel, this.retry, this.output, this.errors);
    this.problems = element("ul", "");
    this.details = failedTable(name);
    this.details.addEventListener("toggle", () => this.list());
    this.item.append(
      element("h3", name), this.state, this.bar, this.told, row, this.problems, this.details,
    );
  }

  show(batch) {
    const { total, completed, failed } = batch.request_counts;
    const over = ![...GOES_ON, ...ENDS].includes(batch.status);
    const missing = over ? total - completed : failed;
    tell(this.state, batch.status.replace("_", " "));
    this.state.classList.toggle("bad", batch.status === "failed");
    this.bar.max = total || 1;
    this.bar.value = completed + failed;
    tell(this.told, this.numbers(batch));
    this.cancel.hidden = !GOES_ON.includes(batch.status);
    this.retry.hidden = !over || total === completed;
    point(this.output, batch.output_file_id);
    point(this.errors, batch.error_file_id);
    const problems = batch.errors?.data ?? [];
    this.problems.replaceChildren(
      ...problems.map((each) => element("li", `${each.line ? `line ${each.line}: ` : ""}${each.message}`)),
    );
    this.details.hidden = !missing;
    tell(this.details.firstChild, `Failed lines: ${missing}`);
    if (this.missing !== missing) {
      this.missing = missing;
      this.list();
    }
  }

  numbers({ request_counts: counts, progress, usage }) {
    const parts = [`${counts.completed} of ${counts.total} lines answered, ${counts.failed} failed`];
    if (usage.input_tokens) parts.push(`${percent(usage.input_tokens_details.cached_tokens / usage.input_tokens)} of the prompts cached`);
    if (progress?.lines) parts.push(`${progress.tokens_per_s.toFixed(1)} tokens/s`);
    if (progress?.energy_j) parts.push(`${(progress.energy_j / 3600).toFixed(2)} Wh`);
    if (progress?.cost) parts.push(`cost ${progress.cost.toFixed(4)}`);
    if (progress?.seconds_left) parts.push(`${duration(progress.seconds_left)} left`);
    return parts.join("; ");
  }

  // The failed lines, if somebody looks.
  async list() {
    if (!this.details.open || !this.missing) return;
    try {
      const { data, has_more } = await json(`${this.path}/failed?limit=${FAILED_SHOWN}`);
      rows(this.details.querySelector("tbody"), data.map(cells), [0, 2]);
      tell(this.details.lastChild, has_more ? "Others are in the file of errors." : "");
    } catch (error) {
      tell(this.details.lastChild, error.message);
    }
  }
}

function cells(failure) {
  return [failure.line, failure.custom_id ?? "-", failure.status_code ?? "-", failure.message];
}

function failedTable(name) {
  const details = element("details", "");
  const box = element("div", "", { class: "wide", tabindex: "0", role: "group", "aria-label": `Failed lines of ${name}` });
  const table = element("table", "");
  const head = element("tr", "");
  for (const [title, kind] of [["Line", "number"], ["custom_id", ""], ["Status", "number"], ["Reason", ""]]) {
    head.append(element("th", title, { scope: "col", class: kind }));
  }
  const top = element("thead", "");
  top.append(head);
  table.append(element("caption", "Lines that have no good answer"), top, element("tbody", ""));
  box.append(table);
  details.append(element("summary", ""), box, element("p", "", { class: "hint" }));
  return details;
}

function button(text, name, pressed) {
  const made = element("button", text, { type: "button", "aria-label": `${text}: ${name}` });
  made.addEventListener("click", pressed);
  return made;
}

function link(text, name) {
  return element("a", text, { download: "", "aria-label": `${text}: ${name}`, hidden: "" });
}

function point(anchor, file) {
  anchor.hidden = file === null;
  if (file !== null) anchor.href = `v1/files/${file}/content`;
}

// What the first line of a file asks; all others ask the same.
async function route(file) {
  const beginning = await file.slice(0, BEGINNING).text();
  try {
    const { url } = JSON.parse(beginning.split("\n", 1)[0]);
    if (typeof url === "string") return url;
  } catch {
    // told below
  }
  throw new Error("the first line of the file is no request: it has no url");
}
