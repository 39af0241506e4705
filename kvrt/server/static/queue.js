// Who waits, and why, from /status.

import { duration, rows, tell } from "./dom.js";

const WHY = {
  tokens: "the next steps are full of others' tokens",
  places: "no more may run at once",
  memory: "no KV memory is left",
  alone: "one runs alone that fits beside no other",
  beginning: "another computes the same beginning",
  pages: "its pages come from host memory or disk",
  asleep: "the model sleeps",
  turn: "it has just come",
};

export class Queue {
  constructor(page) {
    this.at = (id) => page.getElementById(id);
  }

  look({ queue, server, batches }) {
    const { running, waiting } = server;
    tell(this.at("queue-told"), `${running} sequences run, ${waiting} wait.`);
    rows(this.at("queued"), queue.map(waits), [0, 3, 4, 5, 6]);
    tell(this.at("queue-lines"), batches === null ? "" : lines(batches));
  }
}

function waits(request, place) {
  return [
    place + 1,
    request.id.slice(-6),
    (request.key || "-") + (request.batch ? ", batch" : ""),
    request.priority,
    request.prompt_tokens,
    request.preemptions,
    duration(request.seconds),
    WHY[request.why] ?? request.why,
  ];
}

function lines({ asked, places, crowded }) {
  const told = `Of batches, ${asked} lines are asked, and ${places} may be`;
  return crowded ? `${told}: clients have the KV memory.` : `${told}.`;
}
