"""The optional operators of branches against plain arithmetic."""

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from kvrt.spi import BranchOps, Device, DType, PlainActivation
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, mismatch, randoms

TOKENS = [1, 3, 40]
WIDTHS = [5, 64, 576, 1000]


@pytest.fixture
def branches(device: Device) -> BranchOps:
    found = device.extension(BranchOps)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer BranchOps")
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_layer_norm(device: Device, branches: BranchOps, compute: DType, width: int) -> None:
    weight, bias = (randoms(device, "float32", width, seed=seed) for seed in (2, 3))
    for tokens in TOKENS:
        x = randoms(device, compute, tokens, width, seed=1) + 2.0
        for added, eps in ((None, 1e-5), (bias, 1e-2)):
            want = reference.layer_norm(x, weight, added, eps)
            got = branches.layer_norm(x, weight, added, eps)
            assert got.dtype == x.dtype
            assert not mismatch(got, want, TOLERANCE[compute])
            out = torch.full_like(got, math.nan)
            assert branches.layer_norm(x, weight, added, eps, out).data_ptr() == out.data_ptr()
            assert torch.equal(out, got)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_branch_is_added(
    device: Device, branches: BranchOps, compute: DType, width: int, scale: float
) -> None:
    weight = randoms(device, "float32", width, seed=2)
    for tokens in TOKENS:
        branch = randoms(device, compute, tokens, width, seed=1) * 3
        for norm, made in ((weight, reference.rms_norm(branch, weight, 1e-5)), (None, branch)):
            x = randoms(device, compute, tokens, width, seed=4)
            want = x.cpu().double() + scale * made.cpu().double()
            branches.add_branch(x, branch, norm, 1e-5, scale)
            assert not mismatch(x, want, TOLERANCE[compute])


@pytest.mark.parametrize("activation", get_args(PlainActivation))
def test_activations(
    device: Device, branches: BranchOps, compute: DType, activation: PlainActivation
) -> None:
    for width in WIDTHS:
        x = randoms(device, compute, 7, width, seed=1) * 3
        want = reference.activated(x, activation)
        branches.activate(x, activation)
        assert not mismatch(x, want, TOLERANCE[compute])


def test_what_is_changed_in_place_may_be_a_part_of_rows(
    device: Device, branches: BranchOps, compute: DType
) -> None:
    norm = randoms(device, "float32", 100, seed=3)
    factors = randoms(device, compute, 9, seed=5)
    calls: list[tuple[Callable[[Tensor], None], Callable[[Tensor], Tensor]]] = [
        (
            lambda x: branches.norm_rows(x, norm, 1e-5),
            lambda x: reference.rms_norm(x, norm, 1e-5),
        ),
        (
            lambda x: branches.scale_rows(x, factors),
            lambda x: x.cpu().double() * factors.cpu().double()[:, None],
        ),
        (
            lambda x: branches.activate(x, "relu2"),
            lambda x: reference.activated(x, "relu2"),
        ),
        (
            lambda x: branches.add_branch(x, torch.ones_like(x), None, 0.0, 2.0),
            lambda x: x.cpu().double() + 2.0,
        ),
    ]
    for call, plain in calls:
        wide = randoms(device, compute, 9, 200, seed=1)
        before, part = wide.clone(), wide[:, 30:130]
        want = plain(part)
        call(part)
        assert not mismatch(part, want, TOLERANCE[compute])
        assert torch.equal(wide[:, :30], before[:, :30])
        assert torch.equal(wide[:, 130:], before[:, 130:])


def test_rows_are_normed_to_other_rows(device: Device, branches: BranchOps, compute: DType) -> None:
    """As the heads of keys become those of values."""
    wide, into = (randoms(device, compute, 9, 200, seed=seed) for seed in (1, 2))
    norm = randoms(device, "float32", 100, seed=3)
    want, before, kept = reference.rms_norm(wide[:, 30:130], norm, 1e-5), wide.clone(), into.clone()
    branches.norm_rows(wide[:, 30:130], norm, 1e-5, into[:, 7:107])
    assert not mismatch(into[:, 7:107], want, TOLERANCE[compute])
    assert torch.equal(wide, before)
    assert torch.equal(into[:, :7], kept[:, :7])
    assert torch.equal(into[:, 107:], kept[:, 107:])
