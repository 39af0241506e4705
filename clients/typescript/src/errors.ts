// What is wrong.

/** The server refuses something, cannot do it now, or cannot be reached. */
export class ServerError extends Error {
  override readonly name = "ServerError";

  /**
   * @param status of HTTP; 0: there was no answer.
   * @param code for programs, such as `rate_limit_exceeded`.
   * @param param the field at fault.
   * @param retryAfter seconds after which it may be tried again.
   */
  constructor(
    message: string,
    readonly status = 0,
    readonly code: string | null = null,
    readonly param: string | null = null,
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }
}

/** What an answer that is an error says. */
export async function refused(answer: Response): Promise<ServerError> {
  const after = Number(answer.headers.get("retry-after") ?? NaN);
  const retryAfter = Number.isNaN(after) ? null : after;
  try {
    const { error } = (await answer.json()) as {
      error: { message: string; code?: string | null; param?: string | null };
    };
    return new ServerError(
      error.message, answer.status, error.code ?? null, error.param ?? null, retryAfter,
    );
  } catch {
    const message = `the server answered ${answer.status}`;
    return new ServerError(message, answer.status, null, null, retryAfter);
  }
}
