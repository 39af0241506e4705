"""A process with one model that takes part in a share, and what it is told to do.

    python -m tests.bench.sharing.engine '{"size": 67108864, "weight": 3.0}'

It says that it is ready, and then answers each line, a `Job`, with a line.
"""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sharing.share import Share

SHARE = "bench"


@dataclass(frozen=True, slots=True)
class Job:
    """Requests to be answered.

    Args:
        count: of prompts.
        prompt: tokens of each.
        answer: tokens of each.
        one_by_one: the next when the one before is answered; else all at once.
        seconds: again and again until that much time has gone by; 0: once.
    """

    count: int
    prompt: int = 256
    answer: int = 96
    one_by_one: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a job.

    Args:
        seconds: that it took.
        tokens: that were sampled.
        failed: requests that ended with an error, or for want of memory.
        first: seconds to each first token.
    """

    seconds: float
    tokens: int
    failed: int
    first: list[float]


class Engine:
    """The process, from outside.

    Args:
        folder: of the ledger.
        size: bytes that all share.
        terms: of `kvrt.Share`.
    """

    def __init__(self, folder: str, size: int, **terms: object) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.bench.sharing.engine"]
        self.process = subprocess.Popen(
            [*command, json.dumps({"size": size, **terms})],
            stdin=pipe, stdout=pipe, text=True, env={**os.environ, "KVRT_SHARE_DIR": folder},
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        self._reader = ThreadPoolExecutor(1)

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self) -> Self:
        """Wait until it is."""
        assert self._line() == "ready", "it did not start"
        return self

    def ask(self, job: Job) -> "Future[Done]":
        """Give it something to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asdict(job)) + "\n")
        self.process.stdin.flush()
        return self._reader.submit(lambda: Done(**json.loads(self._line())))

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def kill(self) -> None:
        """As the system does when memory runs out."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._reader.shutdown()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def serve(terms: dict[str, Any]) -> None:
    """The process, from within."""
    with Runtime("tiny", share=Share(name=SHARE, **terms), threads=1, keep_warm=0) as runtime:
        runtime.generate([[1] * 64] * 2, SamplingParams(max_tokens=4, ignore_eos=True))
        print("ready", flush=True)
        rng = random.Random(os.getpid())
        for line in sys.stdin:
            print(json.dumps(asdict(_done(runtime, Job(**json.loads(line)), rng))), flush=True)


def _done(runtime: Runtime, job: Job, rng: random.Random) -> Done:
    params = SamplingParams(max_tokens=job.answer, ignore_eos=True)
    results = []
    begun = time.perf_counter()
    while not results or time.perf_counter() < begun + job.seconds:
        prompts = [[rng.randrange(250) for _ in range(job.prompt)] for _ in range(job.count)]
        if job.one_by_one:
            for prompt in prompts:
                results += runtime.generate([prompt], params)
        else:
            results += runtime.generate(prompts, params)
    answers = [result.completions[0] for result in results if result.error is None]
    return Done(
        seconds=time.perf_counter() - begun,
        tokens=sum(len(answer.token_ids) for answer in answers),
        failed=len(results) - sum(answer.finish_reason == "length" for answer in answers),
        first=[result.timings.first_token or 0.0 for result in results],
    )


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
