"""One prompt, one answer: streamed as text, or whole, or as a JSON object."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kvrt.errors import KvrtError
from kvrt.outputs import Result, TokenLogprobs
from kvrt.sampling import SamplingParams
from kvrt_cli import stats
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt import Runtime, Stream
    from kvrt.engine.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Style:
    """How an answer is printed: as it comes, at its end, or as JSON; and with its statistics."""

    stream: bool = True
    as_json: bool = False
    verbose: bool = False


def answer(
    terminal: Terminal,
    runtime: "Runtime",
    prompt: "Prompt",
    params: SamplingParams,
    style: Style,
    adapter: str | None = None,
) -> None:
    """Ask, and print what comes.

    Args:
        adapter: the name of the one that answers, if not the model as it is.

    Raises:
        KvrtError: the request was refused, or failed; what there is has been printed.
        KeyboardInterrupt, SystemExit: the user or SIGTERM ended it; the same.
    """
    started = time.perf_counter()
    stream = runtime.stream(prompt, params, adapter=adapter)
    result, interrupt = listen(terminal, stream, live=style.stream and not style.as_json)
    seconds = time.perf_counter() - started
    if style.as_json:
        spent = stats.collect(runtime, [result], seconds)
        terminal.json(as_json(result, params) | about(runtime) | {"statistics": spent.as_json()})
    elif not style.stream:
        terminal.say(result.text + newline_after(result.text))
    if style.verbose:
        report(terminal, runtime, [result], seconds)
    if problem := interrupt or result.error:
        raise problem


def listen(
    terminal: Terminal, stream: "Stream", *, live: bool
) -> tuple[Result, KeyboardInterrupt | SystemExit | None]:
    """Wait until a stream has ended; `live`: print its pieces as they come.

    Returns:
        All of it, and what ended it early: Ctrl-C and SIGTERM abort it, and what was still on its
        way is printed before this returns.
    """
    interrupt: KeyboardInterrupt | SystemExit | None = None
    try:
        _listen(terminal, stream, live=live)
    except (KeyboardInterrupt, SystemExit) as error:
        interrupt = error
        stream.close()
        _listen(terminal, stream, live=live)
    result = stream.wait()
    if live:
        terminal.say(newline_after(result.text))
    return result, interrupt


def _listen(terminal: Terminal, stream: "Stream", *, live: bool) -> None:
    with suppress(KvrtError):  # the result has it too
        for delta in stream:
            if live:
                terminal.say(delta.text)


def newline_after(text: str) -> str:
    """An answer ends with a newline, so that the next prompt of a shell begins a line."""
    return "" if text.endswith("\n") else "\n"


def report(
    terminal: Terminal, runtime: "Runtime", results: Sequence[Result], seconds: float
) -> None:
    """Print the statistics block."""
    terminal.plain(stats.block(stats.collect(runtime, results, seconds)))


def about(runtime: "Runtime") -> dict[str, Any]:
    """What answered, for JSON."""
    info = runtime.device_info
    return {
        "model": str(runtime.config.model),
        "backend": info.backend,
        "device": f"{info.backend}:{info.index} {info.name}",
        "dtype": runtime.model.dtype,
        "kv_dtype": runtime.cache.layouts[0].format,
    }


def as_json(result: Result, params: SamplingParams) -> dict[str, Any]:
    """A result, as a value for JSON; what was not asked for is left out."""
    usage, timings = result.usage, result.timings
    value: dict[str, Any] = {
        "request_id": result.request_id,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "token_ids": list(result.token_ids),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "preemptions": usage.preemptions,
            "drafted_tokens": usage.drafted_tokens,
            "accepted_tokens": usage.accepted_tokens,
        },
        "timings": {
            "queued_s": round(timings.queued, 6),
            "first_token_s": round(timings.first_token, 6),
            "total_s": round(timings.total, 6),
        },
        "seed": params.seed,
    }
    if result.completions and result.completions[0].score is not None:
        value["score"] = result.completions[0].score
    if result.completions and result.completions[0].logprobs is not None:
        value["logprobs"] = [_logprobs(entry) for entry in result.completions[0].logprobs]
    if result.prompt_logprobs is not None:
        value["prompt_logprobs"] = [_logprobs(entry) for entry in result.prompt_logprobs]
    if len(result.completions) > 1:
        value["completions"] = [
            {
                "index": c.index,
                "text": c.text,
                "finish_reason": c.finish_reason,
                "token_ids": list(c.token_ids),
                **({} if c.score is None else {"score": c.score}),
            }
            for c in result.completions
        ]
    if result.error is not None:
        value["error"] = error_json(result.error)
    return value


def error_json(error: Exception) -> dict[str, Any]:
    value = {"type": type(error).__name__, "message": str(error)}
    for name in ("param", "fix"):
        if text := getattr(error, name, ""):
            value[name] = text
    return value


def _logprobs(entry: TokenLogprobs) -> dict[str, Any]:
    return {
        "token_id": entry.token_id,
        "logprob": entry.logprob,
        "top": [list(t) for t in entry.top],
    }
