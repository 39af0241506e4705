"""A device without operators for mixtures of experts computes them by those that it has."""

from dataclasses import replace
from typing import cast

import pytest
import torch

from kvrt.model.decoder.experts import PlainExperts
from kvrt.model.decoder.ops import MixedOps
from kvrt.spi import DenseOps, Device, DType, Experts, Router
from kvrt.testing import experts as reference
from kvrt.testing.paged import mismatch, randoms


@pytest.mark.parametrize(("compute", "tolerance"), [("float32", 2e-5), ("bfloat16", 5e-2)])
def test_experts_are_computed_by_the_dense_kernels(
    device: Device, compute: DType, tolerance: float
) -> None:
    dense = device.extension(DenseOps)  # type: ignore[type-abstract]
    plain = PlainExperts(cast(MixedOps, dense))
    experts = Experts(
        4,
        32,
        randoms(device, compute, 4 * 64, 64, seed=1) / 8,
        randoms(device, compute, 4 * 48, 32, seed=2) / 8,
        gate_up_bias=randoms(device, "float32", 4, 64, seed=3),
        down_bias=randoms(device, "float32", 4, 48, seed=4),
        limit=0.5,
        alpha=1.7,
    )
    x, residual = (randoms(device, compute, 5, width, seed=5) for width in (64, 48))
    logits = randoms(device, "float32", 5, 4, seed=6)
    chosen, weights = torch.empty(5, 2, dtype=torch.int32), torch.empty(5, 2)
    plain.route(logits, Router("softmax", 2), None, chosen, weights)
    for those in (experts, replace(experts, activation="clamped")):
        out = torch.empty_like(residual)
        plain.mix(x, those, chosen, weights, residual, out)
        assert isinstance(those.gate_up, torch.Tensor)
        assert isinstance(those.down, torch.Tensor)
        values = those.gate_up, those.down
        want = reference.mix(x, those, values, chosen, weights) + residual.double()
        assert not mismatch(out, want, tolerance)
