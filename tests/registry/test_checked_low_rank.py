"""`Checked` refuses what the rules of matrices of low rank do not allow."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import LowRank, LowRankOps, LowRankRows
from kvrt.wrappers import Checked, Traced
from kvrt.wrappers.traced import Call

ADDED = LowRank(torch.ones(5, 8), ((0, torch.ones(3, 4)), (6, torch.ones(2, 4))))


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def ops(calls: list[Call]) -> Iterator[LowRankOps]:
    device = Checked(Traced(registry.load("cpu").open(), calls.append))
    found = device.extension(LowRankOps)  # type: ignore[type-abstract]
    assert found is not None
    yield found
    device.close()


def add(ops: LowRankOps, segments: Any = ((0, 2, ADDED), (3, 4, ADDED)), **changed: Any) -> None:
    arguments: dict[str, Any] = {"x": torch.ones(4, 8), "weight": torch.ones(10, 8)}
    ops.adapted_linear(rows=LowRankRows(segments), **arguments | changed)


def gated(ops: LowRankOps, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "x": torch.ones(4, 8), "weight": torch.ones(10, 8), "rows": LowRankRows(((0, 2, ADDED),)),
        "activation": "silu", "out": torch.empty(4, 5),
    }  # fmt: skip
    ops.adapted_gated_linear(**arguments | changed)


def one(a: torch.Tensor, *parts: tuple[int, torch.Tensor]) -> Any:
    return ((0, 2, LowRank(a, parts)),)


@pytest.mark.parametrize(
    ("call", "changed", "message"),
    [
        (add, {"out": torch.ones(3, 10)}, r"out = .*\[4, 10\]"),
        (add, {"weight": torch.ones(10, 7)}, r"weight = .*must be \[out features, 8\]"),
        (add, {"weight": ()}, "weight = .*must be one or more matrices"),
        (add, {"bias": torch.ones(9)}, "bias = "),
        (
            add,
            {"x": torch.ones(4, 7), "weight": torch.ones(10, 7)},
            r"a = .*must be torch.float32 \[5, 7\]",
        ),
        (add, {"weight": torch.ones(9, 8)}, "parts = 6 to 10: must be apart, within 9 rows"),
        (add, {"segments": ()}, "must be at least one"),
        (add, {"segments": ((0, 5, ADDED),)}, "0 to 5: must ascend, within 4 tokens"),
        (add, {"segments": ((0, 2, ADDED), (1, 3, ADDED))}, "1 to 3: must ascend"),
        (add, {"segments": ((2, 2, ADDED),)}, "2 to 2: must ascend"),
        (
            add,
            {"segments": one(torch.ones(5, 8), (0, torch.ones(3, 4)), (3, torch.ones(2, 4)))},
            "parts = 3 to 7: must be apart",
        ),
        (add, {"segments": one(torch.ones(5, 8), (0, torch.ones(3, 4)))}, r"a = .*\[3, 8\]"),
        (
            add,
            {"segments": one(torch.ones(3, 8), (0, torch.ones(3, 4).bfloat16()))},
            r"b = .*must be torch.float32",
        ),
        (gated, {"weight": torch.ones(9, 8)}, "as many rows for gate as for up"),
        (
            gated,
            {"weight": torch.ones(8, 8), "out": torch.empty(4, 4)},
            "parts = 6 to 10: must be apart, within 8 rows",
        ),
        (gated, {"activation": "relu"}, "activation = 'relu'"),
        (gated, {"out": torch.empty(4, 10)}, r"out = .*\[4, 5\]"),
        (gated, {"rows": LowRankRows(((3, 5, ADDED),))}, "3 to 5: must ascend, within 4 tokens"),
    ],
)
def test_what_is_asked_is_checked(
    ops: LowRankOps,
    calls: list[Call],
    call: Callable[..., None],
    changed: dict[str, Any],
    message: str,
) -> None:
    call(ops)
    count = len(calls)
    with pytest.raises(ContractError, match=message):
        call(ops, **changed)
    assert len(calls) == count
