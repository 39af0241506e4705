"""`Checked` refuses what the rules of mixtures of experts do not allow."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import ExpertOps, Experts, Router
from kvrt.wrappers import Checked, Traced
from kvrt.wrappers.traced import Call

ROUTER = Router("softmax", 2)
EXPERTS = Experts(4, 6, torch.ones(4 * 2 * 6, 8), torch.ones(4 * 10, 6))
CHOSEN, WEIGHTS = torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def experts(calls: list[Call]) -> Iterator[ExpertOps]:
    device = Checked(Traced(registry.load("cpu").open(), calls.append))
    found = device.extension(ExpertOps)  # type: ignore[type-abstract]
    assert found is not None
    yield found
    device.close()


def route(ops: ExpertOps, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "logits": torch.ones(3, 4), "router": ROUTER, "correction": None, "chosen": CHOSEN,
        "weights": WEIGHTS,
    }  # fmt: skip
    ops.route(**arguments | changed)


def mix(ops: ExpertOps, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "x": torch.ones(3, 8), "experts": EXPERTS, "chosen": CHOSEN, "weights": WEIGHTS,
        "residual": None, "out": torch.empty(3, 10),
    }  # fmt: skip
    ops.mix(**arguments | changed)


@pytest.mark.parametrize(
    ("call", "changed", "message"),
    [
        (route, {"logits": torch.ones(3, 4).bfloat16()}, r"logits = .*must be float32"),
        (route, {"router": replace(ROUTER, chosen=5)}, "router.chosen = 5: must be from 1 to 4"),
        (route, {"router": replace(ROUTER, groups=3)}, "must make 4 experts groups of equal size"),
        (route, {"router": replace(ROUTER, groups=4)}, "router.chosen = 2: must be from 1 to 1"),
        (route, {"correction": torch.ones(5)}, r"correction = .*float32 \[4\]"),
        (route, {"chosen": CHOSEN.long()}, r"chosen = int64.*must be int32 \[3, 2\]"),
        (route, {"weights": torch.ones(2, 2)}, r"weights = .*must be float32 \[3, 2\]"),
        (
            route,
            {"chosen": CHOSEN[:, :1].contiguous(), "weights": WEIGHTS[:, :1].contiguous()},
            "chosen = .*must have 2 columns",
        ),
        (mix, {"x": torch.ones(3, 7)}, r"experts.gate_up = .*must be \[rows, 7\]"),
        (mix, {"experts": replace(EXPERTS, width=5)}, "experts.gate_up = 48 rows: must be 40"),
        (mix, {"experts": replace(EXPERTS, down=torch.ones(40, 5))}, r"experts.down = .*\[rows, 6"),
        (mix, {"experts": replace(EXPERTS, down=torch.ones(39, 6))}, "39 rows: must be a multiple"),
        (mix, {"experts": replace(EXPERTS, down=())}, "as many matrices for each of 4 experts"),
        (mix, {"experts": replace(EXPERTS, activation="relu")}, "experts.activation = 'relu'"),
        (mix, {"experts": replace(EXPERTS, down_bias=torch.ones(39))}, r"down_bias = .*\[4, 10\]"),
        (mix, {"weights": WEIGHTS.t().contiguous()}, r"weights = .*must be float32 \[3, 2\]"),
        (mix, {"residual": torch.ones(3, 9)}, r"residual = .*\[3, 10\]"),
        (mix, {"residual": torch.ones(3, 20)[:, ::2]}, "residual = .*contiguous"),
        (mix, {"out": torch.empty(3, 9)}, r"out = .*\[3, 10\]"),
    ],
)
def test_what_is_asked_is_checked(
    experts: ExpertOps,
    calls: list[Call],
    call: Callable[..., None],
    changed: dict[str, Any],
    message: str,
) -> None:
    call(experts)
    count = len(calls)
    with pytest.raises(ContractError, match=message):
        call(experts, **changed)
    assert len(calls) == count


def test_mixtures_are_traced(experts: ExpertOps, calls: list[Call]) -> None:
    route(experts)
    mix(experts)
    assert [call.name for call in calls[-2:]] == ["experts.route", "experts.mix"]
