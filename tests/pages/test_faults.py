"""Whichever call of the device fails: the old table stands, its bytes are there, nothing leaks."""

from collections import Counter

import pytest

from kvrt.errors import DeviceError, OutOfMemory
from kvrt.executor.interface import Failed
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.pages.table import Change
from kvrt.spi import Device
from kvrt.testing.chaos import Chaos

from .model import Model
from .shapes import chunks_for


class Script:
    """Every kind of change. Each is tried until it works, and after a failure all is checked.

    Args:
        model: an empty one.
        copy_fails: then the pages of a preempted sequence may be overwritten; see `apply`.
    """

    def __init__(self, model: Model, *, copy_fails: bool) -> None:
        self.failed: list[str] = []
        self._model = model
        self._copy_fails = copy_fails
        self._tokens = model.oracle.tokens

    def run(self) -> None:
        model, tokens = self._model, self._tokens
        for seq, count in ((1, 14), (2, 9), (3, 6)):
            self._attempt(f"grow {seq}", model.table.grow({seq: count}))
            self._extend(seq, count)
        self._attempt("fork", model.table.fork(1, 4))
        tokens[4] = list(tokens[1])
        self._attempt("copy on write", model.table.grow({1: 1, 4: 1}))
        self._extend(1, 1)
        self._extend(4, 1)
        self._attempt("fork again", model.table.fork(1, 5))
        tokens[5] = list(tokens[1])
        freed = model.table.free(2)
        grown = freed.table.grow({5: 1, 6: 30})  # 2 is preempted, and its pages are copied into
        assert isinstance(grown, Change)
        self._attempt("preempt", freed.then(grown))
        del tokens[2]
        self._extend(5, 1)
        self._extend(6, 30)
        self._attempt("truncate", model.table.truncate(1, 3))
        del tokens[1][3:]
        self._attempt("free", model.table.free(6))
        del tokens[6]
        self._attempt("trim", model.table.trim())
        model.check(every_byte=True)

    def _attempt(self, name: str, plan: Change | Shortage) -> None:
        assert isinstance(plan, Change)
        model, before = self._model, self._model.table
        try:
            stands = isinstance(model.cache.commit(plan), Failed)
        except DeviceError:
            stands = True
        if stands:
            self.failed.append(name)
            assert model.table is before
            lost = 2 if name == "preempt" and self._copy_fails else None
            model.check(every_byte=True, but=lost)
            model.commit(plan)

    def _extend(self, seq: int, count: int) -> None:
        known = self._tokens.setdefault(seq, [])
        new = [1000 * seq + len(known) + i for i in range(count)]
        self._model.write(seq, len(known), new)
        known += new


def play(
    device: Device, kind: str, fail: dict[tuple[str, int], Exception]
) -> tuple[Counter[str], list[str]]:
    """Run the script, give everything back. Returns the calls of the device, and what failed."""
    chaos = Chaos(device, seed=1, fail=fail)
    model = Model(chaos, kind, chunks=64, limit=chunks_for(kind, 18), keep_warm=0)
    opening = chaos.calls.copy()
    script = Script(model, copy_fails=any(call == "copier.within" for call, _ in fail))
    script.run()
    calls = chaos.calls.copy()
    model.empty()
    model.close()
    assert device.memory.info().chunks == 0, f"{fail} made it leak"
    assert script.failed or not fail
    return calls - opening, script.failed


@pytest.mark.promise("P3")
@pytest.mark.parametrize("kind", ["many in a chunk", "straddling", "larger", "straddling+larger"])
@pytest.mark.parametrize("error", [OutOfMemory, DeviceError])
def test_whichever_call_fails_the_old_table_stands(
    kind: str, error: type[OutOfMemory | DeviceError], null_device: Device
) -> None:
    """The script is run once for each call that it makes, which then fails."""
    calls, failed = play(null_device, kind, {})
    assert failed == []
    opening = chunks_for(kind, 0)
    ways: set[str] = set()
    for name in ("memory.create", "memory.map", "memory.unmap", "copier.within"):
        before = opening if name in ("memory.create", "memory.map") else 0
        assert calls[name] > 0
        for number in range(before + 1, before + calls[name] + 1):
            _, failed = play(null_device, kind, {(name, number): error("chaos")})
            ways.update(failed)
    assert {"copy on write", "preempt", "trim"} <= ways
