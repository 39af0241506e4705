"""What the ledger says that tenants hold, and what the system says, while they run."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from kvrt.errors import StoreError
from kvrt.sharing.tenant import tenants_of

_EVERY_S = 0.005
_SYSTEM_EVERY = 20
"""Samples: to ask the system takes milliseconds, in which the process cannot map."""


class Sample(NamedTuple):
    """What each process holds, by the ledger."""

    at: float
    held: dict[int, int]


class Watch:
    """Looks until it is left.

    `over` is the most bytes by which a process had more than the ledger said, before and after that
    was looked up; `under` the most by which it had less, while the ledger stood still.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = 0
        self.samples: list[Sample] = []
        self.over = self.under = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()

    @property
    def most(self) -> int:
        """The most bytes that all together held."""
        return max((sum(sample.held.values()) for sample in self.samples), default=0)

    def shares(self, begin: float, end: float) -> dict[int, float]:
        """What each process held on average between two times."""
        found = [sample.held for sample in self.samples if begin <= sample.at <= end]
        pids = {pid for held in found for pid in held}
        return {pid: sum(held.get(pid, 0) for held in found) / len(found) for pid in pids}

    def _look(self) -> None:
        count = 0
        while not self._end.wait(_EVERY_S):
            held = self._held()
            if held is None:
                continue
            self.samples.append(Sample(time.monotonic(), held))
            count += 1
            if count % _SYSTEM_EVERY == 0:
                self._compare(held)

    def _compare(self, before: dict[int, int]) -> None:
        found = {pid: resident(pid) for pid in before}
        after = self._held() or {}
        for pid in before.keys() & after.keys():
            there = found[pid]
            if there is None:
                continue
            self.over = max(self.over, there - max(before[pid], after[pid]))
            if before[pid] == after[pid]:
                self.under = max(self.under, before[pid] - there)

    def _held(self) -> dict[int, int] | None:
        try:
            self.total, rows = tenants_of(self.path)
        except StoreError:
            return None  # nobody has come yet
        return {row.pid: row.claim.held for row in rows}


def resident(pid: int) -> int | None:
    """Bytes of weights and KV memory that a process has, by the system: kvrt asks for huge pages
    for these, and for nothing else. None: it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:
        return None
    total = kib = 0
    for line in lines:
        if line.startswith("Rss:"):
            kib = int(line.split()[1])
        elif line.startswith("VmFlags:") and " hg" in line:
            total += kib * 1024
    return total
