"""Runtimes that share a device's memory, in one process and in several."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvrt import CapacityError, ConfigError, Runtime, SamplingParams
from kvrt.sharing.share import Share
from kvrt.sharing.tenant import tenants_of
from kvrt.units import MIB

LONG = SamplingParams(max_tokens=200, ignore_eos=True)
MakeRuntime = Callable[..., Runtime]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shares"
    monkeypatch.setenv("KVRT_SHARE_DIR", str(folder))
    return folder


@pytest.fixture
def make() -> Iterator[MakeRuntime]:
    made: list[Runtime] = []

    def make(**share: object) -> Runtime:
        terms = {"name": "test", "size": "24MiB", **share}
        made.append(Runtime("tiny", keep_warm=0, share=Share(**terms)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for runtime in made:
        runtime.close()


def held(folder: Path) -> dict[str, int]:
    total, rows = tenants_of(folder / "test.cpu0")
    assert sum(row.claim.held for row in rows) <= total
    return {f"{row.name}{n}": row.claim.held for n, row in enumerate(rows)}


def test_two_runtimes_never_hold_more_than_they_share_and_all_is_answered(
    make: MakeRuntime, folder: Path
) -> None:
    first, second = make(), make()
    prompts = [[n % 199, n % 13] * 60 for n in range(60)]
    answers: dict[str, list[object]] = {}

    def ask(name: str, runtime: Runtime) -> None:
        answers[name] = [r.error for r in runtime.generate(prompts, LONG)]

    threads = [
        threading.Thread(target=ask, args=pair) for pair in (("first", first), ("second", second))
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        held(folder)
        both = [runtime.stats() for runtime in (first, second)]
        mapped = sum(s.weight_bytes + s.cache.mapped_bytes + s.cache.pooled_bytes for s in both)
        assert mapped <= 24 * MIB + 4 * MIB  # looked at one after the other
        time.sleep(0.005)
    assert answers == {"first": [None] * 60, "second": [None] * 60}
