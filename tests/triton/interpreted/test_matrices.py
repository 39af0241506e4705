"""Products with packed weights, and how these are laid out, against plain arithmetic."""

import pytest
import torch
from kvrt_kernels.triton import TritonMatrices
from kvrt_kernels.triton.matrices import SPAN
from kvrt_kernels.triton.packing import packing_of
from torch import Tensor

from kvrt.spi import Device, DType, Matrices, Matrix, PackedMatrices, WeightFormat
from kvrt.testing import matrices, reference
from kvrt.testing.matrices import FORMATS
from kvrt.testing.paged import TOLERANCE, mismatch, randoms

ODD = {
    **FORMATS,
    "int3 by 96": WeightFormat("int3 by 96", 3, 96, "float16", zero=4),
    "int7 by 16": WeightFormat("int7 by 16", 7, 16, "float32", zero=64),
    "int1 by row": WeightFormat("int1 by row", 1, 0, "float16", offset="float16"),
    "table of 256": WeightFormat(
        "table of 256", 8, 64, "float16", table=tuple(range(127, -129, -1))
    ),
}
WIDTHS = {"int8 by row": 83, "int1 by row": 150, "q4_0": 96, "q8_0": 32, "int3 by 96": 480}
"""Odd ones; 256 elements or 2 of them otherwise."""


@pytest.fixture(scope="module")
def packed(device: Device) -> PackedMatrices:
    found = device.extension(PackedMatrices)
    assert found is not None
    return found


def make(
    packed: PackedMatrices, format: WeightFormat, out: int, width: int, seed: int = 1
) -> tuple[Matrix, Tensor]:
    """A matrix, in memory that nobody has cleared, and its values."""
    plain = matrices.random_rows(format, out, width, seed)
    nbytes = packed.nbytes(format, out, width)
    memory = torch.full((nbytes + 128,), 0xFF, dtype=torch.uint8)
    into = memory[-memory.data_ptr() % 128 :][:nbytes]
    return packed.pack(format, plain, width, into), matrices.values(format, plain, width)


@pytest.mark.parametrize("name", ODD)
def test_rows_are_a_formats_exactly_and_products_are_theirs(
    device: Device, packed: PackedMatrices, name: str
) -> None:
    """37 features are a whole program's and some of another's."""
    format = ODD[name]
    assert packed.multiplies(format)
    assert packed.rounds(format) == "none"
    width = WIDTHS.get(name, 256 if format.fits(256) else 512)
    matrix, values = make(packed, format, 37, width)
    indices = torch.tensor([36, 0, 5], dtype=torch.int32)
    assert torch.equal(packed.rows(matrix, indices, torch.empty(3, width)), values[indices.long()])
    x = randoms(device, "float32", 3, width, seed=2)
    want = reference.linear(x, values, None, None)
    assert not mismatch(packed.linear(x, (matrix,)), want, TOLERANCE["float32"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_not_rounded_to_the_dtype_of_activations(
    device: Device, packed: PackedMatrices, dtype: DType
) -> None:
    """1.01 is a scale that no such dtype holds; a result of 8 bits would show it."""
    format = FORMATS["int8 by row"]
    matrix, _ = make(packed, format, 1, 64)
    plain = torch.zeros(1, format.row_bytes(64), dtype=torch.uint8)
    plain[0, :64] = 129  # 1 more than the zero
    plain[0, 64:] = torch.tensor([1.01]).view(torch.uint8)
    matrix = packed.pack(format, plain, 64, matrix.data)
    x = torch.zeros(1, 64, dtype=getattr(torch, dtype))
    x[0, 0], residual = 1, torch.tensor([[-1.0]], dtype=x.dtype)
    got = packed.linear(x, (matrix,), None, residual)
    assert abs(got.item() - 0.01) < 1e-4


@pytest.fixture(scope="module")
def stack(packed: PackedMatrices) -> tuple[Matrices, Tensor]:
    """Matrices of three formats whose rows are two spans and a bit."""
    made = [
        make(packed, FORMATS[name], out, 2304, seed)
        for seed, (name, out) in enumerate((("q8_0", 33), ("q4_k", 8), ("fp8 by 128", 5)))
    ]
    return tuple(matrix for matrix, _ in made), torch.cat([values for _, values in made])


@pytest.mark.parametrize("tokens", [3, 17])
def test_spans_of_long_rows_are_added_whether_in_programs_of_their_own_or_not(
    device: Device, packed: PackedMatrices, stack: tuple[Matrices, Tensor], tokens: int
) -> None:
    weight, values = stack
    x = randoms(device, "bfloat16", tokens, 2304, seed=3)
    bias, residual = (
        randoms(device, "float32", 46, seed=4),
        randoms(device, "bfloat16", tokens, 46, seed=5),
    )
    got = packed.linear(x, weight, bias, residual)
    want = reference.linear(x, values, bias, residual)
    assert not mismatch(got, want, TOLERANCE["bfloat16"])


def test_a_row_has_the_same_bits_alone_and_among_a_few(
    device: Device, packed: PackedMatrices, stack: tuple[Matrices, Tensor]
) -> None:
    weight = stack[0][2:]
    x = randoms(device, "float32", 16, 2304, seed=3)
    together = packed.linear(x, weight)
    for first, last in ((0, 1), (0, 5), (9, 10)):
        assert torch.equal(packed.linear(x[first:last], weight), together[first:last])


def test_a_step_without_tokens_is_no_launch(
    packed: PackedMatrices, stack: tuple[Matrices, Tensor]
) -> None:
    assert packed.linear(torch.empty(0, 2304), stack[0]).shape == (0, 46)
    assert packed.gated_linear(torch.empty(0, 2304), stack[0][1:2], "silu").shape == (0, 4)


def test_a_span_is_whole_steps_of_every_format() -> None:
    for group in range(0, 257, 16):
        for bits in range(1, 9):
            how = packing_of(WeightFormat("any", bits, group, "float16"))
            assert SPAN % how.elements == 0
            assert how.step % how.run == 0
            assert not group or group % (how.run * how.piece) == 0


def test_groups_that_are_no_whole_pieces_are_left_to_the_caller() -> None:
    for group in (8, 24, 40):
        assert not TritonMatrices("sm_90").multiplies(WeightFormat("odd", 4, group, "float16"))
