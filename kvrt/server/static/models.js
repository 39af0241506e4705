// The models of the server: what has become of each, and what is to become of it.

import { post } from "./ask.js";
import { bytes, element, tell } from "./dom.js";

const ORDERS = { Load: "load", Sleep: "sleep", Unload: "unload" };
const AFTER = {
  unloaded: ["Load"],
  failed: ["Load"],
  sleeping: ["Load", "Unload"],
  loaded: ["Sleep", "Unload"],
};

export class Models {
  constructor(page) {
    this.at = (id) => page.getElementById(id);
    this.rows = new Map();
  }

  look({ model, models }) {
    const one = { name: model?.names[0], value: "loaded", bytes: model?.weight_bytes };
    const all = models ?? [one];
    tell(this.at("models-told"), models ? "" : "This server has one model, which stays.");
    for (const told of all) this.row(told.name).show(told, models !== undefined);
    for (const [name, row] of this.rows) {
      if (all.some((told) => told.name === name)) continue;
      row.element.remove();
      this.rows.delete(name);
    }
  }

  row(name) {
    if (!this.rows.has(name)) {
      const row = new Row(name, (order) => this.order(name, order));
      this.rows.set(name, row);
      this.at("all-models").append(row.element);
    }
    return this.rows.get(name);
  }

  async order(model, order) {
    tell(this.at("model-fault"), "");
    try {
      await post(`models/${order}`, { model });
    } catch (error) {
      tell(this.at("model-fault"), error.message);
    }
  }
}

class Row {
  constructor(name, order) {
    this.element = element("tr", "");
    this.cells = Array.from({ length: 5 }, () => element("td", "", { class: "number" }));
    this.state = element("td", "");
    this.buttons = Object.entries(ORDERS).map(([text, path]) => {
      const made = element("button", text, { type: "button", "aria-label": `${text} ${name}` });
      made.addEventListener("click", () => order(path));
      return made;
    });
    const last = element("td", "");
    last.append(...this.buttons);
    this.element.append(element("th", name, { scope: "row" }), this.state, ...this.cells, last);
  }

  show(told, steered) {
    const state = told.device ? `${told.value} on ${told.device}` : told.value;
    tell(this.state, told.error ? `${state}: ${told.error}` : state);
    const rate = told.requests_per_second, load = told.load_seconds;
    const numbers = [
      bytes(told.bytes),
      told.running ?? "-",
      told.waiting ?? "-",
      rate === undefined ? "-" : (rate * 60).toFixed(1),
      load === undefined || load === null ? "-" : `${load.toFixed(1)} s`,
    ];
    numbers.forEach((number, place) => tell(this.cells[place], String(number)));
    for (const button of this.buttons) {
      button.hidden = !steered || !AFTER[told.value]?.includes(button.textContent);
    }
  }
}
