"""`Checked` refuses what the rules of latent attention's operators do not allow."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import LatentOps, Rotation
from kvrt.wrappers import Checked, Traced
from kvrt.wrappers.traced import Call

X = torch.ones(3, 2, 8)
ANGLES = torch.ones(3, 4)


@pytest.fixture
def calls() -> list[Call]:
    return []


@pytest.fixture
def latents(calls: list[Call]) -> Iterator[LatentOps]:
    device = Checked(Traced(registry.load("cpu").open(), calls.append))
    found = device.extension(LatentOps)  # type: ignore[type-abstract]
    assert found is not None
    yield found
    device.close()


def by_head(ops: LatentOps, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "x": X, "weight": torch.ones(2, 5, 8), "out": torch.empty(3, 2, 5)
    }  # fmt: skip
    ops.by_head(**arguments | changed)


def rotate(ops: LatentOps, **changed: Any) -> None:
    arguments: dict[str, Any] = {
        "x": X, "rotation": Rotation(ANGLES, ANGLES), "out": torch.empty(3, 2, 8)
    }  # fmt: skip
    ops.rotate(**arguments | changed)


@pytest.mark.parametrize(
    ("call", "changed", "message"),
    [
        (by_head, {"x": torch.ones(3, 16)}, r"x = .*must be \[tokens, heads, elements\]"),
        (by_head, {"x": torch.ones(3, 8, 2).mT}, "x = .*elements contiguous"),
        (by_head, {"x": torch.ones(3, 2, 7)}, r"weight = .*must be \[2, out features, 7\]"),
        (by_head, {"weight": torch.ones(3, 5, 8)}, r"weight = .*must be \[2, out features, 8\]"),
        (by_head, {"weight": torch.ones(2, 5, 8).double()}, "weight = .*one of the dtypes"),
        (by_head, {"out": torch.empty(3, 2, 6)}, r"out = .*must be \[3, 2, 5\]"),
        (rotate, {"rotation": Rotation(ANGLES[:2], ANGLES[:2])}, "rotation.cos = .*3 rows"),
        (rotate, {"rotation": Rotation(torch.ones(3, 5), torch.ones(3, 5))}, "at most 4 angles"),
        (rotate, {"out": torch.empty(3, 1, 8)}, r"out = .*must be \[3, 2, 8\]"),
    ],
)
def test_what_is_asked_is_checked(
    latents: LatentOps,
    calls: list[Call],
    call: Callable[..., None],
    changed: dict[str, Any],
    message: str,
) -> None:
    call(latents)
    count = len(calls)
    with pytest.raises(ContractError, match=message):
        call(latents, **changed)
    assert len(calls) == count


def test_operators_of_latents_are_traced(latents: LatentOps, calls: list[Call]) -> None:
    by_head(latents)
    rotate(latents, rotation=None, out=X.clone())
    assert [call.name for call in calls[-2:]] == ["latents.by_head", "latents.rotate"]
