"""What `test_ray.py` looks at, found out on a Ray cluster of this machine: run by a Python that has
Ray. Prints one line of JSON.

    python ray_cluster.py serve
    python ray_cluster.py data FOLDER
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from kvrt import SamplingParams
from kvrt.errors import KvrtError
from kvrt.integrations.ray.asking import Answers
from kvrt.integrations.ray.serving import application

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = {"backend": "cpu", "memory_limit": "128MiB"}
PROMPTS = ["def read_lines(path):", "def add(a, b):", "class Stack:", "import os\n"]
LONG = SamplingParams(max_tokens=300, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=300, ignore_eos=True, temperature=0.9, seed=5)


def actors(name: str) -> dict[int, psutil.Process]:
    """The processes of Ray's actors of a kind, by their numbers."""
    own = psutil.Process()
    return {
        process.pid: process
        for process in own.children(recursive=True)
        if process.status() != psutil.STATUS_ZOMBIE and name in "".join(process.cmdline())
    }


def replicas() -> dict[int, psutil.Process]:
    return actors("ServeReplica:default:kvrt")


def seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def until(holds: Callable[[], bool], limit: float = 90.0) -> float:
    """Wait until something holds; and how long that took."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() < begun + limit
        time.sleep(0.2)
    return time.monotonic() - begun


async def streamed(answers: Answers, prompt: str, params: SamplingParams, begun: Any = None) -> str:
    text = ""
    async for delta in answers.stream(prompt, params):
        text += delta.text
        if begun is not None:
            begun.release()
    return text


async def refused(answers: Answers) -> list[str]:
    """What bad requests end with, and one whose error has more than a message."""
    found = []
    for prompt, options in (("x", {"adapter": "none"}), ([0] * 5000, {})):
        try:
            await answers.generate(prompt, **options)
        except KvrtError as error:
            found.append(f"{type(error).__name__}: {error} {error.fix}")
    return found


async def conversations(answers: Answers) -> list[list[int]]:
    """Of each turn of some conversations, the tokens that were not computed. They take turns, so
    that no replica has more to do than the other."""
    prompts = [
        f"# the file of number {number}\n" + "def read_lines(path):\n    return path\n" * 16
        for number in range(8)
    ]
    cached: list[list[int]] = [[] for _ in prompts]
    for turn in range(3):
        for number, prompt in enumerate(prompts):
            result = await answers.generate(prompt, SamplingParams(max_tokens=16))
            cached[number].append(result.usage.cached_tokens)
            prompts[number] += f"{result.text}\n# turn {turn}\n"
    return cached


async def while_one_is_killed(answers: Answers) -> dict[str, Any]:
    """Requests of which each replica has some, and streams that have begun, as one is killed."""
    right = [await streamed(answers, prompt, LONG) for prompt in PROMPTS]
    drawn = [await streamed(answers, prompt, DRAWN) for prompt in PROMPTS]
    before = replicas()
    used = {number: seconds(process) for number, process in before.items()}
    begun = asyncio.Semaphore(0)
    streams = [
        asyncio.create_task(streamed(answers, prompt, params, begun))
        for params in (LONG, DRAWN)
        for prompt in PROMPTS
    ]
    whole = [asyncio.create_task(answers.generate(prompt, LONG)) for prompt in PROMPTS * 2]
    for _ in range(3 * len(streams)):
        await begun.acquire()
    spread = [seconds(process) - used[number] for number, process in before.items()]
    done = sum(task.done() for task in (*streams, *whole))
    victim = next(iter(before.values()))
    victim.kill()
    texts = await asyncio.gather(*streams)
    results = await asyncio.gather(*whole)
    until(lambda: len(replicas().keys() - {victim.pid}) == 2)
    again = await answers.generate(PROMPTS[0], LONG)
    return {
        "replicas": len(before),
        "spread": spread,
        "done": done,
        "streams": texts == right + drawn,
        "whole": [result.text for result in results] == right * 2,
        "again": again.text == right[0],
    }


async def left_early(answers: Answers) -> float:
    """Processor seconds that replicas use in the second after a stream was left."""
    stream = answers.stream(PROMPTS[0], SamplingParams(max_tokens=1500, ignore_eos=True))
    async for _ in stream:
        break
    await stream.aclose()
    await asyncio.sleep(1.0)
    before = {number: seconds(process) for number, process in replicas().items()}
    await asyncio.sleep(1.0)
    return sum(seconds(process) - before[number] for number, process in replicas().items())


async def served(answers: Answers) -> dict[str, Any]:
    results = await asyncio.gather(
        *(answers.generate(prompt, SamplingParams(max_tokens=24)) for prompt in PROMPTS)
    )
    return {
        "texts": [result.text for result in results],
        "refused": await refused(answers),
        "cached": await conversations(answers),
        "left": await left_early(answers),
        "killed": await while_one_is_killed(answers),
    }


def serving() -> dict[str, Any]:
    handle = serve.run(application(replicas=2, **OPTIONS))  # type: ignore[arg-type]
    found = asyncio.run(served(Answers(handle)))
    serve.shutdown()
    until(lambda: not replicas())
    return found | {"example": example("ray_serve.py")}


def data(folder: Path) -> dict[str, Any]:
    """Run the example on a file of prompts, one of which is bad, and kill an actor meanwhile."""
    source = folder / "prompts.jsonl"
    rows = [{"number": n, "prompt": f"def function_{n}(a, b):"} for n in range(400)]
    rows[7]["prompt"] = "x" * 40_000
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    running = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "ray_data.py"), str(source), str(folder / "answers")],
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(actors("ray::MapWorker")) == 2)
    time.sleep(3.0)
    victim = next(iter(actors("ray::MapWorker").values()))
    victim.kill()
    running.wait(300)
    answers = [
        json.loads(line)
        for path in (folder / "answers").glob("*.json")
        for line in path.read_text().splitlines()
    ]
    return {"status": running.returncode, "answers": answers}


def example(name: str, *args: str) -> str:
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        env=env, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip


def main() -> None:
    what, *rest = sys.argv[1:]
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False)
    found = serving() if what == "serve" else data(Path(rest[0]))
    ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
