"""The optional operators of matrices of low rank against plain arithmetic."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from kvrt.spi import Activation, DenseOps, Device, DType, LowRank, LowRankOps, LowRankRows
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, mismatch, randoms

IN, OUT = (72, 96), 200
"""In features: the second is a multiple of what kernels read at once."""
PARTS = (((0, OUT, 8),), ((0, 50, 3), (120, 80, 16)), ((60, 10, 1),), ((0, 100, 20), (100, 100, 4)))
"""Of each adapter: first row, rows, rank."""
SEGMENTS = (
    ((0, 1),),
    ((2, 5),),
    ((0, 1), (1, 2), (7, 30)),
    ((0, 120), (121, 130), (130, 250)),
    ((19, 20), (500, 530), (530, 640)),
)
"""First token, and the one behind the last."""


@pytest.fixture
def ops(device: Device) -> LowRankOps:
    found = device.extension(LowRankOps)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer LowRankOps")
    return found


def made(device: Device, dtype: DType, number: int, width: int) -> LowRank:
    parts = PARTS[number % len(PARTS)]
    seed = 10 * number
    return LowRank(
        randoms(device, dtype, sum(rank for _, _, rank in parts), width, seed=seed) / 8,
        tuple(
            (first, randoms(device, dtype, rank, rows, seed=seed + at) / 4)
            for at, (first, rows, rank) in enumerate(parts, 1)
        ),
    )


def rows_of(
    device: Device, dtype: DType, segments: tuple[tuple[int, int], ...], number: int, width: int
) -> LowRankRows:
    return LowRankRows(
        tuple((*ends, made(device, dtype, n, width)) for n, ends in enumerate(segments, number))
    )


def sums(x: Tensor, rows: LowRankRows, out: Tensor) -> Tensor:
    """`LowRankOps.add` in float64 on the host."""
    result = out.cpu().double()
    for start, stop, added in rows.segments:
        between, at = reference.linear(x[start:stop], added.a, None, None), 0
        for first, b in added.parts:
            result[start:stop, first : first + b.shape[1]] += (
                between[:, at : at + len(b)] @ b.cpu().double()
            )
            at += len(b)
    return result


@pytest.mark.parametrize("width", IN)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_each_token_has_its_own_added(
    device: Device,
    ops: LowRankOps,
    compute: DType,
    segments: tuple[tuple[int, int], ...],
    width: int,
) -> None:
    for dtype in device.info.weight_dtypes:
        rough = 1 if dtype == "float32" else 3  # x and what is between may be rounded, too
        for number in range(len(PARTS)):
            rows = rows_of(device, dtype, segments, number, width)
            tokens = segments[-1][1] + 3
            x = randoms(device, compute, tokens, 2 * width, seed=5)[:, 7 : 7 + width]
            out = randoms(device, compute, tokens, OUT, seed=6)
            want = sums(x, rows, out)
            for _ in range(2):  # what a device keeps of the rows serves again
                again = out.clone()
                ops.add(x, rows, again)
                assert not mismatch(again, want, max(TOLERANCE[compute], rough * TOLERANCE[dtype]))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("segments", SEGMENTS)
def test_gates_follow(
    device: Device,
    ops: LowRankOps,
    compute: DType,
    activation: Activation,
    segments: tuple[tuple[int, int], ...],
) -> None:
    same = torch.eye(OUT, dtype=torch.float64)
    for dtype in device.info.weight_dtypes:
        rough = 1 if dtype == "float32" else 3
        rows = rows_of(device, dtype, segments, 1, IN[0])
        x = randoms(device, compute, segments[-1][1] + 3, IN[0], seed=5)
        both = randoms(device, compute, len(x), OUT, seed=6)
        want = reference.gated_linear(sums(x, rows, both), same, activation, None)
        out = torch.full((len(x), OUT // 2), torch.nan, dtype=x.dtype, device=x.device)
        ops.add_gated(x, rows, both, activation, out)
        assert not mismatch(out, want, max(TOLERANCE[compute], rough * TOLERANCE[dtype]))


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("features", [5, 100, 1000])
def test_tokens_with_nothing_to_add_have_the_bits_of_a_gated_product(
    device: Device, ops: LowRankOps, activation: Activation, features: int
) -> None:
    dense = device.extension(DenseOps)  # type: ignore[type-abstract]
    if dense is None:
        pytest.skip("the device does not offer DenseOps")
    compute = device.info.compute_dtypes[0]
    for dtype in device.info.weight_dtypes:
        weight = randoms(device, dtype, 2 * features, IN[0], seed=2)
        bias = randoms(device, "float32", 2 * features, seed=3)
        a, b = (randoms(device, dtype, 4, width, seed=1) for width in (IN[0], 2 * features))
        for tokens in (1, 2, 17, 130):
            x = randoms(device, compute, tokens + 2, IN[0], seed=4)
            want = dense.gated_linear(x, weight, activation, bias)
            both, out = dense.linear(x, weight, bias), torch.empty_like(want)
            adds = LowRankRows(((1, 2, LowRank(a, ((0, b),))),))
            ops.add_gated(x, adds, both, activation, out)
            assert torch.equal(out[2:], want[2:])
            assert torch.equal(out[:1], want[:1])
            assert not torch.equal(out[1], want[1])


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("width", IN)
def test_a_token_has_the_same_bits_beside_any_others(
    device: Device, ops: LowRankOps, width: int
) -> None:
    compute = device.info.compute_dtypes[0]
    for dtype in device.info.weight_dtypes:
        rows = rows_of(device, dtype, SEGMENTS[-1], 1, width)
        x = randoms(device, compute, 640, width, seed=5)
        base = randoms(device, compute, 640, OUT, seed=6)
        whole = base.clone()
        ops.add(x, rows, whole)
        for start, stop, added in rows.segments:
            last = slice(max(start, stop - 3), stop)
            for some in (slice(start, start + 1), last, slice(start, stop)):
                out = base[some].clone()
                ops.add(x[some], LowRankRows(((0, len(out), added),)), out)
                assert torch.equal(out, whole[some])
