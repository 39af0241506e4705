"""The optional dense operators against plain arithmetic."""

import itertools
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from kvrt.spi import Activation, DenseOps, Device, DType, HeadNorm, KVFormat, Rotation
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, Case, PagedKV, fill_past, mismatch, randoms
from kvrt.wrappers.rules import TORCH_DTYPE

TOKENS = [1, 2, 5, 16, 17, 67]


def weights(device: Device, dtype: DType, rows: int, width: int) -> torch.Tensor:
    """Random, of a size that keeps results near 1."""
    values = randoms(device, "float32", rows, width, seed=2) / math.sqrt(width)
    return values.to(TORCH_DTYPE[dtype])


def factors(x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """What a device may multiply the weights with: `x`, or its roundings if they are bfloat16."""
    rounded = [x.bfloat16().to(x.dtype)] if weight.dtype is torch.bfloat16 else []
    return [x, *rounded]


def test_linear(device: Device, dense: DenseOps, compute: DType, stored: DType) -> None:
    weight = weights(device, stored, 77, 123)
    bias = randoms(device, "float32", 77, seed=3)
    for tokens in TOKENS:
        x = randoms(device, compute, tokens, 123, seed=1)
        residual = randoms(device, compute, tokens, 77, seed=4)
        for b, r in ((None, None), (bias, None), (None, residual), (bias, residual)):
            got = dense.linear(x, weight, b, r)
            assert got.dtype == x.dtype
            wanted = [reference.linear(factor, weight, b, r) for factor in factors(x, weight)]
            problems = [mismatch(got, want, TOLERANCE[compute]) for want in wanted]
            assert not all(problems), f"{tokens} tokens: {problems[0]}"


@pytest.mark.parametrize("activation", get_args(Activation))
def test_gated_linear(
    device: Device, dense: DenseOps, compute: DType, stored: DType, activation: Activation
) -> None:
    weight = weights(device, stored, 2 * 45, 80)
    biases = (None, randoms(device, "float32", 2 * 45, seed=3))
    for tokens, bias in itertools.product(TOKENS, biases):
        x = randoms(device, compute, tokens, 80, seed=1)
        got = dense.gated_linear(x, weight, activation, bias)
        assert got.dtype == x.dtype
        wanted = [
            reference.gated_linear(factor, weight, activation, bias)
            for factor in factors(x, weight)
        ]
        problems = [mismatch(got, want, TOLERANCE[compute]) for want in wanted]
        assert not all(problems), f"{tokens} tokens: {problems[0]}"


@pytest.mark.parametrize("width", [5, 64, 576, 1000])
def test_rms_norm(device: Device, dense: DenseOps, compute: DType, width: int) -> None:
    weight = randoms(device, "float32", width, seed=2)
    for tokens in (1, 7):
        x = randoms(device, compute, tokens, width, seed=1)
        for values, eps in ((x, 1e-5), (x * 1e-3, 1e-2), (torch.zeros_like(x), 1e-6)):
            got = dense.rms_norm(values, weight, eps)
            assert got.dtype == x.dtype
            assert not mismatch(got, reference.rms_norm(values, weight, eps), TOLERANCE[compute])


def test_rows_of_x_may_have_any_stride(device: Device, dense: DenseOps, compute: DType) -> None:
    wide = randoms(device, compute, 9, 200, seed=1)
    x, tolerance = wide[:, 30:130], TOLERANCE[compute]
    weight = weights(device, device.info.weight_dtypes[0], 64, 100)
    norm = randoms(device, "float32", 100, seed=3)
    assert not mismatch(dense.linear(x, weight), reference.linear(x, weight, None, None), tolerance)
    gated = reference.gated_linear(x, weight, "silu", None)
    assert not mismatch(dense.gated_linear(x, weight, "silu"), gated, tolerance)
    assert not mismatch(dense.rms_norm(x, norm, 1e-5), reference.rms_norm(x, norm, 1e-5), tolerance)


def test_a_result_goes_where_it_is_asked_for(
    device: Device, dense: DenseOps, compute: DType
) -> None:
    x = randoms(device, compute, 5, 96, seed=1)
    weight = weights(device, device.info.weight_dtypes[0], 96, 96)
    norm = randoms(device, "float32", 96, seed=3)
    calls: list[Callable[[torch.Tensor | None], torch.Tensor]] = [
        lambda out: dense.linear(x, weight, None, None, out),
        lambda out: dense.gated_linear(x, weight, "silu", None, out),
        lambda out: dense.rms_norm(x, norm, 1e-5, out),
    ]
    for call in calls:
        want = call(None)
        out = torch.full_like(want, math.nan)
        assert call(out).data_ptr() == out.data_ptr()
        assert torch.equal(out, want)


def test_a_product_may_replace_its_residual(
    device: Device, dense: DenseOps, compute: DType
) -> None:
    x = randoms(device, compute, 7, 96, seed=1)
    residual = randoms(device, compute, 7, 64, seed=4)
    weight = weights(device, device.info.weight_dtypes[0], 64, 96)
    want = dense.linear(x, weight, None, residual)
    dense.linear(x, weight, None, residual, residual)
    assert torch.equal(residual, want)


def angles(device: Device, tokens: int, count: int) -> Rotation:
    """Other ones for each token, in no order."""
    angle = 6.3 * torch.rand(tokens, count, generator=torch.Generator().manual_seed(7))
    place = device.info.torch_device
    return Rotation(cos=angle.cos().to(place), sin=angle.sin().to(place))


@pytest.mark.parametrize(
    ("head_dim", "rotated", "normed"),
    [(64, 1, False), (64, 0, True), (64, 0, False), (16, 1, True), (80, 0.5, True), (128, 1, True)],
)
def test_rotate_append(
    device: Device,
    dense: DenseOps,
    compute: DType,
    kv: KVFormat,
    head_dim: int,
    rotated: float,
    normed: bool,
) -> None:
    """Norm first, then rotation, by each token's own angles; then k as it is now, and v."""
    case = Case(head_dim=head_dim, compute=compute, kv=kv)
    tokens = sum(case.queries)
    rotation = angles(device, tokens, int(head_dim * rotated) // 2) if rotated else None
    scales = [1 + 0.2 * randoms(device, "float32", head_dim, seed=seed) for seed in (5, 6)]
    norm = HeadNorm(q=scales[0], k=scales[1], eps=1e-6) if normed else None
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        qkv = randoms(device, compute, tokens, case.heads + 2 * case.kv_heads, head_dim, seed=1)
        q, k, v = qkv[:, :6], qkv[:, 6:8], qkv[:, 8:]
        want_q, want_k = reference.normed_and_rotated(q.clone(), k.clone(), rotation, norm)
        plan = device.attention.plan(batch)
        dense.rotate_append(plan, 1, q, k, v, rotation, norm)
        device.synchronize()
        assert not mismatch(q, want_q, TOLERANCE[compute]), "q in place"
        assert not mismatch(k, want_k, TOLERANCE[compute]), "k in place"
        for s in range(len(case.contexts)):
            rows, new = reference.rows(batch, s), reference.new_slots(batch, s)
            for side, x in enumerate((k, v)):
                stored = reference.read(batch, s, 1, side, new)
                reference.write(batch, s, 1, side, new, x[rows])
                expected = reference.read(batch, s, 1, side, new)
                assert torch.equal(stored, expected), f"{'values' if side else 'keys'} of {s}"
            untouched = reference.read(batch, s, 0, 0, new)
            assert untouched.isnan().all(), "another layer was written"


@pytest.mark.usefixtures("batch_invariant")
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(
    device: Device, dense: DenseOps, compute: DType, stored: DType
) -> None:
    x = randoms(device, compute, 67, 256, seed=1)
    weight = weights(device, stored, 128, 256)
    norm = randoms(device, "float32", 256, seed=3)
    operators: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "linear": lambda rows: dense.linear(rows, weight),
        "gated_linear": lambda rows: dense.gated_linear(rows, weight, "silu"),
        "rms_norm": lambda rows: dense.rms_norm(rows, norm, 1e-5),
    }
    for name, operator in operators.items():
        together = operator(x)
        for start, stop in ((0, 1), (3, 5), (16, 32), (40, 67), (66, 67)):
            assert torch.equal(operator(x[start:stop]), together[start:stop]), (
                f"{name}: rows {start}:{stop} of {len(x)}"
            )
