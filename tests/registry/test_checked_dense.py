"""The checking wrapper refuses tensors that dense operators must never see."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import (
    DenseOps,
    Device,
    DeviceInfo,
    HeadNorm,
    Rotation,
)
from kvrt.testing.paged import PagedKV
from kvrt.wrappers import Call, Checked, Traced
from kvrt.wrappers.wrapper import Wrapper

from .test_checked_attention import LAYOUT, rows


@pytest.fixture
def dense(calls: list[Call]) -> Iterator[tuple[Device, DenseOps]]:
    device = Checked(Traced(registry.load("cpu", timeout=60).open(), calls.append))
    found = device.extension(DenseOps)  # type: ignore[type-abstract]
    assert found is not None
    yield device, found
    device.close()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear", (rows(2, 8), rows(4, 9)), r"weight = .*\[out features, 8\]"),
        ("linear", (rows(8), rows(4, 8)), r"x = .*\[tokens, in features\]"),
        ("linear", (rows(8, 2).T, rows(4, 8)), "x = .*last dimension must be contiguous"),
        ("linear", (rows(2, 8), rows(8, 4).T), "weight = .*contiguous"),
        ("linear", (rows(2, 8), rows(4, 8, dtype=torch.float64)), "weight = float64.*dtypes"),
        ("linear", (rows(2, 8), rows(4, 8), rows(5)), r"bias = .*float32 \[4\]"),
        ("linear", (rows(2, 8), rows(4, 8), None, rows(2, 5)), r"residual = .*\[2, 4\]"),
        ("gated_linear", (rows(2, 8), rows(5, 8), "silu"), "weight = .*as many rows"),
        ("gated_linear", (rows(2, 8), rows(4, 8), "relu"), "activation = 'relu': .*silu"),
        ("rms_norm", (rows(2, 8), rows(4), 1e-5), r"weight = .*float32 \[8\]"),
        ("rms_norm", (rows(2, 8), rows(8), -1.0), "eps = -1.0"),
        ("rms_norm", (rows(2, 8), rows(8), float("nan")), "eps = nan"),
    ],
)
def test_dense_operators_are_checked(
    dense: tuple[Device, DenseOps],
    calls: list[Call],
    name: str,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    with pytest.raises(ContractError, match=message):
        getattr(dense[1], name)(*arguments)
    assert not calls


SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "linear": {"x": (2, 8), "weight": (4, 8), "bias": (4,), "residual": (2, 4), "out": (2, 4)},
    "gated_linear": {"x": (2, 8), "weight": (4, 8), "bias": (4,), "out": (2, 2)},
    "rms_norm": {"x": (2, 8), "weight": (8,), "out": (2, 8)},
}
OTHERS: dict[str, dict[str, object]] = {
    "gated_linear": {"activation": "silu"},
    "rms_norm": {"eps": 0},
}
DAMAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elsewhere": lambda tensor: tensor.to("meta"),
    "of another dtype": lambda tensor: tensor.double(),
    "of one dimension more": lambda tensor: tensor[None],
    "longer": lambda tensor: rows(tensor.shape[0] + 2, *tensor.shape[1:]),
    "wider": lambda tensor: rows(*tensor.shape[:-1], tensor.shape[-1] + 2),
    "with gaps": lambda tensor: rows(*tensor.shape, 2)[..., 0],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, of in SHAPES.items() for argument in of]
)
def test_each_tensor_of_a_dense_operator_is_checked_in_every_way(
    dense: tuple[Device, DenseOps], calls: list[Call], name: str, argument: str, damage: str
) -> None:
    good = {each: rows(*shape) for each, shape in SHAPES[name].items()}
    call, others = getattr(dense[1], name), OTHERS.get(name, {})
    assert call(**good, **others) is good["out"]
    calls.clear()
    damaged = DAMAGES[damage](good[argument])
    # Where a width is the wrong one, or a number of rows, it may be that of what stands beside it.
    words = " = " if damage in ("longer", "wider") else f"{argument} = "
    with pytest.raises(ContractError, match=words):
        call(**good | {argument: damaged}, **others)
    assert not calls


def test_a_dense_operator_does_not_write_over_what_it_reads(
    dense: tuple[Device, DenseOps], calls: list[Call]
) -> None:
    x = rows(8, 8)
    for name in ("linear", "rms_norm"):
        weight = rows(8, 8) if name == "linear" else rows(8)
        with pytest.raises(ContractError, match=r"out = .*must not be x"):
            getattr(dense[1], name)(x=x, weight=weight, out=x, **OTHERS.get(name, {}))
    assert not calls


@pytest.mark.parametrize(
    ("rotation", "norm", "message"),
    [
        (Rotation(rows(6, 8), rows(6, 8)), None, "rotation.cos = .*must have 5 rows"),
        (Rotation(rows(5, 9), rows(5, 9)), None, "rotation.cos = .*at most 8 angles"),
        (Rotation(rows(5, 8), rows(5, 4)), None, "rotation.sin = .*the shape of cos"),
        (Rotation(rows(5), rows(5)), None, "rotation.cos = .*float32"),
        (None, HeadNorm(rows(16), rows(8), 1e-6), "norm.k = "),
        (None, HeadNorm(rows(16), rows(16), -1.0), "norm.eps = -1"),
    ],
)
def test_rotations_and_norms_are_checked(
    dense: tuple[Device, DenseOps],
    calls: list[Call],
    rotation: Rotation | None,
    norm: HeadNorm | None,
    message: str,
) -> None:
    device, operators = dense
    with PagedKV(device, LAYOUT, 12) as pages:
        batch = pages.batch([pages.take(9), pages.take(1)], [9, 1], [4, 1])
        plan = device.attention.plan(batch)
        q, k, v = rows(5, 4, 16), rows(5, 2, 16), rows(5, 2, 16)
        with pytest.raises(ContractError, match=message):
            operators.rotate_append(plan, 0, q, k, v, rotation, norm)
        assert calls[-1].name == "attention.plan"
        angles = Rotation(rows(5, 8), rows(5, 8))
        operators.rotate_append(plan, 0, q, k, v, angles, HeadNorm(rows(16), rows(16), 1e-6))


class Wide(Wrapper):
    """A device that says that it computes in either dtype."""

    @property
    def info(self) -> DeviceInfo:
        return replace(super().info, compute_dtypes=("float32", "bfloat16"))


@pytest.mark.parametrize("other", range(3))
def test_queries_keys_and_values_have_one_dtype(other: int) -> None:
    device = Checked(Wide(registry.load("cpu").open()))
    operators = device.extension(DenseOps)  # type: ignore[type-abstract]
    assert operators is not None
    with PagedKV(device, LAYOUT, 12) as pages:
        batch = pages.batch([pages.take(9), pages.take(1)], [9, 1], [4, 1])
        plan = device.attention.plan(batch)
        q, k, v = (
            rows(5, heads, 16, dtype=torch.bfloat16 if at == other else torch.float32)
            for at, heads in enumerate((4, 2, 2))
        )
        with pytest.raises(ContractError, match="dtype"):
            operators.rotate_append(plan, 0, q, k, v, None, None)
    device.close()
