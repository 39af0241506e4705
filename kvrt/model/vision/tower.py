"""The tower: what the pixels of an image become.

    x = patches @ pixels + positions
    for each layer:
        x += o @ attention(qkv @ norm(x))
        x += down @ gelu(up @ norm(x))
    states = projection @ norm(pool(norm(x)))       one for each square of patches

Each image is computed by itself, so its states' bits depend on nothing else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.checkpoint.floats import Norm
from kvrt.model.decoder.activations import computed_in
from kvrt.model.decoder.ops import TorchOps
from kvrt.model.encoder.parts import attend, normed
from kvrt.model.vision.spec import VisionSpec
from kvrt.model.vision.weights import TowerWeights
from kvrt.spi import DenseOps, Device, DType


class Tower:
    """A vision tower on a device.

    Args:
        spec: its shape.
        weights: on the device.
        device: computes, with its own products if it has them.
        dtype: of the weights.
    """

    def __init__(
        self, spec: VisionSpec, weights: TowerWeights, device: Device, dtype: DType
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._where = device.info.torch_device
        self._computed: torch.dtype = getattr(torch, computed_in(dtype, device.info))
        dense = device.extension(DenseOps)  # type: ignore[type-abstract]
        self._ops: DenseOps = TorchOps(device.attention) if dense is None else dense

    @torch.inference_mode()
    def states(self, pixels: Tensor) -> Tensor:
        """The states of an image, [`VisionSpec.tokens`, `VisionSpec.out`], on the device.

        Args:
            pixels: uint8 [3, side, side], on the host.
        """
        spec, w, linear = self._spec, self._weights, self._ops.linear
        x = linear(self._patches(pixels), *w.patches).add_(w.positions)
        for layer in w.layers:
            qkv = linear(self._norm(x, layer.attention_norm), *layer.qkv)
            x = linear(attend(qkv, spec.heads), *layer.o, x)
            wide = linear(self._norm(x, layer.mlp_norm), *layer.up)
            x = linear(F.gelu(wide, approximate="tanh"), *layer.down, x)
        side, pooled = spec.patches // spec.pooled, spec.pooled
        squares = self._norm(x, w.norm).view(side, pooled, side, pooled, spec.hidden)
        means = squares.float().mean((1, 3)).view(spec.tokens, spec.hidden).to(self._computed)
        normed = F.rms_norm(means.float(), (spec.hidden,), w.pooled_norm, spec.norm_eps)
        return linear(normed.to(self._computed), w.projection)

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights

    def _patches(self, pixels: Tensor) -> Tensor:
        """The pixels of each patch, made numbers around 0, [patches, 3 * patch * patch]."""
        spec, count, patch = self._spec, self._spec.patches, self._spec.patch
        used = pixels[:, : count * patch, : count * patch]
        values = (used.double() * spec.scale).float()
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.mean, spec.std))
        squares = ((values - mean) / std).view(3, count, patch, count, patch)
        rows = squares.permute(1, 3, 0, 2, 4).reshape(count * count, -1)
        return rows.to(self._where, self._computed)

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        return normed(x, norm, self._spec.norm_eps, self._computed)
