"""Mixtures of experts, against plain arithmetic."""

from dataclasses import replace

import pytest
import torch
from kvrt_kernels.triton.matrices import FEW
from torch import Tensor

from kvrt.spi import (
    Device,
    DType,
    ExpertActivation,
    ExpertOps,
    Experts,
    Matrices,
    PackedMatrices,
    Router,
)
from kvrt.testing import experts as reference
from kvrt.testing import matrices
from kvrt.testing.matrices import FORMATS
from kvrt.testing.paged import TOLERANCE, mismatch, randoms
from kvrt.testing.suite.test_experts import ROUTERS, logits_of

COUNT, WIDTH, IN, OUT = 4, 24, 40, 33
MANY = 35
"""Tokens whose slots are more than `FEW` for each expert, if each token has 2."""


@pytest.fixture(scope="module")
def ops(device: Device) -> ExpertOps:
    found = device.extension(ExpertOps)  # type: ignore[type-abstract]
    assert found is not None
    return found


def choice(tokens: int, each: int = 2) -> tuple[Tensor, Tensor]:
    """Some experts of each token; the second one is nobody's."""
    random = torch.Generator().manual_seed(tokens)
    used = torch.tensor([0, 2, 3])
    order = [used[torch.randperm(3, generator=random)[:each]] for _ in range(tokens)]
    return torch.stack(order).int(), torch.rand(tokens, each, generator=random) + 0.1


def of_floats(device: Device, dtype: DType) -> tuple[Experts, tuple[Tensor, Tensor]]:
    values = (
        randoms(device, dtype, COUNT * 2 * WIDTH, IN, seed=1) / 8,
        randoms(device, dtype, COUNT * OUT, WIDTH, seed=2) / 8,
    )
    return Experts(COUNT, WIDTH, *values), values


@pytest.mark.parametrize("router", ROUTERS, ids=repr)
def test_the_best_are_chosen_in_order_and_weighed(
    device: Device, ops: ExpertOps, router: Router
) -> None:
    random = torch.Generator().manual_seed(1)
    logits = logits_of(device, 18)  # more than a program has
    correction = torch.randperm(logits.shape[1], generator=random) * 0.0703125
    for added in (None, correction):
        if added is not None and router.score == "sparsemixer":
            continue
        chosen = torch.full((18, router.chosen), -1, dtype=torch.int32)
        weights = torch.full(chosen.shape, torch.nan)
        ops.route(logits, router, added, chosen, weights)
        want, parts = reference.route(logits, router, added)
        assert chosen.tolist() == want
        torch.testing.assert_close(weights.double(), parts, rtol=1e-5, atol=1e-6)


def test_what_is_no_number_is_chosen_last(device: Device, ops: ExpertOps) -> None:
    logits = torch.tensor([[torch.nan, 1.0, torch.nan, 2.0]])
    chosen, weights = torch.empty(1, 3, dtype=torch.int32), torch.empty(1, 3)
    ops.route(logits, replace(ROUTERS[-2], chosen=3), None, chosen, weights)
    assert chosen.tolist() == [[3, 1, 0]]


@pytest.mark.parametrize("tokens", [3, FEW + 1, MANY])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_token_has_the_sum_of_its_experts(
    device: Device, ops: ExpertOps, dtype: DType, tokens: int
) -> None:
    those, values = of_floats(device, dtype)
    x, residual = (randoms(device, dtype, tokens, width, seed=5) for width in (IN, OUT))
    chosen, weights = choice(tokens)
    out = torch.full_like(residual, torch.nan)
    ops.mix(x, those, chosen, weights, residual, out)
    want = reference.mix(x, those, values, chosen, weights) + residual.double()
    assert not mismatch(out, want, 3 * TOLERANCE[dtype])


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clamped"])
def test_experts_have_activations_and_biases_of_their_own(
    device: Device, ops: ExpertOps, activation: ExpertActivation
) -> None:
    those, values = of_floats(device, "float32")
    those = replace(
        those,
        activation=activation,
        limit=0.5,
        alpha=1.5,
        gate_up_bias=randoms(device, "float32", COUNT, 2 * WIDTH, seed=3),
        down_bias=randoms(device, "float32", COUNT, OUT, seed=4),
    )
    x, out = (randoms(device, "float32", 3, width, seed=5) for width in (IN, OUT))
    chosen, weights = choice(3)
    ops.mix(x, those, chosen, weights, None, out)
    want = reference.mix(x, those, values, chosen, weights)
    assert not mismatch(out, want, TOLERANCE["float32"])


def test_a_token_has_the_same_bits_alone_and_among_a_few(device: Device, ops: ExpertOps) -> None:
    those, _ = of_floats(device, "bfloat16")
    x = randoms(device, "bfloat16", 5, IN, seed=5)
    chosen, weights = choice(5)
    together, alone = torch.empty(5, OUT, dtype=x.dtype), torch.empty(1, OUT, dtype=x.dtype)
    ops.mix(x, those, chosen, weights, None, together)
    for at in (0, 4):
        one = slice(at, at + 1)
        ops.mix(x[one], those, chosen[one], weights[one], None, alone)
        assert torch.equal(alone, together[one])


def packed_in(
    packed: PackedMatrices, kinds: list[str], order: list[int], rows: int, width: int
) -> tuple[Matrices, Tensor]:
    """Matrices, of which number i lies in memory where ``order[i]`` says, and their values."""
    sizes = [packed.nbytes(FORMATS[name], rows, width) for name in kinds]
    each = -(-max(sizes) // 128) * 128
    memory = torch.full((each * (len(kinds) + 1),), 0xFF, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 128 :]
    found, values = [], []
    for number, (name, place, size) in enumerate(zip(kinds, order, sizes, strict=True)):
        plain = matrices.random_rows(FORMATS[name], rows, width, number)
        values.append(matrices.values(FORMATS[name], plain, width))
        into = memory[place * each : place * each + size]
        found.append(packed.pack(FORMATS[name], plain, width, into))
    return tuple(found), torch.cat(values)


@pytest.mark.parametrize("tokens", [2, FEW + 1])
@pytest.mark.parametrize("kinds", [["q4_1"] * 3, ["q8_0", "mxfp4", "mxfp4"]], ids="-".join)
def test_experts_may_be_codes_wherever_they_lie(
    device: Device, ops: ExpertOps, tokens: int, kinds: list[str]
) -> None:
    """Gate and up in a matrix each; those of the down product are of any formats, in any order."""
    packed = device.extension(PackedMatrices)
    assert packed is not None
    width = 32
    gate_up, above = packed_in(packed, [*kinds[:2]] * 3, [*range(6)], width, 96)
    down, below = packed_in(packed, kinds, [2, 0, 1], 40, width)
    those = Experts(3, width, gate_up, down)
    chosen, weights = choice(tokens)
    chosen = chosen.clamp(max=2)
    x, out = (randoms(device, "float32", tokens, size, seed=5) for size in (96, 40))
    want = reference.mix(x, those, (above, below), chosen, weights) + out.double()
    ops.mix(x, those, chosen, weights, out, out)
    assert not mismatch(out, want, 3 * TOLERANCE["float32"])


def test_a_step_without_tokens_is_no_launch(device: Device, ops: ExpertOps) -> None:
    those, _ = of_floats(device, "float32")
    chosen, weights = torch.empty(0, 2, dtype=torch.int32), torch.empty(0, 2)
    ops.mix(torch.empty(0, IN), those, chosen, weights, None, torch.empty(0, OUT))
    ops.route(torch.empty(0, 12), ROUTERS[0], None, chosen.new_empty(0, 3), weights.new_empty(0, 3))
