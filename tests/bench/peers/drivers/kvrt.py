"""kvrt by `kvrt.Runtime`, as a program that embeds it would."""

from pathlib import Path
from typing import Any

import kvrt
from tests.bench.peers.work import Answer, Request


class Driver:
    def __init__(self, path: Path, threads: int, **options: Any) -> None:
        self._runtime = kvrt.Runtime(path, backend="cpu", threads=threads, **options)
        self.versions = {"kvrt": kvrt.__version__}

    def prepare(self, requests: list[Request]) -> None:
        pass

    def run(self, requests: list[Request]) -> list[Answer]:
        results = self._runtime.generate(
            [request.prompt for request in requests],
            [kvrt.SamplingParams(max_tokens=request.new, ignore_eos=True) for request in requests],
        )
        for result in results:
            if result.error is not None:
                raise result.error
        return [
            Answer(list(result.token_ids), result.timings.first_token, result.timings.total)
            for result in results
        ]
