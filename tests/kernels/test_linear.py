"""The native matrix products compute what the reference defines, in one order for any batch."""

from collections.abc import Iterator
from contextlib import contextmanager

import kvrt_kernels
import pytest
import torch
from kvrt_kernels import linear, reference
from torch.nn.functional import pad

from kvrt.errors import ContractError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = [(1, 1), (5, 123), (64, 64), (123, 96), (96, 1024), (17, 1025), (40, 2304), (200, 1056)]


ROUNDING = ("x86-64-v4-amx", "x86-64-v4-bf16", "neon-bf16")
"""Those that multiply activations rounded to bfloat16 with weights of bfloat16."""


def factor(x, w, isa):
    return x.bfloat16().float() if isa in ROUNDING and w.dtype is torch.bfloat16 else x


@contextmanager
def using(isa: str) -> Iterator[None]:
    before = kvrt_kernels.isa()
    kvrt_kernels.set_isa(isa)
    yield
    kvrt_kernels.set_isa(before)


def make(rows, out_features, in_features, dtype, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, in_features, generator=random)
    w = torch.randn(out_features, in_features, generator=random) / in_features**0.5
    return x, w.to(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), SHAPES)
def test_products_of_odd_shapes_equal_the_reference(isa, dtype, out_features, in_features):
    for rows in (1, 2, 3, 7, 13, 100, 201):
        x, w = make(rows, out_features, in_features, dtype)
        bias, residual = torch.randn(out_features), torch.randn(rows, out_features)
        got = linear.linear(x, w, bias, residual)
        want = reference.linear(factor(x, w, isa), w, bias, residual)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated_products_equal_the_reference(isa, dtype, activation):
    for rows, out_features, in_features in (
        (1, 37, 100),
        (3, 64, 576),
        (50, 96, 1030),
        (213, 45, 1100),
    ):
        x, w = make(rows, 2 * out_features, in_features, dtype)
        x *= 10  # far into both tails of the activation
        for bias in (None, torch.randn(2 * out_features)):
            got = linear.gated_linear(x, w, activation, bias)
            want = reference.gated_linear(factor(x, w, isa), w, activation, bias)
            # Values reach 400; gate and up, up to 40, each carry an error of some 1e-5.
            torch.testing.assert_close(got, want, rtol=2e-5, atol=5e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out_features", "in_features"), [(123, 100), (96, 1024), (40, 2306)])
@pytest.mark.promise("P15")
def test_a_row_has_the_same_bits_in_any_batch(isa, dtype, out_features, in_features):
    rows = 250 if in_features > 100 else 1100  # which are several blocks, too
    x, w = make(rows, 2 * out_features, in_features, dtype)
    bias = torch.randn(2 * out_features)
    plain = linear.linear(x, w, bias, threads=2)
    gated = linear.gated_linear(x, w, "silu", threads=2)
    for first, count in (
        (0, 1),
        (3, 2),
        (17, 3),
        (40, 5),
        (100, 12),
        (120, 13),
        (9, 101),
        (30, 195),
    ):
        rows = slice(first, first + count)
        for threads in (1, 2, 3):
            assert torch.equal(linear.linear(x[rows], w, bias, threads=threads), plain[rows])
            assert torch.equal(
                linear.gated_linear(x[rows], w, "silu", threads=threads), gated[rows]
            )


def test_pairs_of_bfloat16_give_the_bits_of_float32_arithmetic_on_rounded_activations():
    """So those of one instruction set can be had with the other, by rounding before."""
    if "x86-64-v4-bf16" not in kvrt_kernels.isas():
        pytest.skip("x86-64-v4-bf16 never ran: this processor has no AVX512-BF16")
    for out_features, in_features in SHAPES:
        x, w = make(40, out_features, in_features, "bfloat16")
        with using("x86-64-v4-bf16"):
            got = linear.linear(x, w)
        with using("x86-64-v4"):
            assert torch.equal(got, linear.linear(x.bfloat16().float(), w))


def test_tiles_of_amx_add_in_the_order_that_is_written_down():
    """Products of bfloat16 are exact in float32: an addition of theirs is the fused one."""
    if "x86-64-v4-amx" not in kvrt_kernels.isas():
        pytest.skip("x86-64-v4-amx never ran: this processor has no AMX")
    for out_features, in_features in SHAPES:
        x, w = make(40, out_features, in_features, "bfloat16")
        with using("x86-64-v4-amx"):
            got = linear.linear(x, w)
        left, right = (pad(m.float(), (0, -in_features % 32)) for m in (x.bfloat16(), w))
        want = torch.zeros(40, out_features)
        for step in range(0, left.shape[1], 32):
            even, odd = torch.zeros(2, 40, out_features)
            for i in range(step, step + 32, 2):
                even += left[:, i, None] * right[:, i]
                odd += left[:, i + 1, None] * right[:, i + 1]
            want += even + odd
        assert torch.equal(got, want)


def test_rows_of_x_and_residual_may_be_slices():
    x, w = make(7, 33, 100, "bfloat16")
    wide, residual = torch.randn(7, 130), torch.randn(7, 50)
    wide[:, 11:111] = x
    got = linear.linear(wide[:, 11:111], w, None, residual[:, 4:37])
    assert torch.equal(got, linear.linear(x, w, None, residual[:, 4:37].contiguous()))


def test_empty_products_are_empty_or_zero():
    assert linear.linear(torch.zeros(0, 16), torch.zeros(8, 16)).shape == (0, 8)
    assert linear.linear(torch.zeros(3, 16), torch.zeros(0, 16)).shape == (3, 0)
    for dtype in DTYPES.values():
        assert (
            linear.linear(torch.zeros(200, 0), torch.zeros(2, 0, dtype=dtype)).tolist()
            == [[0, 0]] * 200
        )


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


@pytest.mark.parametrize("rows", [1, 40, 300])
def test_a_product_may_be_added_to_its_residual_in_place(rows):
    x, w = make(rows, 50, 100, "bfloat16")
    residual = torch.randn(rows, 50)
    want = linear.linear(x, w, None, residual)
    assert linear.launch(x, w, None, residual, residual, 2) is residual
    assert torch.equal(residual, want)
