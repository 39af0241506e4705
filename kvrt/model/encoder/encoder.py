"""The encoder: what a text's tokens become, each seeing all others.

    x = norm(tokens + positions + kind)
    for each layer:
        x = norm(x + o @ attention(qkv @ x))
        x = norm(x + down @ act(up @ x))

Texts lie one behind the other, without padding, and each attends to itself alone. So a text's bits
depend on nothing but the text, where the device's products keep that rule.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from kvrt.model.checkpoint.floats import Norm
from kvrt.model.choice import choose_dtype
from kvrt.model.decoder.activations import computed_in
from kvrt.model.decoder.branches import PLAIN
from kvrt.model.decoder.ops import TorchOps
from kvrt.model.encoder.parts import attend, normed
from kvrt.model.encoder.spec import EncoderSpec, read_encoder
from kvrt.model.encoder.weights import EncoderFiles, EncoderWeights
from kvrt.spi import DenseOps, Device, DType


class Encoder:
    """An encoder on a device.

    Args:
        spec: its shape.
        weights: on the device.
        device: computes, with its own products if it has them.
        dtype: of the weights.
    """

    def __init__(
        self, spec: EncoderSpec, weights: EncoderWeights, device: Device, dtype: DType
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self._weights = weights
        self._where = device.info.torch_device
        self._computed: torch.dtype = getattr(torch, computed_in(dtype, device.info))
        dense = device.extension(DenseOps)  # type: ignore[type-abstract]
        self._ops: DenseOps = TorchOps(device.attention) if dense is None else dense

    @property
    def vocab(self) -> int:
        """Rows of the embedding."""
        return self.spec.vocab

    @property
    def positions(self) -> int:
        """Tokens of the longest text."""
        return self.spec.positions

    @property
    def width(self) -> int:
        """Of a token's state."""
        return self.spec.hidden

    @torch.inference_mode()
    def states(
        self, texts: Sequence[Sequence[int]], kinds: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor]:
        """The last states of some texts' tokens: of each float32 [tokens, hidden], on the host.

        Args:
            texts: token ids, one or more each, and at most `positions`.
            kinds: of each token, its type; None: all have the first.
        """
        w, linear = self._weights, self._ops.linear
        lengths = [len(text) for text in texts]
        tokens = torch.tensor([token for text in texts for token in text], device=self._where)
        at = torch.cat([torch.arange(length) for length in lengths]).to(self._where)
        kind = torch.zeros_like(tokens)
        if kinds is not None:
            types = torch.tensor([one for text in kinds for one in text], device=self._where)
            kind = types.clamp(max=self.spec.kinds - 1)
        summed = w.tokens[tokens].float() + w.positions[at + self.spec.first] + w.kinds[kind]
        x = self._norm(summed, w.norm)
        for layer in w.layers:
            qkv = linear(x, *layer.qkv)
            attended = torch.cat(
                [attend(own, self.spec.heads) for own in torch.split(qkv, lengths)]
            )
            x = self._norm(linear(attended, *layer.o, x), layer.attention_norm)
            wide = PLAIN[self.spec.activation](linear(x, *layer.up).float()).to(x.dtype)
            x = self._norm(linear(wide, *layer.down, x), layer.mlp_norm)
        return list(torch.split(x.float().cpu(), lengths))

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights

    def _norm(self, x: Tensor, norm: Norm) -> Tensor:
        return normed(x, norm, self.spec.norm_eps, self._computed)


def load_encoder(
    folder: Path, device: Device, *, dtype: DType | Literal["auto"] = "auto"
) -> Encoder:
    """Load an encoder from a folder in the Hugging Face layout.

    Args:
        dtype: of the matrices; ``auto`` is that of the files, or float32 if the device cannot use
            it.

    Raises:
        ModelError: the model is missing, damaged or not supported.
        ConfigError: `dtype` cannot be used here.
        CapacityError: it does not fit in the device's free memory.
    """
    spec = read_encoder(folder / "config.json")
    files = EncoderFiles(folder, spec)
    chosen = choose_dtype(dtype, files.dtype, device)
    return Encoder(spec, files.load(device, chosen), device, chosen)
