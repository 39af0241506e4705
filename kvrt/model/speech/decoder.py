"""The decoder: tokens that see those before them, and all of a sound.

    x = tokens + positions
    for each layer:
        x += o @ attention(qkv @ norm(x))           over the text's pages
        x += o @ attention(q @ norm(x))             over the sound's pages
        x += down @ act(up @ norm(x))
    logits = tokens @ norm(x)

Keys and values of both lie in pages of one shape: a sound is a row of pages as a text is, written
once, and read by every text that is about it.
"""

import torch
from torch import Tensor

from kvrt.model.decoder.branches import PLAIN
from kvrt.model.encoder.parts import normed
from kvrt.model.speech.spec import NORM_EPS, SpeechSpec
from kvrt.model.speech.weights import DecoderWeights
from kvrt.spi import AttentionBatch, AttentionParams, DenseOps, PagedAttention


class SpeechDecoder:
    """A decoder on a device.

    Args:
        ops: the device's products, or torch's.
        attention: the device's.
        computed: dtype of activations.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        weights: DecoderWeights,
        ops: DenseOps,
        attention: PagedAttention,
        computed: torch.dtype,
    ) -> None:
        self._spec = spec
        self._weights = weights
        self._ops = ops
        self._attention = attention
        self._computed = computed
        scale = spec.head_dim**-0.5
        self._text = AttentionParams(scale)
        self._sound = AttentionParams(scale, causal=False)

    def plan(self, batch: AttentionBatch) -> object:
        """What `hear` and `forward` are to be called with, for rows of pages. The batch's arrays
        are the caller's again."""
        return self._attention.plan(batch)

    def hear(self, plan: object, states: Tensor) -> None:
        """Write what tokens attend to into a sound's pages.

        Args:
            plan: of its row, which brings all its frames as new.
            states: [frames, hidden], of the encoder.
        """
        shape = len(states), 2, self._spec.decoder_heads, self._spec.head_dim
        for number, layer in enumerate(self._weights.layers):
            keys, values = self._ops.linear(states, *layer.cross.kv).view(shape).unbind(1)
            self._attention.append(plan, number, keys.contiguous(), values.contiguous())

    def forward(
        self, tokens: Tensor, at: Tensor, texts: object, sounds: object, wanted: Tensor
    ) -> Tensor:
        """Compute new tokens of some texts; float32 [wanted, vocab], on the host.

        Args:
            tokens: their ids, int64 [tokens], text after text.
            at: their positions, int64 [tokens].
            texts: a plan of the texts' rows.
            sounds: a plan of the rows of what each is about, with as many tokens for each text.
            wanted: which tokens' logits, int64.
        """
        w, linear, spec = self._weights, self._ops.linear, self._spec
        where, count = w.embedding.device, len(tokens)
        act = PLAIN[spec.activation]
        embedded = w.embedding[tokens.to(where)].float()
        x = (embedded + w.positions[at.to(where)].float()).to(self._computed)
        heads = count, spec.decoder_heads, spec.head_dim
        attended = x.new_empty(heads)
        for number, (own, cross, mlp) in enumerate(w.layers):
            read = normed(x, own.norm, NORM_EPS, self._computed)
            q, k, v = linear(read, *own.qkv).view(count, 3, *heads[1:]).unbind(1)
            self._attention.append(texts, number, k.contiguous(), v.contiguous())
            self._attention.run(texts, number, q.contiguous(), attended, self._text)
            x = linear(attended.flatten(1), *own.o, x)
            read = normed(x, cross.norm, NORM_EPS, self._computed)
            q = linear(read, *cross.q).view(heads)
            self._attention.run(sounds, number, q, attended, self._sound)
            x = linear(attended.flatten(1), *cross.o, x)
            read = normed(x, mlp.norm, NORM_EPS, self._computed)
            x = linear(act(linear(read, *mlp.up).float()).to(self._computed), *mlp.down, x)
        last = normed(x[wanted.to(where)], w.norm, NORM_EPS, self._computed)
        return linear(last, w.embedding).float().cpu()

    def close(self) -> None:
        """Give the weights back. It computes no more."""
        del self._weights
