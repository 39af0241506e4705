"""The optional mixtures of experts against plain arithmetic."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from kvrt.spi import Device, DType, ExpertActivation, ExpertOps, Experts, PackedMatrices, Router
from kvrt.spi.experts import Score
from kvrt.testing import experts as reference
from kvrt.testing.matrices import FORMATS
from kvrt.testing.paged import TOLERANCE, mismatch, randoms
from kvrt.testing.suite.test_packed import Weight, mixed

COUNT, WIDTH, IN, OUT = 6, 24, 64, 40
TOKENS = [1, 2, 7, 33, 150]
ROUTERS = [
    Router("softmax", 3),
    Router("softmax", 2, renormalise=True, scale=2.5),
    Router("sigmoid", 4, renormalise=True, scale=0.5),
    Router("sigmoid", 3, groups=4, groups_chosen=2),
    Router("softmax", 5, groups=6, groups_chosen=3, group_score="best"),
    Router("softmax", 2, renormalise=True, least=4.0),
    Router("chosen", 4),
    Router("sparsemixer", 2, jitter=0.05),
]
EXPERTS = 12


@pytest.fixture
def experts(device: Device) -> ExpertOps:
    found = device.extension(ExpertOps)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer ExpertOps")
    return found


def logits_of(device: Device, tokens: int) -> Tensor:
    """Numbers of which no two of a token are near each other, and some are equal."""
    random = torch.Generator().manual_seed(tokens)
    order = torch.stack([torch.randperm(EXPERTS, generator=random) for _ in range(tokens)])
    logits = (order - EXPERTS // 2) * 0.3125 + 0.1
    logits[::2, EXPERTS // 3] = logits[::2, EXPERTS // 2]
    return logits.to(device.info.torch_device)


def routed(
    device: Device, experts: ExpertOps, logits: Tensor, router: Router, correction: Tensor | None
) -> tuple[Tensor, Tensor]:
    place = device.info.torch_device
    chosen = torch.full((len(logits), router.chosen), -1, dtype=torch.int32, device=place)
    weights = torch.full((len(logits), router.chosen), torch.nan, device=place)
    experts.route(logits, router, correction, chosen, weights)
    return chosen, weights


@pytest.mark.parametrize("router", ROUTERS, ids=repr)
def test_the_best_are_chosen_in_order_and_weighed(
    device: Device, experts: ExpertOps, router: Router
) -> None:
    random = torch.Generator().manual_seed(1)
    correction = torch.randperm(EXPERTS, generator=random) * 0.0703125
    for tokens in TOKENS:
        logits = logits_of(device, tokens)
        for added in (None, correction.to(device.info.torch_device)):
            if added is not None and router.score == "sparsemixer":
                continue
            chosen, weights = routed(device, experts, logits, router, added)
            want, parts = reference.route(logits.cpu(), router, added)
            assert chosen.tolist() == want
            torch.testing.assert_close(weights.cpu().double(), parts, rtol=1e-5, atol=1e-6)


def test_every_kind_of_score_is_tried() -> None:
    assert {router.score for router in ROUTERS} == set(get_args(Score))


def choice(device: Device, tokens: int, each: int = 3) -> tuple[Tensor, Tensor]:
    """Some experts of each token; the last one is nobody's."""
    random = torch.Generator().manual_seed(tokens)
    order = [torch.randperm(COUNT - 1, generator=random)[:each] for _ in range(tokens)]
    weights = torch.rand(tokens, each, generator=random) + 0.1
    place = device.info.torch_device
    return torch.stack(order).int().to(place), weights.to(place)


def of_floats(device: Device, dtype: DType, *, biases: bool = False) -> Experts:
    return Experts(
        COUNT,
        WIDTH,
        randoms(device, dtype, COUNT * 2 * WIDTH, IN, seed=1) / 8,
        randoms(device, dtype, COUNT * OUT, WIDTH, seed=2) / 8,
        gate_up_bias=randoms(device, "float32", COUNT, 2 * WIDTH, seed=3) if biases else None,
        down_bias=randoms(device, "float32", COUNT, OUT, seed=4) if biases else None,
    )


def values_of(experts: Experts) -> tuple[Tensor, Tensor]:
    assert isinstance(experts.gate_up, Tensor)
    assert isinstance(experts.down, Tensor)
    return experts.gate_up, experts.down


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clamped"])
def test_a_token_has_the_sum_of_its_experts(
    device: Device, experts: ExpertOps, compute: DType, activation: ExpertActivation
) -> None:
    for dtype in device.info.weight_dtypes:
        # What is multiplied with 16-bit weights may be rounded to these, twice.
        rough = 1 if dtype == "float32" else 3
        tolerance = max(TOLERANCE[compute], rough * TOLERANCE[dtype])
        for biases in (False, True):
            those = of_floats(device, dtype, biases=biases)
            those = replace(those, activation=activation, limit=0.5, alpha=1.5)
            for tokens in TOKENS:
                x = randoms(device, compute, tokens, IN, seed=5)
                residual = randoms(device, compute, tokens, OUT, seed=6)
                chosen, weights = choice(device, tokens)
                want = reference.mix(x, those, values_of(those), chosen, weights)
                for add in (None, residual):
                    out = torch.full_like(residual, torch.nan)
                    experts.mix(x, those, chosen, weights, add, out)
                    wanted = want if add is None else want + add.cpu().double()
                    problem = mismatch(out, wanted, tolerance)
                    assert not problem, f"{dtype}, {tokens} tokens: {problem}"


def test_a_result_may_stand_where_it_is_added_to(device: Device, experts: ExpertOps) -> None:
    compute = device.info.compute_dtypes[0]
    those = of_floats(device, device.info.weight_dtypes[0])
    x, out = (randoms(device, compute, 9, width, seed=7) for width in (IN, OUT))
    chosen, weights = choice(device, 9)
    want = reference.mix(x, those, values_of(those), chosen, weights) + out.cpu().double()
    experts.mix(x, those, chosen, weights, out, out)
    assert not mismatch(out, want, TOLERANCE[compute])


@pytest.mark.usefixtures("batch_invariant")
def test_a_token_has_the_same_bits_beside_any_others(device: Device, experts: ExpertOps) -> None:
    compute = device.info.compute_dtypes[0]
    for dtype in device.info.weight_dtypes:
        those = of_floats(device, dtype, biases=True)
        x = randoms(device, compute, 150, IN, seed=5)
        chosen, weights = choice(device, 150)
        whole = torch.empty(150, OUT, dtype=x.dtype, device=x.device)
        experts.mix(x, those, chosen, weights, None, whole)
        for some in (slice(0, 1), slice(3, 5), slice(20, 90), slice(149, 150)):
            out = torch.empty_like(whole[some])
            experts.mix(x[some], those, chosen[some], weights[some], None, out)
            assert torch.equal(out, whole[some])


@pytest.mark.usefixtures("batch_invariant")
def test_results_are_added_in_the_order_of_the_choice(device: Device, experts: ExpertOps) -> None:
    """Each result alone, then all: the sum in order has the bits of all."""
    compute = device.info.compute_dtypes[0]
    if compute != "float32":
        pytest.skip("a result alone is rounded")
    those = of_floats(device, device.info.weight_dtypes[0])
    x = randoms(device, compute, 40, IN, seed=5)
    chosen, weights = choice(device, 40, each=5)
    total = torch.zeros(40, OUT)
    for slot in range(5):
        out = torch.empty(40, OUT, device=x.device)
        which, ones = chosen[:, slot : slot + 1].contiguous(), torch.ones_like(weights[:, :1])
        experts.mix(x, those, which, ones.contiguous(), None, out)
        part = weights[:, slot : slot + 1].cpu() * out.cpu()
        total = part if slot == 0 else total + part
    out = torch.empty(40, OUT, device=x.device)
    experts.mix(x, those, chosen, weights, None, out)
    assert torch.equal(out.cpu(), total)


def test_experts_may_be_codes(device: Device, experts: ExpertOps, packed: PackedMatrices) -> None:
    """Gate and up in one matrix or in one each; with the bits of its products, one by one."""
    compute, place = device.info.compute_dtypes[0], device.info.torch_device
    first, second, third = mixed(packed)
    width = 512
    assert all(FORMATS[name].fits(width) for name in (first, second, third))
    down = Weight(device, packed, *[(third, OUT)] * COUNT, width=width)
    for each in ([(first, 2 * width)], [(first, width), (second, width)]):
        gate_up = Weight(device, packed, *each * COUNT, width=width)
        those = Experts(COUNT, width, gate_up.matrices, down.matrices)
        for tokens in (1, 7, 33):
            x = randoms(device, compute, tokens, width, seed=5)
            chosen, weights = choice(device, tokens)
            out = torch.empty(tokens, OUT, dtype=x.dtype, device=place)
            experts.mix(x, those, chosen, weights, None, out)
            want = torch.zeros(tokens, OUT, device=place)
            for token, which in enumerate(chosen.tolist()):
                for slot, expert in enumerate(which):
                    own = gate_up.matrices[expert * len(each) : (expert + 1) * len(each)]
                    row = packed.gated_linear(x[token : token + 1], own, "silu")
                    row = packed.linear(row, down.matrices[expert : expert + 1])
                    want[token] += weights[token, slot] * row[0].float()
            assert not mismatch(out, want.cpu().double(), TOLERANCE[compute])
