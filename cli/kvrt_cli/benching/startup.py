"""``kvrt bench startup``: from a command to a server's first token."""

import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click
import psutil

from kvrt.errors import KvrtError
from kvrt_cli.benching.told import ms
from kvrt_cli.benching.watched import PROGRAM
from kvrt_cli.extras import check_extra
from kvrt_cli.naming import TINY
from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.bench.startup import Start

LISTENS = re.compile(r"serving at http://([\d.]+):(\d+)")
IDS = range(3, 200)
"""That a prompt is drawn from: every vocabulary has them."""

LONGEST_S = 1800.0
"""Of a start."""


@click.command(
    "startup",
    short_help="From a command to a server's first token.",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("model", default=TINY)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- OPTIONS]")
@click.option(
    "-r", "--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, metavar="N",
    help="Starts of each kind, in turns.",
)  # fmt: skip
@click.option(
    "-p", "--prompt-tokens", type=click.IntRange(1, 1 << 20), default=512, show_default=True,
    metavar="N", help="Of the first request.",
)  # fmt: skip
@click.option(
    "--snapshot", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep weights and pages there, and use them if they are there; default: a new folder,"
    " which is deleted.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the table, and errors.")
@color_option
@click.pass_obj
def startup(
    terminal: Terminal,
    /,
    model: str,
    options: tuple[str, ...],
    repeat: int,
    prompt_tokens: int,
    snapshot: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Start kvrt serve MODEL again and again, each time up to the first token of a first request.

    \b
      kvrt bench startup
      kvrt bench startup ./Qwen3-0.6B -r 3 -- --quantize int8

    Once from nothing, and once from a snapshot: weights as they were quantised (--quantized-dir)
    and pages of the same prompt (--cache-dir), which a first start has left there. OPTIONS are
    those of kvrt serve. Files stay in the system's own cache, so that a disk counts for nothing.
    """
    terminal.quiet = quiet
    check_extra("bench startup")
    from kvrt.bench.startup import medians

    drawn = random.Random(prompt_tokens)
    prompt = [drawn.choice(IDS) for _ in range(prompt_tokens)]
    with contextlib.ExitStack() as stack:
        folder = snapshot or Path(stack.enter_context(TemporaryDirectory()))
        kept = ("--quantized-dir", str(folder / "weights"), "--cache-dir", str(folder / "pages"))
        words = {
            "nothing": (model, "--quantized-dir", "none", *options),
            "snapshot": (model, *kept, *options),
        }
        terminal.note("the first start fills the snapshot")
        _start(words["snapshot"], prompt)
        starts: dict[str, list[Start]] = {"nothing": [], "snapshot": []}
        for number in range(repeat):
            for name, found in starts.items():
                found.append(_start(words[name], prompt))
                terminal.note(f"start {number + 1} from {name}: {found[-1].whole:.2f} s")
    texts = {each.text for found in starts.values() for each in found}
    if len(texts) > 1:
        raise KvrtError("answers differ from start to start: the snapshot is not to be trusted")
    told = {name: medians(found) for name, found in starts.items()}
    if as_json:
        all_of = {
            name: [dataclasses.asdict(each) for each in found] for name, found in starts.items()
        }
        terminal.json(
            {"model": model, "options": options, "medians": told, "starts": all_of}, indent=2
        )
    else:
        print("\n".join(_table(told)))


def _table(told: dict[str, dict[str, Any]]) -> Iterator[str]:
    from kvrt.bench.startup import PARTS

    yield f"{'ms, medians':<14}" + "".join(f"{f'from {name}':>16}" for name in told) + "  until"
    for part, what in PARTS.items():
        cells = "".join(f"{ms(each['seconds'][part]):>16}" for each in told.values())
        yield f"{part:<14}{cells}  {what}"
    for name in ("whole", "processor"):
        yield f"{name:<14}" + "".join(f"{ms(each[name]):>16}" for each in told.values())
    cached = (f"{each['cached_tokens']} of {each['prompt_tokens']}" for each in told.values())
    yield f"{'cached tokens':<14}" + "".join(f"{each:>16}" for each in cached)


def _start(words: Sequence[str], prompt: Sequence[int]) -> "Start":
    """One start, up to a first token, and its end.

    Raises:
        KvrtError: the server does not start, or does not answer.
    """
    from kvrt.bench.startup import Start, parts_of

    reads, writes = os.pipe()
    program = [sys.executable, "-c", PROGRAM, str(writes), "serve", *words]
    began = time.time()
    process = subprocess.Popen(
        [*program, "--port", "0", "--alias", "*"],
        pass_fds=(writes,), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writes)
    assert process.stderr is not None
    ending = threading.Timer(LONGEST_S, process.kill)
    ending.start()
    try:
        with os.fdopen(reads) as marked, process.stderr as said:
            host, port = _listens(said)
            marks = {"server": time.time()}
            usage, text = _ask(host, port, prompt, marks)
            times = psutil.Process(process.pid).cpu_times()
            process.terminate()
            marks |= dict(json.loads(line) for line in marked)
            said.read()
        process.wait()
    finally:
        ending.cancel()
        process.kill()
        process.wait()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Start(
        parts_of(began, marks), times.user + times.system, usage["prompt_tokens"], cached, text
    )


def _listens(said: Any) -> tuple[str, int]:
    """Where it does, once it does."""
    lines = []
    for line in said:
        if match := LISTENS.search(line):
            return match[1], int(match[2])
        lines.append(line)
    raise KvrtError(
        f"the server did not start: {''.join(lines)[-1000:].strip() or 'it says nothing'}"
    )


def _ask(
    host: str, port: int, prompt: Sequence[int], marks: dict[str, float]
) -> tuple[dict[str, Any], str]:
    """What the first answer took, and its text; when its first token came is added to `marks`."""
    body = {"model": "any", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    connection = http.client.HTTPConnection(host, port, timeout=LONGEST_S)
    usage: dict[str, Any] = {}
    parts: list[str] = []
    with contextlib.closing(connection):
        connection.request(
            "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
        )
        response = connection.getresponse()
        if response.status != 200:
            raise KvrtError(f"the server does not answer: {response.read(1000).decode()}")
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            marks.setdefault("first token", time.time())
            event = json.loads(line[6:])
            parts += [choice["text"] for choice in event["choices"]]
            usage = event.get("usage") or usage
    return usage, "".join(parts)
