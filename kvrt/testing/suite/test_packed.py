"""The optional products with packed weights against plain arithmetic."""

import math
from collections.abc import Callable
from functools import cache
from typing import get_args

import pytest
import torch
from torch import Tensor

from kvrt.spi import Activation, DenseOps, Device, DType, Matrices, PackedMatrices
from kvrt.testing import matrices, reference
from kvrt.testing.matrices import FORMATS
from kvrt.testing.paged import TOLERANCE, mismatch, randoms
from kvrt.wrappers.packed import ALIGNMENT
from kvrt.wrappers.rules import TORCH_DTYPE

TOKENS = [1, 2, 5, 16, 17, 67]
WIDTH = 512


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest, packed: PackedMatrices) -> str:
    """The name of a format that the device multiplies."""
    if not packed.multiplies(FORMATS[request.param]):
        pytest.skip("the device does not multiply it")
    return str(request.param)


def mixed(packed: PackedMatrices, like: str | None = None) -> list[str]:
    """Three formats that the device multiplies, if it does so many, as it does one of them."""
    names = [name for name, format in FORMATS.items() if packed.multiplies(format)]
    way = packed.rounds(FORMATS[like or names[0]])
    names = [name for name in names if packed.rounds(FORMATS[name]) == way]
    return [names[0], names[-1], names[len(names) // 2]]


def tolerance(packed: PackedMatrices, compute: DType, name: str) -> float:
    if packed.rounds(FORMATS[name]) == "bfloat16":  # x may be rounded, too
        return max(TOLERANCE[compute], 3 * TOLERANCE["bfloat16"])
    return TOLERANCE[compute]


@cache
def known(name: str, rows: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows in the plain form, and their values."""
    plain = matrices.random_rows(FORMATS[name], rows, width, seed)
    return plain, matrices.values(FORMATS[name], plain, width)


class Weight:
    """Matrices on the device, one behind the other as weights lie, and their values."""

    def __init__(
        self,
        device: Device,
        packed: PackedMatrices,
        *parts: tuple[str, int],
        width: int = WIDTH,
    ) -> None:
        self._packed = packed
        self.values: list[Tensor] = []
        places: list[tuple[Tensor, int, int]] = []
        end = 0
        for seed, (name, rows) in enumerate(parts):
            plain, values = known(name, rows, width, seed)
            plain = plain.clone()
            self.values.append(values)
            nbytes = packed.nbytes(FORMATS[name], rows, width)
            places.append((plain, end, end + nbytes))
            end = -(-(end + nbytes) // ALIGNMENT) * ALIGNMENT
        memory = torch.full((end + ALIGNMENT,), 0xFF, dtype=torch.uint8)
        memory = memory.to(device.info.torch_device)
        memory = memory[-memory.data_ptr() % ALIGNMENT :]
        self.matrices: Matrices = tuple(
            packed.pack(FORMATS[name], plain, width, memory[start:stop])
            for (name, _), (plain, start, stop) in zip(parts, places, strict=True)
        )
        for plain, _, _ in places:
            plain.fill_(0xFF)  # what lies on the host is the caller's again

    def products(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """float64 [tokens, rows of all], of x as the device takes it for each of the matrices."""
        parts = []
        for matrix, values in zip(self.matrices, self.values, strict=True):
            rounding = self._packed.rounds(matrix.format)
            taken = reference.as_codes(x) if rounding == "codes" else x
            known = values.bfloat16() if rounding == "bfloat16" else values
            parts.append(reference.linear(taken, known, None, None))
        together = torch.cat(parts, dim=1)
        return together if bias is None else together + bias.cpu().double()


def gated(products: Tensor, activation: Activation) -> Tensor:
    """What `gated_linear` makes of its products."""
    width = products.shape[1]
    return reference.gated_linear(products, torch.eye(width), activation, None)


def test_a_device_that_packs_multiplies_some_format(packed: PackedMatrices) -> None:
    assert any(packed.multiplies(format) for format in FORMATS.values())


def test_linear(device: Device, packed: PackedMatrices, compute: DType, name: str) -> None:
    weight = Weight(device, packed, (name, 77))
    bias = randoms(device, "float32", 77, seed=3)
    for tokens in TOKENS:
        x = randoms(device, compute, tokens, WIDTH, seed=1)
        residual = randoms(device, compute, tokens, 77, seed=4)
        for b, r in ((None, None), (bias, None), (None, residual), (bias, residual)):
            got = packed.linear(x, weight.matrices, b, r)
            assert got.dtype == x.dtype
            want = weight.products(x, b)
            want = want if r is None else want + r.cpu()
            problem = mismatch(got, want, tolerance(packed, compute, name))
            assert not problem, f"{tokens} tokens: {problem}"


@pytest.mark.parametrize("width", [256, 768, 4096])
def test_matrices_may_be_of_any_size(
    device: Device, packed: PackedMatrices, name: str, width: int
) -> None:
    compute = device.info.compute_dtypes[0]
    x = randoms(device, compute, 3, width, seed=1)
    for rows in (1, 15, 16, 33) if width < 4096 else (5,):
        weight = Weight(device, packed, (name, rows), width=width)
        got = packed.linear(x, weight.matrices)
        problem = mismatch(got, weight.products(x), tolerance(packed, compute, name))
        assert not problem, f"{rows} rows: {problem}"


def test_a_weight_may_be_of_several_formats(
    device: Device, packed: PackedMatrices, compute: DType
) -> None:
    first, second, third = mixed(packed)
    weight = Weight(device, packed, (first, 40), (second, 24), (third, 9))
    bias = randoms(device, "float32", 73, seed=3)
    for tokens in (1, 19):
        x = randoms(device, compute, tokens, WIDTH, seed=1)
        residual = randoms(device, compute, tokens, 73, seed=4)
        got = packed.linear(x, weight.matrices, bias, residual)
        want = weight.products(x, bias) + residual.cpu()
        assert not mismatch(got, want, TOLERANCE[compute])


@pytest.mark.parametrize("activation", get_args(Activation))
def test_gated_linear(
    device: Device, packed: PackedMatrices, name: str, activation: Activation
) -> None:
    """Gate and up in one matrix, or in one each, which may be of two formats."""
    compute = device.info.compute_dtypes[0]
    other = mixed(packed, name)[1]
    for parts in (((name, 90),), ((name, 45), (other, 45))):
        weight = Weight(device, packed, *parts)
        bias = randoms(device, "float32", 90, seed=3)
        for tokens in (1, 5, 17):
            x = randoms(device, compute, tokens, WIDTH, seed=1)
            for b in (None, bias):
                got = packed.gated_linear(x, weight.matrices, activation, b)
                assert got.dtype == x.dtype
                want = gated(weight.products(x, b), activation)
                problem = mismatch(got, want, tolerance(packed, compute, name))
                assert not problem, f"{tokens} tokens: {problem}"


def test_rows_are_exact(device: Device, packed: PackedMatrices, compute: DType, name: str) -> None:
    weight = Weight(device, packed, (name, 77))
    indices = torch.tensor([76, 0, 13, 13, 32], device=device.info.torch_device)
    for which in (indices, indices.int(), indices[:0]):
        out = randoms(device, compute, len(which), WIDTH, seed=1)
        assert packed.rows(weight.matrices[0], which, out).data_ptr() == out.data_ptr()
        want = weight.values[0][which.cpu().long()].to(TORCH_DTYPE[compute])
        assert torch.equal(out.cpu(), want)


def test_a_packed_matrix_is_about_as_large_as_before(packed: PackedMatrices, name: str) -> None:
    format = FORMATS[name]
    for out, width in ((1024, 512), (512, 4096)):
        assert packed.nbytes(format, out, width) <= 1.5 * out * format.row_bytes(width)


def test_scales_may_be_of_any_sign_and_size(
    device: Device, packed: PackedMatrices, name: str
) -> None:
    """Activations, too: a row of zeros, one of which each 32 are of another size, a tiny one."""
    compute = device.info.compute_dtypes[0]
    weight = Weight(device, packed, (name, 33))
    x = randoms(device, compute, 4, WIDTH, seed=1)
    x[0] = 0
    x[1] *= 10.0 ** -(torch.arange(WIDTH, device=x.device) // 32 % 4)
    x[2] *= 2.0**-10
    got, most = packed.linear(x, weight.matrices), tolerance(packed, compute, name)
    assert not mismatch(got, weight.products(x), most)
    want = weight.products(x[2:3]) * 2**10
    assert not mismatch(got[2:3].double() * 2**10, want, most)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_what_is_not_finite_stays_in_its_row(
    device: Device, packed: PackedMatrices, name: str, odd: float
) -> None:
    compute = device.info.compute_dtypes[0]
    weight = Weight(device, packed, (name, 33))
    x = randoms(device, compute, 5, WIDTH, seed=1)
    want = weight.products(x)
    x[3, 40] = odd
    got = packed.linear(x, weight.matrices).cpu()
    assert not got[3].isfinite().any()
    others = [0, 1, 2, 4]
    assert not mismatch(got[others], want[others], tolerance(packed, compute, name))


def test_rows_of_x_may_have_any_stride(
    device: Device, packed: PackedMatrices, compute: DType
) -> None:
    x = randoms(device, compute, 9, WIDTH + 96, seed=1)[:, 32 : 32 + WIDTH]
    weight = Weight(device, packed, (mixed(packed)[0], 64))
    want = weight.products(x)
    assert not mismatch(packed.linear(x, weight.matrices), want, TOLERANCE[compute])
    got = packed.gated_linear(x, weight.matrices, "silu")
    assert not mismatch(got, gated(want, "silu"), TOLERANCE[compute])


def test_a_result_goes_where_it_is_asked_for(
    device: Device, packed: PackedMatrices, compute: DType
) -> None:
    first, second, _ = mixed(packed)
    x = randoms(device, compute, 5, WIDTH, seed=1)
    weight = Weight(device, packed, (first, 48), (second, 48)).matrices
    calls: list[Callable[[Tensor | None], Tensor]] = [
        lambda out: packed.linear(x, weight, None, None, out),
        lambda out: packed.gated_linear(x, weight, "silu", None, out),
    ]
    for call in calls:
        want = call(None)
        out = torch.full_like(want, math.nan)
        assert call(out).data_ptr() == out.data_ptr()
        assert torch.equal(out, want)


def test_a_product_may_replace_its_residual(
    device: Device, packed: PackedMatrices, compute: DType
) -> None:
    x = randoms(device, compute, 7, WIDTH, seed=1)
    residual = randoms(device, compute, 7, 64, seed=4)
    weight = Weight(device, packed, (mixed(packed)[0], 64)).matrices
    want = packed.linear(x, weight, None, residual)
    packed.linear(x, weight, None, residual, residual)
    assert torch.equal(residual, want)


@pytest.mark.usefixtures("batch_invariant")
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(
    device: Device, packed: PackedMatrices, compute: DType, name: str
) -> None:
    x = randoms(device, compute, 67, WIDTH, seed=1)
    weight = Weight(device, packed, (name, 66)).matrices
    operators: dict[str, Callable[[Tensor], Tensor]] = {
        "linear": lambda rows: packed.linear(rows, weight),
        "gated_linear": lambda rows: packed.gated_linear(rows, weight, "silu"),
    }
    for operator_name, operator in operators.items():
        together = operator(x)
        for start, stop in ((0, 1), (3, 5), (16, 32), (40, 67), (66, 67)):
            assert torch.equal(operator(x[start:stop]), together[start:stop]), (
                f"{operator_name}: rows {start}:{stop} of {len(x)}"
            )


@pytest.mark.usefixtures("batch_invariant")
def test_a_feature_has_the_same_bits_in_whatever_matrix_it_is(
    device: Device, packed: PackedMatrices, compute: DType, name: str
) -> None:
    """So that ways to stack weights do not change a text."""
    x = randoms(device, compute, 3, WIDTH, seed=1)
    both = Weight(device, packed, (name, 40), (mixed(packed, name)[1], 8)).matrices
    together = packed.linear(x, both)
    assert torch.equal(packed.linear(x, both[:1]), together[:, :40])
    assert torch.equal(packed.linear(x, both[1:]), together[:, 40:])


@pytest.mark.usefixtures("batch_invariant")
def test_weights_that_are_rounded_to_bfloat16_have_the_bits_of_those_unpacked_to_it(
    device: Device, packed: PackedMatrices, dense: DenseOps, compute: DType, name: str
) -> None:
    """Also of matrices that are no whole panels, in a weight of two."""
    if packed.rounds(FORMATS[name]) != "bfloat16":
        pytest.skip("the device does not round it so")
    bias = randoms(device, "float32", 90, seed=3)
    for parts in (((name, 90),), ((name, 45), (name, 45))):
        weight = Weight(device, packed, *parts)
        plain = torch.cat(weight.values).bfloat16().to(device.info.torch_device)
        for tokens in (*TOKENS, 1100):
            x = randoms(device, compute, tokens, WIDTH, seed=1)
            want = dense.linear(x, plain, bias, None)
            assert torch.equal(packed.linear(x, weight.matrices, bias), want)
            want = dense.gated_linear(x, plain, "silu", bias)
            assert torch.equal(packed.gated_linear(x, weight.matrices, "silu", bias), want)
