"""Torch on the device: each operator that kvrt needs there, against torch on the host."""

import pytest
import torch

from kvrt.spi import Device, DType
from kvrt.testing.operators import LAYERS, SAMPLING, Example
from kvrt.testing.paged import TOLERANCE
from kvrt.wrappers.rules import TORCH_DTYPE


@torch.inference_mode()
def assert_agrees(device: Device, example: Example, dtype: DType) -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).to(TORCH_DTYPE[dtype])
    want = example(lambda tensor: tensor, x)
    got = example(lambda tensor: tensor.to(device.info.torch_device), x)
    for mine, theirs in zip(_tuple(got), _tuple(want), strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(mine.cpu(), theirs, rtol=tolerance, atol=tolerance)


def _tuple(result: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_computes_layers(device: Device, compute: DType, name: str) -> None:
    assert_agrees(device, LAYERS[name], compute)


@pytest.mark.parametrize("name", SAMPLING)
def test_torch_samples(device: Device, name: str) -> None:
    assert_agrees(device, SAMPLING[name], "float32")
