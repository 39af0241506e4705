"""RMS norm."""

import pytest
import torch
from kvrt_kernels import norm, reference

from kvrt.errors import ContractError


@pytest.mark.parametrize("size", [1, 5, 64, 123, 576, 4096])
@pytest.mark.parametrize("rows", [0, 1, 3, 50])
def test_rows_are_normed_as_the_reference_does(isa, rows, size):
    x, weight = torch.randn(rows, size) * 3, torch.randn(size)
    got = norm.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(got, reference.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6)


def test_rows_may_be_slices(isa):
    x, weight = torch.randn(7, 300)[:, 20:143], torch.randn(123)
    assert torch.equal(norm.rms_norm(x, weight, 1e-5), norm.rms_norm(x.clone(), weight, 1e-5))


def test_a_row_of_zeros_stays_zero(isa):
    assert not norm.rms_norm(torch.zeros(1, 40), torch.ones(40), 1e-6).any()


@pytest.mark.promise("P15")
def test_a_row_has_the_same_bits_in_any_batch(isa):
    x, weight = torch.randn(300, 123), torch.randn(123)
    together = norm.rms_norm(x, weight, 1e-5, threads=2)
    alone = torch.cat([norm.rms_norm(row[None], weight, 1e-5, threads=1) for row in x])
    assert torch.equal(together, alone)


def test_tensors_of_another_shape_or_dtype_are_refused():
    x, weight = torch.zeros(2, 8), torch.zeros(8)
    for call, words in (
        (lambda: norm.rms_norm(x.double(), weight, 1e-5), "x must be float32"),
        (lambda: norm.rms_norm(x[:, :4], weight, 1e-5), "x must be float32"),
        (lambda: norm.rms_norm(x, weight.double(), 1e-5), "weight must be"),
    ):
        with pytest.raises(ContractError, match=words):
            call()
