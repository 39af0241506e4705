"""Every tensor of every optional operator is refused in every way in which it can be wrong; those
of `DenseOps` in `test_checked_attention`."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch

from kvrt import registry
from kvrt.errors import ContractError
from kvrt.spi import (
    BranchOps,
    DeltaRule,
    Device,
    ExpertOps,
    Experts,
    LatentOps,
    LowRank,
    LowRankOps,
    LowRankRows,
    PackedMatrices,
    Recurrence,
    Rotation,
    Router,
    StateLayout,
    StateSpaceRule,
)
from kvrt.testing.matrices import FORMATS, random_rows
from kvrt.testing.packing import PackingDevice
from kvrt.testing.paged import PagedKV
from kvrt.wrappers import Checked, Traced
from kvrt.wrappers.traced import Call

Arguments = dict[str, Any]
Rules = DeltaRule | StateSpaceRule

TOKENS = 3
LAYERS = 2


def some(*shape: int) -> torch.Tensor:
    return torch.full(shape, 0.5)


# --- what is right -----------------------------------------------------------------------------

BRANCHES: Mapping[str, Arguments] = {
    "layer_norm": {
        "x": some(3, 8), "weight": some(8), "bias": some(8), "eps": 0.0, "out": some(3, 8),
    },
    "norm_rows": {"x": some(3, 8), "weight": some(8), "eps": 0.0, "out": some(3, 8)},
    "add_branch": {
        "x": some(3, 8), "branch": some(3, 8), "weight": some(8), "eps": 0.0, "scale": 2.0,
    },
    "activate": {"x": some(3, 8), "activation": "gelu"},
    "scale_rows": {"x": some(3, 8), "factors": some(3)},
}  # fmt: skip
MIXTURES: Mapping[str, Arguments] = {
    "route": {
        "logits": some(3, 4), "router": Router("softmax", 2), "correction": some(4),
        "chosen": torch.zeros(3, 2, dtype=torch.int32), "weights": some(3, 2),
    },
    "mix": {
        "x": some(3, 8),
        "experts": Experts(4, 6, some(48, 8), some(40, 6), "silu", some(4, 12), some(4, 10)),
        "chosen": torch.zeros(3, 2, dtype=torch.int32), "weights": some(3, 2),
        "residual": some(3, 10), "out": some(3, 10),
    },
}  # fmt: skip
LATENTS: Mapping[str, Arguments] = {
    "by_head": {"x": some(3, 2, 8), "weight": some(2, 5, 8), "out": some(3, 2, 5)},
    "rotate": {
        "x": some(3, 2, 8), "rotation": Rotation(some(3, 4), some(3, 4)), "out": some(3, 2, 8),
    },
}  # fmt: skip
ADDED = LowRankRows(((0, 2, LowRank(some(3, 8), ((0, some(3, 4)),))),))
LOW_RANKS: Mapping[str, Arguments] = {
    "adapted_linear": {
        "x": some(3, 8), "weight": some(10, 8), "rows": ADDED, "bias": some(10),
        "residual": some(3, 10), "out": some(3, 10),
    },
    "adapted_gated_linear": {
        "x": some(3, 8), "weight": some(10, 8), "rows": ADDED, "activation": "silu",
        "bias": some(10), "out": some(3, 5),
    },
}  # fmt: skip
RULES = {
    "delta": DeltaRule(1, 2, 4, 6, some(2), some(2)),
    "scan": StateSpaceRule(1, 2, 4, 6, some(2), some(2), some(2)),
}
DENSE = (BRANCHES, MIXTURES, LATENTS, LOW_RANKS)
KINDS: Mapping[str, Any] = {
    **{name: kind for of, kind in zip(DENSE, (BranchOps, ExpertOps, LatentOps, LowRankOps),
                                      strict=True) for name in of},
    **dict.fromkeys(("convolve", *RULES), Recurrence),
    **dict.fromkeys(("rows", "linear", "gated_linear"), PackedMatrices),
}  # fmt: skip


def recurrent(device: Device, name: str, stack: ExitStack) -> Arguments:
    """Arguments for an operator over states, of one sequence of `TOKENS` tokens."""

    def planned(layout: StateLayout) -> object:
        pages = stack.enter_context(PagedKV(device, layout, 4))
        ops = device.extension(Recurrence)  # type: ignore[type-abstract]
        assert ops is not None
        return ops.plan(pages.states([pages.take(TOKENS)], [TOKENS], [TOKENS]))

    if name == "convolve":
        return {
            "plan": planned(StateLayout("float32", LAYERS, 8, 16)), "layer": 1,
            "x": some(TOKENS, 8), "weight": some(8, 4), "bias": some(8), "activation": "silu",
            "out": some(TOKENS, 8),
        }  # fmt: skip
    plans: Arguments = {
        "layer": 1,
        "tokens": planned(StateLayout("float32", LAYERS, 4 + 12 + 2, 16)),
        "borders": planned(StateLayout("float32", LAYERS, 12 * 4, 16, of_pages=True)),
    }
    if name == "delta":
        taken = {"qkv": some(TOKENS, 20), "gates": some(TOKENS, 4)}
    else:
        taken = {"xbc": some(TOKENS, 20), "times": some(TOKENS, 2)}
    return {**plans, **taken, "rule": RULES[name], "out": some(TOKENS, 12)}


def packed(device: Device, name: str) -> Arguments:
    """Arguments for a product with codes."""
    ops = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    assert ops is not None
    format = FORMATS["q4_0"]
    memory = torch.zeros(ops.nbytes(format, 4, 64) + 128, dtype=torch.uint8)
    into = memory[-memory.data_ptr() % 128 :][: len(memory) - 128]
    matrix = ops.pack(format, random_rows(format, 4, 64, 0), 64, into)
    x, out = some(3, 64), some(3, 4)
    return {
        "rows": {"matrix": matrix, "indices": torch.arange(3), "out": x},
        "linear": {"x": x, "weight": (matrix,), "bias": some(4), "residual": some(3, 4),
                   "out": out},
        "gated_linear": {"x": x, "weight": (matrix,), "activation": "silu", "bias": some(4),
                         "out": some(3, 2)},
    }[name]  # fmt: skip


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return []


@pytest.fixture(scope="module")
def devices(calls: list[Call]) -> Iterator[dict[bool, Device]]:
    """One that multiplies with codes, and one with all else."""
    found: dict[bool, Device] = {
        True: Checked(Traced(PackingDevice(registry.load("null").open()), calls.append)),
        False: Checked(Traced(registry.load("cpu").open(), calls.append)),
    }
    yield found
    for device in found.values():
        device.close()


# --- what is wrong -----------------------------------------------------------------------------


def grown(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    shape = list(tensor.shape)
    shape[axis] += 2
    return torch.ones(shape, dtype=tensor.dtype)


DAMAGES: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "no tensor": lambda tensor: tensor.tolist(),
    "elsewhere": lambda tensor: tensor.to("meta"),
    "of another dtype": lambda tensor: tensor.double(),
    "of another dtype of this device": lambda tensor: tensor.bfloat16(),
    "of one dimension more": lambda tensor: tensor[None],
    "longer": lambda tensor: grown(tensor, 0),
    "wider": lambda tensor: grown(tensor, -1),
    "with gaps": lambda tensor: torch.stack((tensor, tensor), -1)[..., 0],
}
OTHER = "of another dtype of this device"
RIGHT = {
    ("activate", "x", "longer"),
    ("activate", "x", "wider"),
    ("activate", "x", OTHER),
    ("scale_rows", "x", "wider"),
    ("convolve", "weight", "wider"),
    *((name, part, OTHER) for name, parts in {
        "mix": ("experts.gate_up", "experts.down"), "by_head": ("weight",),
        "adapted_linear": ("weight",), "adapted_gated_linear": ("weight",),
        "convolve": ("out",), "delta": ("qkv", "gates", "out"), "scan": ("xbc", "times", "out"),
        "rows": ("out",),
    }.items() for part in parts),
}  # fmt: skip
"""What is not wrong: weights have a dtype of their own, and so have rows that are computed in
float32."""


def tensors(arguments: Arguments) -> Iterator[tuple[str, torch.Tensor]]:
    """Each with its name, which has a point if it is a part of an argument."""
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif is_dataclass(value) and isinstance(value, Experts | Rotation | Rules):
            for field in fields(value):
                if isinstance(part := getattr(value, field.name), torch.Tensor):
                    yield f"{name}.{field.name}", part


def with_damage(arguments: Arguments, place: str, damaged: object) -> Arguments:
    name, _, part = place.partition(".")
    new = replace(arguments[name], **{part: damaged}) if part else damaged
    return arguments | {name: new}


def refusal(call: Callable[..., object], arguments: Arguments) -> str:
    """What a call is refused with."""
    try:
        call(**arguments)
    except ContractError as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("name", KINDS)
def test_each_tensor_of_an_optional_operator_is_checked_in_every_way(
    devices: dict[bool, Device], calls: list[Call], name: str
) -> None:
    device = devices[KINDS[name] is PackedMatrices]
    ops = device.extension(KINDS[name])
    call = getattr(ops, name)
    with ExitStack() as stack:
        if KINDS[name] is Recurrence:
            good = recurrent(device, name, stack)
        elif KINDS[name] is PackedMatrices:
            good = packed(device, name)
        else:
            good = next(of[name] for of in DENSE if name in of)
        call(**good)
        for (place, tensor), (damage, done) in itertools.product(
            list(tensors(good)), DAMAGES.items()
        ):
            if (name, place, damage) in RIGHT:
                continue
            calls.clear()
            # Where a size or a dtype is the wrong one, it may be that of what stands beside it.
            named = "" if damage in ("longer", "wider", OTHER) else place
            told = refusal(call, with_damage(good, place, done(tensor)))
            assert told.startswith(named), (place, damage, told)
            assert " = " in told, (place, damage, told)
            assert all(not made.name.endswith(f".{name}") for made in calls), (place, damage)
