// What keys have taken, and may take, from /usage.

import { json } from "./ask.js";
import { element, rows, tell } from "./dom.js";

const EVERY_MS = 5000, SHOWN = 500, DAY_MS = 86_400_000;

export class Usage {
  constructor(page) {
    this.at = (id) => page.getElementById(id);
    this.looked = 0;
    this.at("since").value = new Date(Date.now() - 6 * DAY_MS).toISOString().slice(0, 10);
    this.at("since").addEventListener("change", () => this.read());
  }

  async look() {
    if (performance.now() - this.looked > EVERY_MS) await this.read();
  }

  async read() {
    this.looked = performance.now();
    const since = `since=${encodeURIComponent(this.at("since").value)}`;
    this.at("csv").href = `usage?format=csv&${since}`;
    try {
      const { data, has_more, kept, quotas } = await json(`usage?limit=${SHOWN}&${since}`);
      this.at("usage-kept").hidden = !kept;
      tell(this.at("usage-told"), kept ? (has_more ? `The first ${SHOWN} are shown.` : "")
        : "This server keeps no usage: it was started without --usage.");
      rows(this.at("days"), data.map(taken), [4, 5, 6, 7]);
      this.at("quotas").replaceChildren(...quotas.map(quota));
    } catch (error) {
      tell(this.at("usage-told"), error.message);
    }
  }
}

function taken(day) {
  return [
    day.day, day.workspace || "-", day.key || "batches", day.model,
    day.requests, day.prompt_tokens, day.cached_tokens, day.generated_tokens,
  ];
}

function quota({ of, name, period, measure, limit, taken }) {
  const told = `${period} ${measure} of the ${of} ${name}: ${taken} of ${limit}`;
  const bar = element("progress", "", { "aria-label": told, max: limit, value: taken });
  const item = element("li", told);
  item.append(bar);
  return item;
}
