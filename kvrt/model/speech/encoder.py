"""The encoder of sound:

    x = act(conv2(act(conv1(features)))) + positions
    for each layer:
        x += o @ attention(qkv @ norm(x))
        x += down @ act(up @ norm(x))
    x = norm(x)

Every frame sees all others of its window. A convolution over three frames is a product with these
three side by side, so that its bits are as the device's products make them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.decoder.branches import PLAIN
from kvrt.model.encoder.parts import attend, normed
from kvrt.model.speech.spec import NORM_EPS, SpeechSpec
from kvrt.model.speech.weights import EncoderWeights
from kvrt.spi import DenseOps

KERNEL = 3
STRIDE = 2
"""Of the second convolution; the first makes a frame of each."""


class SoundEncoder:
    """An encoder on a device.

    Args:
        ops: the device's products, or torch's.
        computed: dtype of activations.
    """

    def __init__(
        self, spec: SpeechSpec, weights: EncoderWeights, ops: DenseOps, computed: torch.dtype
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._ops = ops
        self._computed = computed

    def states(self, features: Tensor) -> Tensor:
        """What the decoder attends to: [frames, hidden], on the device.

        Args:
            features: float32 [bins, 2 * frames], on the device.
        """
        w, linear = self._weights, self._ops.linear
        act = PLAIN[self._spec.activation]
        x = features.t().to(self._computed)
        for convolution, stride in zip(w.convolutions, (1, STRIDE), strict=True):
            beside = F.pad(x, (0, 0, 1, 1)).unfold(0, KERNEL, stride).flatten(1)
            x = act(linear(beside, *convolution).float()).to(self._computed)
        x = x + w.positions.to(self._computed)
        for attention, mlp in w.layers:
            read = normed(x, attention.norm, NORM_EPS, self._computed)
            attended = attend(linear(read, *attention.qkv), self._spec.encoder_heads)
            x = linear(attended, *attention.o, x)
            read = normed(x, mlp.norm, NORM_EPS, self._computed)
            wide = act(linear(read, *mlp.up).float()).to(self._computed)
            x = linear(wide, *mlp.down, x)
        return normed(x, w.norm, NORM_EPS, self._computed)

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights
