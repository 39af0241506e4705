"""kvrt by `kvrt.Runtime`, as a program that embeds it would."""

import time
from pathlib import Path
from typing import Any

import kvrt
from tests.bench.peers.work import Answer, Request

WARM = 16 << 20
"""Bytes of KV memory that an idle runtime may keep: `keep_warm`, and what of a chunk is more."""


class Driver:
    def __init__(self, path: Path, threads: int, **options: Any) -> None:
        self._runtime = kvrt.Runtime(path, backend="cpu", threads=threads, **options)
        self.versions = {"kvrt": kvrt.__version__}

    def prepare(self, requests: list[Request]) -> None:
        """Nothing of earlier runs' KV is resident, as nothing of theirs is in other engines."""
        self._runtime.invalidate()
        end = time.monotonic() + 60
        while (held := self._runtime.stats().cache.mapped_bytes) > WARM:
            if time.monotonic() > end:
                raise TimeoutError(f"{held} bytes of KV memory are not given back")
            time.sleep(0.01)

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
