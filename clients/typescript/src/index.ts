// A client for what OpenAI's does not cover of a kvrt server.

export { Batches, over, type Request, type Start } from "./batches.js";
export { Client, type Asked, type Message } from "./client.js";
export type { Options } from "./connection.js";
export { ServerError } from "./errors.js";
export type * from "./types.js";
