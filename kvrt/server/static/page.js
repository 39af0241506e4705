// The page: its parts (tabs.js), a conversation (chat.js), how the server does (live.js), who
// waits (queue.js), batches (batches.js), models (models.js), and who has taken what (usage.js).

import { json } from "./ask.js";
import { Batches } from "./batches.js";
import { Chat } from "./chat.js";
import { show, lost } from "./live.js";
import { Models } from "./models.js";
import { Queue } from "./queue.js";
import { Tabs } from "./tabs.js";
import { Usage } from "./usage.js";

const EVERY_MS = 1000;

const chat = new Chat(document);
const looked = {
  queue: new Queue(document),
  batches: new Batches(document),
  models: new Models(document),
  usage: new Usage(document),
};
const tabs = new Tabs(document);
let status = null; // the last that came
tabs.changed = () => status && looked[tabs.shown]?.look(status);

async function look() {
  if (!document.hidden) {
    try {
      status = await json("status");
      show(document, status);
      chat.offer(status.models?.map((model) => model.name) ?? status.model.names);
      await looked[tabs.shown]?.look(status);
    } catch {
      lost(document);
    }
  }
  setTimeout(look, EVERY_MS);
}

look();
