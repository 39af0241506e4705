"""What families put around products, and latent attention around attention, against plain
arithmetic."""

import math
from typing import get_args

import pytest
import torch

from kvrt.spi import BranchOps, Device, DType, LatentOps, PlainActivation, Rotation
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, mismatch, randoms

DTYPES: tuple[DType, ...] = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def latents(device: Device) -> LatentOps:
    found = device.extension(LatentOps)  # type: ignore[type-abstract]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def branches(device: Device) -> BranchOps:
    found = device.extension(BranchOps)  # type: ignore[type-abstract]
    assert found is not None
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_are_multiplied_each_with_its_own_matrix_where_they_lie(
    device: Device, latents: LatentOps, dtype: DType
) -> None:
    whole, into = (randoms(device, dtype, 5, 4, 40, seed=seed) for seed in (1, 2))
    weight = randoms(device, dtype, 3, 24, 20, seed=3) / 4
    x, out, before = whole[:, 1:, 8:28], into[:, 1:, 8:32], into.clone()
    latents.by_head(x, weight, out)
    want = torch.einsum("thi,hoi->tho", x.double(), weight.double())
    assert not mismatch(out, want, TOLERANCE[dtype])
    before[:, 1:, 8:32] = out
    assert torch.equal(into, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dims", [24, 16, 0])
def test_heads_are_rotated_where_they_are_or_to_another_place(
    device: Device, latents: LatentOps, dtype: DType, dims: int
) -> None:
    """9 heads are one more than a program has."""
    angles = randoms(device, "float32", 3, dims // 2, seed=7) * 3
    rotation = Rotation(angles.cos(), angles.sin()) if dims else None
    whole, into = (randoms(device, dtype, 3, 10, 40, seed=seed) for seed in (1, 2))
    x, out = whole[:, 1:, 8:32], into[:, 1:, 8:32]
    want = x.double() if rotation is None else reference.rotate(x, rotation)
    for to, around in ((out, into), (x, whole)):
        before = around.clone()
        latents.rotate(x, rotation, to)
        assert not mismatch(to, want, TOLERANCE[dtype])
        before[:, 1:, 8:32] = to
        assert torch.equal(around, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_of_rows_in_place_to_others_and_added(
    device: Device, branches: BranchOps, dtype: DType
) -> None:
    weight, bias = (randoms(device, "float32", 70, seed=seed) for seed in (2, 3))
    wide = randoms(device, dtype, 4, 90, seed=1) + 2.0
    x = wide[:, 10:80]
    for added in (None, bias):
        want = reference.layer_norm(x, weight, added, 1e-5)
        assert not mismatch(branches.layer_norm(x, weight, added, 1e-5), want, TOLERANCE[dtype])
    out = torch.full((4, 90), math.nan, dtype=x.dtype)
    want = reference.rms_norm(x, weight, 1e-5)
    branches.norm_rows(x, weight, 1e-5, out[:, 3:73])
    assert not mismatch(out[:, 3:73], want, TOLERANCE[dtype])
    for norm, made in ((weight, want), (None, x.double())):
        to = randoms(device, dtype, 4, 70, seed=4)
        sum_of_both = to.double() + 0.25 * made
        branches.add_branch(to, x, norm, 1e-5, 0.25)
        assert not mismatch(to, sum_of_both, TOLERANCE[dtype])
    before = wide.clone()
    branches.norm_rows(x, weight, 1e-5)
    assert not mismatch(x, want, TOLERANCE[dtype])
    before[:, 10:80] = x
    assert torch.equal(wide, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_activated_and_scaled_in_place(
    device: Device, branches: BranchOps, dtype: DType
) -> None:
    """1,030 numbers are more than a program has."""
    for activation in get_args(PlainActivation):
        wide = randoms(device, dtype, 2, 1040, seed=1) * 3
        before, x = wide.clone(), wide[:, 5:1035]
        want = reference.activated(x, activation)
        branches.activate(x, activation)
        assert not mismatch(x, want, TOLERANCE[dtype])
        before[:, 5:1035] = x
        assert torch.equal(wide, before)
    x, factors = (randoms(device, dtype, *shape, seed=3) for shape in ((3, 9), (3,)))
    want = x.double() * factors.double()[:, None]
    branches.scale_rows(x, factors)
    assert not mismatch(x, want, TOLERANCE[dtype])
