"""Layer norm, branches that are added, activations without a gate."""

import pytest
import torch
import torch.nn.functional as F
from kvrt_kernels import branches, norm

from kvrt.model.decoder.branches import PLAIN

SIZES = [1, 5, 64, 123, 576, 4096]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [0, 1, 3, 50])
def test_layer_norm_is_that_of_torch(isa, rows, size):
    x, weight = torch.randn(rows, size) * 3 + 2, torch.randn(size)
    for bias in (None, torch.randn(size)):
        got = branches.layer_norm(x, weight, bias, 1e-5)
        want = F.layer_norm(x.double(), (size,), weight.double(), None, 1e-5)
        want = want if bias is None else want + bias.double()
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=2e-5)


def test_a_mean_far_from_zero_costs_layer_norm_no_accuracy(isa):
    x, weight = torch.randn(4, 1000) + 1000, torch.ones(1000)
    want = F.layer_norm(x.double(), (1000,), weight.double(), None, 1e-5)
    got = branches.layer_norm(x, weight, None, 1e-5)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-3)


@pytest.mark.parametrize("size", SIZES)
def test_a_branch_is_added_with_the_bits_of_a_norm_and_a_sum(isa, size):
    x, branch, weight = torch.randn(7, size), torch.randn(7, size) * 3, torch.randn(size)
    for w, made in ((weight, norm.rms_norm(branch, weight, 1e-6)), (None, branch)):
        added = x.clone()
        branches.add_branch(added, branch, w, 1e-6, 1.0)
        assert torch.equal(added, x + made)
        branches.add_branch(added, branch, w, 1e-6, 0.25)
        torch.testing.assert_close(added, x + 1.25 * made)


@pytest.mark.parametrize("activation", branches.MAP_CODE)
@pytest.mark.parametrize("size", SIZES)
def test_activations_are_those_of_torch(isa, size, activation):
    x = torch.linspace(-12, 12, 3 * size).reshape(3, size)
    want = PLAIN[activation](x.double())
    branches.activate(x, activation)
    torch.testing.assert_close(x.double(), want, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("activation", branches.MAP_CODE)
def test_what_is_not_finite_is_seen(isa, activation):
    x = torch.tensor([[float("nan"), float("inf"), 1e30, 1.0]])
    branches.activate(x, activation)
    assert x[0].isnan().tolist() == [True, False, False, False]
    assert x[0, 1] == float("inf")


@pytest.mark.promise("P15")
@pytest.mark.parametrize("activation", branches.MAP_CODE)
def test_a_number_has_the_same_bits_at_any_place_and_in_any_batch(isa, activation):
    numbers = torch.randn(123)
    x = torch.stack([numbers.roll(turn) for turn in range(123)])
    branches.activate(x, activation, threads=2)
    for turn, row in enumerate(x):
        assert torch.equal(row.roll(-turn), x[0])


@pytest.mark.promise("P15")
def test_a_row_has_the_same_bits_in_any_batch(isa):
    x, branch, weight, bias = (
        torch.randn(*shape) for shape in ((300, 123), (300, 123), (123,), (123,))
    )
    calls = (
        lambda rows, b, threads: branches.layer_norm(rows, weight, bias, 1e-5, None, threads),
        lambda rows, b, threads: branches.add_branch(rows, b, weight, 1e-5, 1.5, threads) or rows,
        lambda rows, b, threads: branches.norm_rows(rows, weight, 1e-5, None, threads) or rows,
    )
    for call in calls:
        together = call(x.clone(), branch, 2)
        alone = [call(row[None].clone(), b[None], 1) for row, b in zip(x, branch, strict=True)]
        assert torch.equal(together, torch.cat(alone))


def test_rows_may_be_slices_and_what_is_beside_them_stays(isa):
    for call in (
        lambda rows: branches.norm_rows(rows, torch.full((123,), 2.0), 1e-5),
        lambda rows: branches.activate(rows, "gelu"),
        lambda rows: branches.scale_rows(rows, torch.arange(7.0)),
        lambda rows: branches.add_branch(rows, torch.ones(7, 123), None, 0.0, 1.0),
    ):
        wide = torch.randn(7, 300)
        before, alone = wide.clone(), wide[:, 20:143].clone()
        call(wide[:, 20:143])
        call(alone)
        assert torch.equal(wide[:, 20:143], alone)
        assert torch.equal(wide[:, :20], before[:, :20])
        assert torch.equal(wide[:, 143:], before[:, 143:])


def test_each_row_is_scaled_by_its_own_factor(isa):
    x, factors = torch.randn(5, 77), torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0])
    want = x * factors[:, None]
    branches.scale_rows(x, factors)
    assert torch.equal(x, want)
