"""Commands that answer a file of requests: how long, how much memory, and what a kill leaves."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from kvrt.batches.store import Store
from tests.bench.batches.lines import MODEL, TEMPLATE, prompts, write
from tests.bench.peers.child import print_error, started

KVRT = "from kvrt_cli.main import main; main()"
DTYPE = "bfloat16"
TOGETHER = 8
"""Sequences that run together, so that half way some lines are answered, and others are not."""

LOOK_S = 0.05
KILL = 0.75
"""Of the time that the whole takes: when it is killed."""


@dataclass(frozen=True)
class Tool:
    """One.

    Args:
        command: that answers an input into an output.
        left: of an output, the lines that are answered for good.
        environ: that it needs.
    """

    name: str
    command: Callable[[Path, Path], list[str | Path]]
    left: Callable[[Path], int]
    environ: dict[str, str]


def kvrt_tool(model: Path, threads: int, folder: Path) -> Tool:
    template = folder / "template"
    template.write_text(TEMPLATE)

    def left(output: Path) -> int:
        store = Store(output.with_name(f"{output.name}.state"))
        batch = store.batches.page("", None, 1)[0]
        store.close()
        return batch.done

    def command(input: Path, output: Path) -> list[str | Path]:
        return [
            sys.executable, "-c", KVRT, "batch", "run", model, "-i", input, "-o", output,
            "--backend", "cpu", "--threads", str(threads), "--alias", MODEL,
            "--chat-template", template, "--dtype", DTYPE, "--max-running", str(TOGETHER),
        ]  # fmt: skip

    return Tool("kvrt batch run", command, left, {})


def vllm_tool(python: Path, model: Path, threads: int, folder: Path) -> Tool:
    template = folder / "template"
    template.write_text(TEMPLATE)

    def left(output: Path) -> int:
        return len(output.read_bytes().splitlines()) if output.exists() else 0

    def command(input: Path, output: Path) -> list[str | Path]:
        return [
            python, "-m", "vllm.entrypoints.openai.run_batch", "-i", input, "-o", output,
            "--model", model, "--served-model-name", MODEL, "--chat-template", template,
            "--max-model-len", "1024", "--dtype", DTYPE, "--enforce-eager", "--max-num-seqs",
            str(TOGETHER),
        ]  # fmt: skip

    environ = {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads),
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return Tool("vLLM run-batch", command, left, environ)


def measured(
    tools: list[Tool], folder: Path, lines: int, new: int, log: IO[str]
) -> list[dict[str, Any]]:
    """A row for each."""
    input = write(folder / "in.jsonl", prompts(lines, 7), new)
    rows = []
    for tool in tools:
        whole = _run(tool, input, folder / f"{tool.name}.whole", log)
        killed = _run(
            tool, input, folder / f"{tool.name}.killed", log, after=whole["seconds"] * KILL
        )
        again = _run(tool, input, folder / f"{tool.name}.killed", log, goes_on=True)
        row = {
            "tool": tool.name, "lines": lines, "new": new, "seconds": whole["seconds"],
            "peak": whole["peak"], "kept": killed["left"], "rest": again["seconds"],
        }  # fmt: skip
        assert whole["left"] == again["left"] == lines, (whole, again)
        print_error(f"  {row}")
        rows.append(row)
    return rows


def _run(
    tool: Tool, input: Path, output: Path, log: IO[str], *, after: float = 0, goes_on: bool = False
) -> dict[str, Any]:
    """Once.

    Args:
        after: seconds until it is killed; 0: never.
        goes_on: what an earlier run has left stays.
    """
    if not goes_on:
        output.unlink(missing_ok=True)
        shutil.rmtree(output.with_name(f"{output.name}.state"), ignore_errors=True)
    begun, peak = time.perf_counter(), 0
    with started(tool.command(input, output), log, tool.environ, stdout=log) as process:
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            if after and time.perf_counter() - begun > after:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(LOOK_S)
        assert after or process.returncode == 0, f"{tool.name} failed: its words are in the log"
    took = time.perf_counter() - begun
    return {"seconds": took, "peak": peak, "left": tool.left(output)}


def _memory(pid: int) -> int:
    """Resident bytes of a process and all that it has started."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total
