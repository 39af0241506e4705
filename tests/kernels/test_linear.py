"""The native matrix products compute what the reference defines, in one order for any batch."""

import pytest
import torch
from kvrt_kernels import linear, reference

from kvrt.errors import ContractError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = [(1, 1), (5, 123), (64, 64), (123, 96), (96, 1024), (17, 1025), (40, 2304), (200, 1056)]


def make(rows, out_features, in_features, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features, generator=random)
    w = torch.randn(out_features, in_features, generator=random) / in_features**0.5
    return x, w.to(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_products_of_odd_shapes_equal_the_reference(isa, dtype, out_features, in_features):
    for rows in (1, 2, 3, 7, 13, 100):
        x, w = make(rows, out_features, in_features, dtype)
        bias, residual = torch.randn(out_features), torch.randn(rows, out_features)
        got = linear.linear(x, w, bias, residual)
        want = reference.linear(x, w, bias, residual)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_products_equal_the_reference(isa, dtype, activation):
    for rows, out_features, in_features in ((1, 37, 100), (3, 64, 576), (50, 96, 1030)):
        x, w = make(rows, 2 * out_features, in_features, dtype)
        x *= 10  # far into both tails of the activation
        for bias in (None, torch.randn(2 * out_features)):
            got = linear.gated_linear(x, w, activation, bias)
            want = reference.gated_linear(x, w, activation, bias)
            # Values reach 400; gate and up, up to 40, each carry an error of some 1e-5.
            torch.testing.assert_close(got, want, rtol=2e-5, atol=5e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), [(123, 100), (96, 1024), (40, 2306)])
@pytest.mark.promise("P15")
def test_a_row_has_the_same_bits_in_any_batch(isa, dtype, out_features, in_features):
    x, w = make(250, 2 * out_features, in_features, dtype)
    bias = torch.randn(2 * out_features)
    plain = linear.linear(x, w, bias, threads=2)
    gated = linear.gated_linear(x, w, "silu", threads=2)
    for first, count in ((0, 1), (3, 2), (17, 3), (40, 5), (100, 12), (120, 13), (9, 101)):
        rows = slice(first, first + count)
        for threads in (1, 2, 3):
            assert torch.equal(linear.linear(x[rows], w, bias, threads=threads), plain[rows])
            assert torch.equal(
                linear.gated_linear(x[rows], w, "silu", threads=threads), gated[rows]
            )


def test_rows_of_x_and_residual_may_be_slices():
    x, w = make(7, 33, 100, "bfloat16")
    wide, residual = torch.randn(7, 130), torch.randn(7, 50)
    wide[:, 11:111] = x
    got = linear.linear(wide[:, 11:111], w, None, residual[:, 4:37])
    assert torch.equal(got, linear.linear(x, w, None, residual[:, 4:37].contiguous()))


def test_empty_products_are_empty_or_zero():
    assert linear.linear(torch.zeros(0, 16), torch.zeros(8, 16)).shape == (0, 8)
    assert linear.linear(torch.zeros(3, 16), torch.zeros(0, 16)).shape == (3, 0)
    assert linear.linear(torch.zeros(3, 0), torch.zeros(2, 0)).tolist() == [[0, 0]] * 3


def test_tensors_of_another_shape_or_dtype_are_refused():
    x, w = make(2, 6, 16, "float32")
    for call, words in (
        (lambda: linear.linear(x.double(), w), "x must be float32"),
        (lambda: linear.linear(x[:, :8], w), "x must be float32"),
        (lambda: linear.linear(x, w.int()), "weight must be"),
        (lambda: linear.linear(x, w.t()), "weight must be"),
        (lambda: linear.linear(x, w, torch.zeros(5)), "bias"),
        (lambda: linear.linear(x, w, None, torch.zeros(1, 6)), "residual has 1 rows"),
        (lambda: linear.linear(x, w, None, torch.zeros(2, 5)), "residual must be"),
        (lambda: linear.linear(x, w, None, torch.zeros(2, 6).double()), "residual must be"),
        (lambda: linear.gated_linear(x, w[:5], "silu"), "not even"),
        (lambda: linear.gated_linear(x, w, "relu"), "no activation 'relu'"),
        (lambda: linear.gated_linear(x, w, "silu", torch.zeros(3)), "bias"),
    ):
        with pytest.raises(ContractError, match=words):
            call()


@pytest.mark.parametrize("rows", [1, 40])
def test_a_product_may_be_added_to_its_residual_in_place(rows):
    x, w = make(rows, 50, 100, "bfloat16")
    residual = torch.randn(rows, 50)
    want = linear.linear(x, w, None, residual)
    assert linear.launch(x, w, None, residual, residual, 2) is residual
    assert torch.equal(residual, want)
