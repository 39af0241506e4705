// The page: a conversation (chat.js), and how the server does (live.js).

import { Chat } from "./chat.js";
import { show, lost } from "./live.js";

const EVERY_MS = 1000;

const chat = new Chat(document);

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch("status");
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const status = await answer.json();
      show(document, status);
      chat.model = status.model.names[0];
    } catch {
      lost(document);
    }
  }
  setTimeout(look, EVERY_MS);
}

look();
