"""What a batch keeps of the throughput of the runtime in it: the same prompts, in turns."""

import asyncio
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kvrt
from kvrt.batches.store import Store
from kvrt.sampling import SamplingParams
from kvrt.server.batches.local import Job, Models, entered, runner
from tests.bench.batches.lines import MODEL, TEMPLATE, prompts, write
from tests.bench.peers.child import print_error


def measured(model: str, threads: int, lines: int, new: int, repeats: int) -> dict[str, Any]:
    """Seconds and processor seconds of each, by repeat, and what is kept at the median."""
    found: dict[str, list[tuple[float, float]]] = {"embedded": [], "batch": []}
    options = {"dtype": "bfloat16", "threads": threads, "prefix_cache": False}
    with kvrt.Runtime(model, backend="cpu", **options) as runtime:
        for repeat in range(-1, repeats):  # the first is to warm up
            texts = prompts(lines, repeat)
            ways = {
                "embedded": lambda texts=texts: _embedded(runtime, texts, new),
                "batch": lambda texts=texts: _batch(runtime, texts, new),
            }
            for name in sorted(ways, reverse=bool(repeat % 2)):
                begun = time.perf_counter(), time.process_time()
                ways[name]()
                took = time.perf_counter() - begun[0], time.process_time() - begun[1]
                print_error(f"  {name} {repeat + 1}: {took[0]:.2f} s")
                if repeat >= 0:
                    found[name].append(took)
    return {"lines": lines, "new": new, "runs": found, **summary(found)}


def summary(found: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    """Medians over pairs of neighbours in time, since the machine's speed changes."""
    pairs = list(zip(found["embedded"], found["batch"], strict=True))
    names = ("kept", "kept_of_work")
    return {
        name: statistics.median(own[part] / batch[part] for own, batch in pairs)
        for part, name in enumerate(names)
    }


def _embedded(runtime: kvrt.Runtime, texts: list[str], new: int) -> None:
    params = SamplingParams(max_tokens=new, ignore_eos=True)
    assert all(each.error is None for each in runtime.generate(texts, params))


def _batch(runtime: kvrt.Runtime, texts: list[str], new: int) -> None:
    @contextmanager
    def same(name: str) -> Iterator[Any]:
        yield runtime

    with TemporaryDirectory() as name:
        folder = Path(name)
        input = write(folder / "in.jsonl", texts, new)
        job = Job(
            input, folder / "out.jsonl", folder / "errors.jsonl", folder / "state",
            model=MODEL, alias=("*",), template=TEMPLATE,
        )  # fmt: skip
        store = Store(job.state)
        work = runner(store, Models(job, same, same), runtime.config.max_running, lambda _: None)
        batch = asyncio.run(work.run(entered(store, job).id))
        store.close()
        assert batch.done == len(texts), batch
