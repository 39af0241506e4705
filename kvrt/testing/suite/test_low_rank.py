"""The optional operators of matrices of low rank against plain arithmetic."""

from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from kvrt.spi import (
    Activation,
    DenseOps,
    Device,
    DType,
    LowRank,
    LowRankOps,
    LowRankRows,
    Matrices,
    PackedMatrices,
    Rounding,
)
from kvrt.testing import matrices, reference
from kvrt.testing.matrices import FORMATS
from kvrt.testing.paged import TOLERANCE, mismatch, randoms
from kvrt.wrappers.packed import ALIGNMENT

IN, OUT = (72, 96), 200
"""In features: the second is a multiple of what kernels read at once."""
WIDE = 256
"""In features that are whole groups of every format."""
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


def floats(device: Device, dtype: DType, width: int) -> Tensor:
    return randoms(device, dtype, OUT, width, seed=2) / 8


def codes(device: Device, width: int, rounding: Rounding) -> Matrices:
    """A weight of codes that are so rounded, in two matrices of half the rows each."""
    packed = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    if packed is None:
        pytest.skip("the device does not multiply codes")
    fits = [each for each in FORMATS.values() if packed.multiplies(each) and each.fits(width)]
    fits = [each for each in fits if packed.rounds(each) == rounding]
    if not fits:
        pytest.skip("the device rounds no codes so")
    made = []
    for seed, format in enumerate((fits[0], fits[-1])):
        plain = matrices.random_rows(format, OUT // 2, width, seed)
        nbytes = packed.nbytes(format, len(plain), width)
        memory = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device=device.info.torch_device)
        at = -memory.data_ptr() % ALIGNMENT
        made.append(packed.pack(format, plain, width, memory[at : at + nbytes]))
    return tuple(made)


def products(x: Tensor, weight: Tensor, rows: LowRankRows) -> Tensor:
    """`LowRankOps.adapted_linear` in float64 on the host, without bias and residual."""
    result = reference.linear(x, weight, None, None)
    for start, stop, added in rows.segments:
        between, at = reference.linear(x[start:stop], added.a, None, None), 0
        for first, b in added.parts:
            result[start:stop, first : first + b.shape[1]] += (
                between[:, at : at + len(b)] @ b.cpu().double()
            )
            at += len(b)
    return result


def tolerance(compute: DType, dtype: DType) -> float:
    rough = 1 if dtype == "float32" else 3  # x and what is between may be rounded, too
    return max(TOLERANCE[compute], rough * TOLERANCE[dtype])


@pytest.mark.parametrize("width", IN)
@pytest.mark.parametrize("segments", SEGMENTS)
def test_each_token_has_its_own_added(
    device: Device,
    ops: LowRankOps,
    compute: DType,
    segments: tuple[tuple[int, int], ...],
    width: int,
) -> None:
    bias = randoms(device, "float32", OUT, seed=3)
    for dtype in device.info.weight_dtypes:
        weight = floats(device, dtype, width)
        for number in range(len(PARTS)):
            rows = rows_of(device, dtype, segments, number, width)
            tokens = segments[-1][1] + 3
            x = randoms(device, compute, tokens, 2 * width, seed=5)[:, 7 : 7 + width]
            residual = randoms(device, compute, tokens, OUT, seed=6)
            want = products(x, weight, rows)
            for b, r in ((None, None), (bias, residual)):  # what a device keeps serves again
                wanted = want if b is None else want + b.cpu().double()
                out = None if r is None else r.clone()  # a product may replace its residual
                got = ops.adapted_linear(x, weight, rows, b, out, out)
                wanted = wanted if r is None else wanted + r.cpu().double()
                assert not mismatch(got, wanted, tolerance(compute, dtype))


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
    bias = randoms(device, "float32", OUT, seed=3)
    for dtype in device.info.weight_dtypes:
        weight, rows = floats(device, dtype, IN[0]), rows_of(device, dtype, segments, 1, IN[0])
        x = randoms(device, compute, segments[-1][1] + 3, IN[0], seed=5)
        want = products(x, weight, rows) + bias.cpu().double()
        want = reference.gated_linear(want, same, activation, None)
        out = torch.full((len(x), OUT // 2), torch.nan, dtype=x.dtype, device=x.device)
        got = ops.adapted_gated_linear(x, weight, rows, activation, bias, out)
        assert got.data_ptr() == out.data_ptr()
        assert not mismatch(out, want, tolerance(compute, dtype))


@pytest.mark.parametrize("rounding", get_args(Rounding))
@pytest.mark.parametrize("segments", SEGMENTS)
def test_codes_have_floats_added(
    device: Device,
    ops: LowRankOps,
    compute: DType,
    segments: tuple[tuple[int, int], ...],
    rounding: Rounding,
) -> None:
    """What is added is the same as to floats: the difference to products without."""
    weight = codes(device, WIDE, rounding)
    packed = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    assert packed is not None
    nothing = torch.zeros(OUT, WIDE)
    rows = rows_of(device, compute, segments, 1, WIDE)
    x = randoms(device, compute, segments[-1][1] + 3, WIDE, seed=5)
    added = products(x, nothing, rows)
    same = torch.eye(OUT, dtype=torch.float64)
    want = packed.linear(x, weight).cpu().double() + added
    assert not mismatch(ops.adapted_linear(x, weight, rows), want, 3 * TOLERANCE[compute])
    want = reference.gated_linear(want, same, "silu", None)
    got = ops.adapted_gated_linear(x, weight, rows, "silu")
    assert not mismatch(got, want, 3 * TOLERANCE[compute])


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("features", [5, 100, 1000])
def test_tokens_with_nothing_to_add_have_the_bits_of_a_product(
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
        rows = LowRankRows(((1, 2, LowRank(a, ((0, b),))),))
        for tokens in (1, 2, 17, 130):
            x = randoms(device, compute, tokens + 2, IN[0], seed=4)
            for want, got in (
                (
                    dense.gated_linear(x, weight, activation, bias),
                    ops.adapted_gated_linear(x, weight, rows, activation, bias),
                ),
                (dense.linear(x, weight, bias), ops.adapted_linear(x, weight, rows, bias)),
            ):
                assert torch.equal(got[2:], want[2:])
                assert torch.equal(got[:1], want[:1])
                assert not torch.equal(got[1], want[1])


@pytest.mark.usefixtures("batch_invariant")
@pytest.mark.parametrize(
    ("kind", "width"),
    [*(("floats", width) for width in IN), *((rounding, WIDE) for rounding in get_args(Rounding))],
)
def test_a_token_has_the_same_bits_beside_any_others(
    device: Device, ops: LowRankOps, kind: Literal["floats"] | Rounding, width: int
) -> None:
    """Also of the same adapter, and in steps of more tokens than any other kernel is taken for."""
    compute = device.info.compute_dtypes[0]
    for dtype in device.info.weight_dtypes:
        rows = rows_of(device, dtype, SEGMENTS[-1], 1, width)
        first = rows.segments[0][2]
        rows = LowRankRows((*rows.segments, (644, 645, first), (646, 647, first)))
        weight = floats(device, dtype, width) if kind == "floats" else codes(device, width, kind)
        x = randoms(device, compute, 1100, width, seed=5)
        whole = ops.adapted_linear(x, weight, rows)
        both = ops.adapted_gated_linear(x, weight, rows, "silu")
        for start, stop, added in rows.segments:
            last = slice(max(start, stop - 3), stop)
            for some in (slice(start, start + 1), last, slice(start, stop)):
                own = LowRankRows(((0, some.stop - some.start, added),))
                assert torch.equal(ops.adapted_linear(x[some], weight, own), whole[some])
                got = ops.adapted_gated_linear(x[some], weight, own, "silu")
                assert torch.equal(got, both[some])
