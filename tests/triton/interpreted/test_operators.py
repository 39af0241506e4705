"""The operators around attention, against plain arithmetic."""

import math
from typing import get_args

import kvrt_kernels.reference as plain
import pytest
import torch
from kvrt_kernels.triton.copy import copy_pages
from kvrt_kernels.triton.gate import gated
from kvrt_kernels.triton.norm import rms_norm

from kvrt.errors import ContractError
from kvrt.spi import Activation, DenseOps, Device, DType, HeadNorm, Rotation
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, Case, PagedKV, fill_past, mismatch, randoms

DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_of_rows_of_any_width_and_stride(device: Device, dtype: DType) -> None:
    for width in (5, 64, 1000):
        x = randoms(device, dtype, 3, width + 7, seed=1)[:, 7:]
        weight = randoms(device, "float32", width, seed=2)
        problem = mismatch(
            rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), TOLERANCE[dtype]
        )
        assert not problem, f"width {width}: {problem}"


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_activation(device: Device, dtype: DType, activation: Activation) -> None:
    """1,030 is more than one block; the ends of the scale neither overflow nor lose their sign."""
    x = 3 * randoms(device, dtype, 2, 2 * 1030, seed=1)
    x[0, :2] = torch.tensor([80.0, -80.0])
    for bias in (None, randoms(device, "float32", 2 * 1030, seed=2)):
        eye = torch.eye(2 * 1030, dtype=torch.float64)
        want = reference.gated_linear(x, eye, activation, bias)
        assert not mismatch(gated(x, activation, bias), want, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "normed"),
    [(64, 64, False), (80, 40, True), (128, 128, True), (64, 0, True), (96, 32, False)],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_rotation_and_append(
    device: Device, dtype: DType, head_dim: int, rotary_dim: int, normed: bool
) -> None:
    """9 heads: one more than a program takes."""
    case = Case((5, 33), (5, 2), heads=9, kv_heads=1, head_dim=head_dim, compute=dtype, kv=dtype)
    angle = torch.rand(7, rotary_dim // 2) * 6
    rotation = Rotation(angle.cos(), angle.sin()) if rotary_dim else None
    scales = [1 + 0.2 * randoms(device, "float32", head_dim, seed=seed) for seed in (5, 6)]
    norm = HeadNorm(*scales, eps=1e-6) if normed else None
    dense = device.extension(DenseOps)
    assert dense is not None
    with PagedKV(device, case.layout, case.pages) as pages:
        batch = pages.batch([pages.take(n) for n in case.contexts], case.contexts, case.queries)
        fill_past(batch)
        qkv = randoms(device, dtype, 7, 11, head_dim, seed=1)
        q, k, v = qkv[:, :9], qkv[:, 9:10], qkv[:, 10:]
        want = reference.normed_and_rotated(q.clone(), k.clone(), rotation, norm)
        dense.rotate_append(device.attention.plan(batch), 1, q, k, v, rotation, norm)
        assert not mismatch(q, want[0], TOLERANCE[dtype])
        assert not mismatch(k, want[1], TOLERANCE[dtype])
        for s in range(2):
            rows, new = reference.rows(batch, s), reference.new_slots(batch, s)
            assert torch.equal(reference.read(batch, s, 1, 0, new), k[rows])
            assert torch.equal(reference.read(batch, s, 1, 1, new), v[rows])


def test_linear_adds_what_it_is_given_and_writes_where_it_is_told(device: Device) -> None:
    dense = device.extension(DenseOps)
    assert dense is not None
    x, residual = (
        randoms(device, "float32", 5, 33, seed=1),
        randoms(device, "float32", 5, 7, seed=2),
    )
    weight, bias = randoms(device, "float16", 7, 33, seed=3), randoms(device, "float32", 7, seed=4)
    for b in (None, bias):
        for r in (None, residual):
            out = torch.full((5, 7), math.nan)
            assert dense.linear(x, weight, b, r, out) is out
            want = plain.linear(x, weight, b, r)
            assert not mismatch(out, want, 1e-5)


def test_pages_are_copied_whole_and_nothing_else_changes() -> None:
    for dtype, elements in ((torch.float32, 5000), (torch.bfloat16, 4098)):
        kv = torch.randn(6 * elements).to(dtype)
        want = kv.clone().view(6, elements)
        ids = torch.tensor([[4, 0], [1, 5]], dtype=torch.int32)
        want[[1, 5]] = want[[4, 0]]
        copy_pages(kv, elements, ids)
        assert torch.equal(kv.view(6, elements), want)


def test_a_page_of_an_odd_number_of_bytes_is_refused() -> None:
    ids = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ContractError, match="multiple of 4 bytes"):
        copy_pages(torch.zeros(9, dtype=torch.float16), 3, ids)
