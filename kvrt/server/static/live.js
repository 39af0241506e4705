// How the server does: its requests, its memory, its model, from /status.

import { bytes, element, percent, rows, tell } from "./dom.js";

export function show(page, status) {
  const at = (id) => page.getElementById(id);
  const { server, model, memory } = status;
  state(at("state"), server.state, server.state !== "ready");
  const name = model?.names[0] ?? "";
  at("name").textContent = name;
  at("version").textContent = server.version;
  page.title = name ? `${name} - kvrt` : "kvrt";
  at("load").textContent =
    `${server.running} sequences run, ${server.waiting} wait; ` +
    `${server.taken} of ${server.places} places are taken.`;
  rows(at("flights"), [...status.requests, ...status.recent].map(flight), [4, 5, 6, 7, 8]);
  at("memory").hidden = at("model").hidden = model === null; // none is loaded
  if (model === null) return;
  at("held").textContent =
    `${percent(memory.usage)} of ${bytes(memory.limit_bytes)} in use; ` +
    `${bytes(memory.mapped_bytes)} mapped, ${bytes(memory.spare_bytes)} of all spare.`;
  groups(at("groups"), memory.groups);
  legend(at("owners"), memory.groups[0]?.owners ?? []);
  rows(at("places"), places(memory), [1, 2, 3]);
  facts(at("facts"), model);
}

export function lost(page) {
  state(page.getElementById("state"), "no answer from the server", true);
}

function state(line, text, bad) {
  tell(line, text);
  line.classList.toggle("bad", bad);
}

function flight(request) {
  const first = request.first_token_seconds;
  const rate = request.tokens_per_second;
  return [
    request.id.slice(-6),
    request.route.replace(/^\/v1/, ""),
    request.key || "-",
    request.state,
    request.prompt_tokens,
    request.generated_tokens,
    first === null ? "-" : `${Math.round(first * 1000)} ms`,
    rate === null ? "-" : rate.toFixed(1),
    request.seconds.toFixed(1),
  ];
}

function places(memory) {
  const device = [
    ["used", memory.used_pages, null, null],
    ["cached", memory.cached_pages, memory.cached_bytes, null],
    ["free", memory.free_pages, null, null],
    ["device, in all", null, memory.mapped_bytes + memory.pooled_bytes, memory.limit_bytes],
  ];
  const tiers = memory.tiers.map((tier) => [tier.name, tier.pages, tier.used_bytes, tier.limit_bytes]);
  return [...device, ...tiers].map(([name, pages, held, limit]) => [
    name,
    pages ?? "-",
    held === null ? "-" : bytes(held),
    limit === null ? "-" : bytes(limit),
  ]);
}

function facts(list, model) {
  const told = {
    Names: model.names.join(", "),
    Architecture: `${model.architecture}, ${model.layers} layers`,
    Weights: `${bytes(model.weight_bytes)}, ${model.dtype}`,
    Context: `${model.context} tokens`,
    Device: `${model.device} (${model.backend})`,
    Chats: model.chats ? "by its chat template" : "no chat template: see --chat-template",
  };
  list.replaceChildren(
    ...Object.entries(told).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
}

// Of several workspaces: how many pages each has.
function whose(owners) {
  if (owners.length < 2) return "";
  return ` (${owners.map((own) => `${own.owner || "no key"} ${own.used}`).join(", ")})`;
}

// Their colours, as a legend.
function legend(list, owners) {
  const told = owners.length > 1 ? owners.map((own) => own.owner || "no key") : [];
  if (told.join() === [...list.children].map((each) => each.textContent).join()) return;
  list.replaceChildren(...told.map((name, place) => element("li", name, { class: `owner-${place}` })));
}

function groups(box, all) {
  while (box.children.length > all.length) box.lastChild.remove();
  while (box.children.length < all.length) {
    const figure = element("figure", "");
    const canvas = element("canvas", "");
    canvas.setAttribute("role", "img");
    figure.append(element("figcaption", ""), canvas);
    box.append(figure);
  }
  all.forEach((group, number) => draw(box.children[number], group, number, all.length));
}

// A small square for each cell, filled from below: pages in use, cached, free.
function draw(figure, group, number, count) {
  const [caption, canvas] = figure.children;
  const name = count > 1 ? `Group ${number + 1}` : "Pages";
  const sees = group.window ? `, sees ${group.window} tokens back` : "";
  const told =
    `${name}${sees}: ${group.used} used${whose(group.owners)}, ${group.cached} cached, ` +
    `chunks mapped: ${group.mapped_chunks}`;
  caption.textContent = told;
  canvas.setAttribute("aria-label", told);
  const across = 32, side = 14;
  const down = Math.max(1, Math.ceil(group.cells.length / across));
  canvas.width = across * side;
  canvas.height = down * side;
  const colour = (word) => getComputedStyle(document.documentElement).getPropertyValue(`--${word}`);
  const pen = canvas.getContext("2d");
  pen.fillStyle = colour("hole");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  group.cells.forEach((cell, place) => {
    const x = (place % across) * side, y = Math.floor(place / across) * side;
    const all = cell.used + cell.cached + cell.open;
    let top = y + side - 1;
    const height = side - 2;
    const owned = group.owners.length > 1 ? group.owners.map((own, i) => [`owner-${i}`, own.cells[place]]) : [];
    const rest = owned.reduce((left, [, part]) => left - part, cell.used);
    for (const [word, part] of [...owned, ["used", Math.max(rest, 0)], ["cached", cell.cached], ["open", cell.open]]) {
      const tall = all ? (part / all) * height : word === "open" && cell.mapped ? height : 0;
      pen.fillStyle = colour(word);
      pen.fillRect(x + 1, top - tall, side - 2, tall);
      top -= tall;
    }
  });
}
