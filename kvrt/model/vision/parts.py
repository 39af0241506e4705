"""What towers compute with."""

import torch
from torch import Tensor

from kvrt.model.decoder.activations import computed_in
from kvrt.model.decoder.ops import TorchOps
from kvrt.model.vision.spec import VisionSpec
from kvrt.spi import DenseOps, Device, DType


class TowerOps:
    """A device's products, or torch's, and what leads to them.

    Args:
        device: computes.
        dtype: of matrices.
    """

    def __init__(self, device: Device, dtype: DType) -> None:
        self.dtype: torch.dtype = getattr(torch, computed_in(dtype, device.info))
        self._where = device.info.torch_device
        dense = device.extension(DenseOps)  # type: ignore[type-abstract]
        self.linear = (TorchOps(device.attention) if dense is None else dense).linear

    def values(self, pixels: Tensor, spec: VisionSpec) -> Tensor:
        """Pixels as numbers around 0, as transformers' image processor makes them: float32 [3,
        height, width], on the host.

        Args:
            pixels: uint8, of that shape.
        """
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.mean, spec.std))
        return ((pixels.double() * spec.scale).float() - mean) / std

    def floats(self, values: Tensor) -> Tensor:
        """Values on the device, in float32."""
        return values.to(self._where, torch.float32)

    def place(self, values: Tensor) -> Tensor:
        """Values on the device, in the dtype that it computes in."""
        return values.to(self._where, self.dtype)
