"""Products with weights that stay codes: the reference's, with the same bits everywhere."""

from dataclasses import replace
from functools import cache

import kvrt_kernels
import pytest
import torch
from kvrt_kernels import attention, packed, panels
from kvrt_kernels.linear import gated_linear, linear
from kvrt_kernels.program import Program

from kvrt.errors import ContractError
from kvrt.spi import WeightFormat
from kvrt.testing import matrices, reference

EXACT = matrices.FORMATS
"""Of which there are products with activations as they are."""
FORMATS = {name: format for name, format in EXACT.items() if format.codes == "whole"}
"""Of which there are products with activations in codes."""
FP8 = {
    format.name: format
    for format in (
        EXACT["fp8 by 128"],
        WeightFormat("fp8 by row", 8, 0, "float32", codes="e4m3"),
        WeightFormat("fp8 by 32", 8, 32, "float32", codes="e4m3"),
    )
}
"""Of which there are products with weights that are rounded to bfloat16."""
SHAPES = [(1, 1), (33, 3), (77, 2), (90, 5)]
"""Rows, and how many of the shortest width that the format has."""


def shortest(format):
    return next(width for width in range(32, 512, 32) if format.fits(width))


@cache
def make(name, out, width, rows=40):
    format = (EXACT | FP8)[name]
    plain = matrices.random_rows(format, out, width, seed=1)
    into = torch.empty(panels.nbytes(format, out, width), dtype=torch.uint8)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(2))
    return x, panels.pack(format, plain, width, into), matrices.values(format, plain, width)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("out", "times"), SHAPES)
def test_products_are_those_of_codes_with_codes_on_every_instruction_set(name, out, times):
    """The reference is in float64; all that is rounded here are the sums over blocks."""
    x, matrix, values = make(name, out, times * shortest(FORMATS[name]), rows=70)
    want = reference.linear(reference.as_codes(x), values, None, None)
    before, found = kvrt_kernels.isa(), []
    for isa in kvrt_kernels.isas():
        kvrt_kernels.set_isa(isa)
        found.append(packed.linear(x, (matrix,), threads=2))
    kvrt_kernels.set_isa(before)
    torch.testing.assert_close(found[0].double(), want, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(found[0], other) for other in found)


@pytest.mark.parametrize("name", EXACT)
def test_exact_products_have_the_bits_of_those_with_unpacked_weights(isa, name):
    """Also where a row is more than one of the blocks that sums are taken over, and not by 32."""
    short, long = shortest(EXACT[name]), 1024 + 32
    for out, width in ((33, short), (18, long if EXACT[name].fits(long) else 1280)):
        x, matrix, values = make(name, out, width, rows=27)
        for rows in (x, x[:1]):
            got = packed.linear(rows, (matrix,), threads=2, exact=True)
            assert torch.equal(got, linear(rows, values, threads=2))


def test_exact_products_of_several_matrices_have_the_bits_of_those_with_unpacked_weights(isa):
    """Gate and up, too, apart and together, where up begins within a panel."""
    x, gate, gate_values = make("q4_1", 45, 768)
    _, up, up_values = make("fp8 by 128", 45, 768)
    bias, residual = torch.randn(90), torch.randn(40, 90)
    values = torch.cat((gate_values, up_values))
    got = packed.linear(x, (gate, up), bias, residual, exact=True)
    assert torch.equal(got, linear(x, values, bias, residual))
    got = packed.gated_linear(x, (gate, up), "silu", bias, exact=True)
    assert torch.equal(got, gated_linear(x, values, "silu", bias))
    _, both, values = make("q6_k", 90, 768)
    got = packed.gated_linear(x, (both,), "gelu_tanh", exact=True)
    assert torch.equal(got, gated_linear(x, values, "gelu_tanh"))


@pytest.mark.parametrize("name", FP8)
def test_products_of_fp8_have_the_bits_of_those_with_weights_unpacked_to_bfloat16(isa, name):
    """For few rows and many, in one matrix and several that are no whole panels, and where a row is
    more than one of the blocks that sums are taken over."""
    widths = (128, 1152, 2304) if FP8[name].group else (1, 40, 333, 1100)
    for width in widths:
        x, gate, gate_values = make(name, 45, width, rows=67)
        _, up, up_values = make(name, 13, width)
        values = torch.cat((gate_values, up_values)).bfloat16()
        bias, residual = torch.randn(58), torch.randn(67, 58)
        for rows in (slice(1), slice(3, 20), slice(67)):
            got = packed.linear(x[rows], (gate, up), bias, residual[rows], threads=2)
            assert torch.equal(got, linear(x[rows], values, bias, residual[rows], threads=2))
        _, both, values = make(name, 58, width)
        got = packed.gated_linear(x, (both,), "silu", threads=2)
        assert torch.equal(got, gated_linear(x, values.bfloat16(), "silu", threads=2))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.promise("P15")
def test_a_row_has_the_same_bits_in_any_batch(isa, name):
    x, matrix, _ = make(name, 122, 768, rows=420)  # several blocks of rows
    bias = torch.randn(122)
    plain = packed.linear(x, (matrix,), bias, threads=2)
    gated = packed.gated_linear(x, (matrix,), "silu", threads=2)
    for first, count in ((0, 1), (3, 2), (17, 3), (40, 5), (100, 12), (9, 101)):
        rows = slice(first, first + count)
        for threads in (1, 2, 3):
            assert torch.equal(
                packed.linear(x[rows], (matrix,), bias, threads=threads), plain[rows]
            )
            again = packed.gated_linear(x[rows], (matrix,), "silu", threads=threads)
            assert torch.equal(again, gated[rows])


def test_gate_and_up_may_be_apart_and_of_two_formats(isa):
    """Also where up begins within a panel."""
    x, gate, gate_values = make("q4_1", 45, 192)
    _, up, up_values = make("q8_0", 45, 192)
    products = [
        reference.linear(reference.as_codes(x), w, None, None) for w in (gate_values, up_values)
    ]
    want = torch.nn.functional.silu(products[0]) * products[1]
    got = packed.gated_linear(x, (gate, up), "silu")
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)
    _, both, values = make("q4_0", 90, 192)
    parts = reference.linear(reference.as_codes(x), values, None, None).chunk(2, dim=1)
    got = packed.gated_linear(x, (both,), "silu")
    torch.testing.assert_close(
        got.double(), torch.nn.functional.silu(parts[0]) * parts[1], rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("name", EXACT)
def test_a_matrix_in_panels_is_as_large_as_in_a_file_and_gives_its_rows_back(name):
    """Up to scales of six bits that are bytes, and of other kinds that are float32 beside zeros."""
    _, matrix, values = make(name, 96, 512)
    in_file = 96 * EXACT[name].row_bytes(512)
    most = {"q2_k": 1.2, "q3_k": 1.04, "q4_k": 1.03, "q5_k": 1.03, "tq2_0": 1.05}
    most |= {"mxfp4": 1.24, "nvfp4": 1.12, "iq4_xs": 1.03}
    assert matrix.data.nbytes <= in_file * most.get(name, 1.02)
    for which in (torch.tensor([95, 0, 17, 17]), torch.tensor([], dtype=torch.int32)):
        got = panels.rows(matrix, which, torch.empty(len(which), 512))
        assert torch.equal(got, values[which.long()])


def test_a_row_with_one_scale_may_be_of_any_width(isa):
    for width in (1, 31, 40, 333):
        x, matrix, values = make("int8 by row", 19, width, rows=3)
        want = reference.linear(reference.as_codes(x), values, None, None)
        got = packed.linear(x, (matrix,))
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        read = panels.rows(matrix, torch.tensor([18, 3]), torch.empty(2, width))
        assert torch.equal(read, values[[18, 3]])
        assert torch.equal(packed.linear(x, (matrix,), exact=True), linear(x, values))


def test_matrices_of_one_weight_may_be_of_any_number_and_format(isa):
    """More than a call of the kernel takes, too; rows need not be whole panels."""
    names = list(FORMATS)
    made = [make(name, 5 + 3 * i, 768, rows=3) for i, name in enumerate(names)]
    x = made[0][0]
    weight = tuple(matrix for _, matrix, _ in made)
    bias = torch.randn(sum(matrix.out for matrix in weight))
    residual = torch.randn(3, len(bias))
    together = packed.linear(x, weight, bias, residual)
    apart = torch.cat([packed.linear(x, (matrix,)) for matrix in weight], dim=1)
    assert torch.equal(together, apart + bias + residual)


def test_numbers_too_large_too_small_or_none_are_rounded_as_the_contract_says(isa):
    x, matrix, values = make("q8_0", 33, 64, rows=6)
    x = x.clone()
    x[0] *= 2.0**-90
    x[1, :32] *= 2.0**-110
    x[2] = 0
    x[3] *= 2.0**100
    x[4, 40], x[5, 3] = torch.inf, torch.nan
    got = packed.linear(x, (matrix,))
    want = reference.linear(reference.as_codes(x[:4]), values, None, None)
    torch.testing.assert_close(got[:4].double(), want, rtol=1e-4, atol=0)
    assert got[4:].isnan().all()


def test_recorded_products_have_the_same_bits(cache):
    paged = cache([5, 6])
    plan = attention.plan(paged.batch({0: (1, 5), 1: (1, 6)}))
    x, gate, _ = make("q4_1", 45, 192, rows=2)
    _, up, _ = make("q8_0", 45, 192)
    y, gated = torch.zeros(2, 90), torch.zeros(2, 45)

    def products(plans):
        packed.linear(x, (gate, up), None, None, y, 2)
        packed.gated_linear(x, (gate, up), "silu", None, gated, 2)

    program = Program([plan], products, 2)
    assert not y.any()
    program.run([plan])
    assert torch.equal(y, packed.linear(x, (gate, up)))
    assert torch.equal(gated, packed.gated_linear(x, (gate, up), "silu"))


def test_formats_without_products_and_tensors_of_another_shape_are_refused():
    x, matrix, _ = make("q4_0", 33, 64)
    assert all(panels.packing_of(format) is not None for format in EXACT.values())
    odd = replace(matrix, format=WeightFormat("odd", 7, 32, "float16"))
    with pytest.raises(ContractError, match="there are no products with odd"):
        packed.linear(x, (odd,))
    fp8, codes = make("fp8 by 128", 3, 128)[1], make("q8_0", 3, 128)[1]
    with pytest.raises(ContractError, match="round to bfloat16 and codes"):
        packed.linear(torch.zeros(1, 128), (fp8, codes))
    with pytest.raises(ContractError, match="x must be float32"):
        packed.linear(x[:, :32], (matrix,))
    with pytest.raises(ContractError, match="bias"):
        packed.linear(x, (matrix,), torch.zeros(5))
    with pytest.raises(ContractError, match="gate and up are 1 matrices of 33"):
        packed.gated_linear(x, (matrix,), "silu")
