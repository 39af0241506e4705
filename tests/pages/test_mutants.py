"""Leave any one statement of the counting of holders out, and it is found out."""

import inspect
import random
import re
import sys
import textwrap
from collections.abc import Callable

import pytest

from kvrt.errors import IntegrityError
from kvrt.kv.pages import holders
from kvrt.kv.pages.holders import HoldersEvolver
from kvrt.spi import Device

from .model import Model, random_operation

COUNTING = re.compile(r"^ *self\.(_counts\[.*\] = |_cached [+-]= )")


def statements() -> list[tuple[str, int]]:
    """Each statement that changes a count: its method, and its line there."""
    found = []
    for name, method in vars(HoldersEvolver).items():
        if inspect.isfunction(method):
            lines = inspect.getsource(method).splitlines()
            found += [(name, n) for n, line in enumerate(lines) if COUNTING.match(line)]
    return found


def without(method: str, line: int) -> Callable[..., object]:
    """The method, in which that line does nothing."""
    lines = textwrap.dedent(inspect.getsource(getattr(HoldersEvolver, method))).splitlines()
    lines[line] = re.sub(r"\S.*", "pass", lines[line])
    scope: dict[str, Callable[..., object]] = {}
    exec("\n".join(lines), vars(sys.modules[holders.__name__]), scope)
    return scope[method]


def walk(device: Device, operations: int) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        model = Model(device, "straddling", chunks=48, limit=30, keep_warm=3)
        for _ in range(operations):
            random_operation(model, rng, 34)
            model.check()
        model.empty()
        model.close()


OPERATIONS = 800


def test_the_walk_finds_nothing_to_complain_about(null_device: Device) -> None:
    assert len(statements()) >= 8
    walk(null_device, OPERATIONS)


@pytest.mark.promise("P1")
@pytest.mark.parametrize(("method", "line"), statements())
def test_a_count_that_is_left_out_is_found(
    method: str, line: int, null_device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HoldersEvolver, method, without(method, line))
    with pytest.raises((IntegrityError, AssertionError, LookupError, ValueError)):
        walk(null_device, OPERATIONS)
