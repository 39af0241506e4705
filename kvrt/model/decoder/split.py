"""A decoder that several ranks are: what they give each other within a step.

    embedding    rows of the vocabulary      each looks up its own tokens, all have all of them
    qkv          heads                       each attends with its own, over its own pages
    o            rows, of all heads          what heads have attended to is gathered, then the rows
    gate_up      features
    down         rows, of all features       the features are gathered, then the rows
    head         rows of the vocabulary      the logits are gathered
    experts      some of them                see `spread`

Gathered rows are put beside each other, and nothing is added up: so each number comes from the same
additions in the same order as on one rank, and has the same bits.

Where ranks need not be exact, these three are otherwise, as in Megatron-LM (arXiv 1909.08053):

    embedding    rows of the vocabulary      each looks up its own tokens, 0 for others: their sum
    o            columns, of its heads       the sum of what ranks make of them
    down         columns, of its features    likewise
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from kvrt.model.decoder.ops import MixedOps
from kvrt.model.shard import Shard, Split
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.layers import Weights
from kvrt.spi import Activation, Collective, Matrices

LookUp = Callable[[Tensor, Tensor], None]
"""Writes the embeddings of some tokens, [tokens], to [tokens, hidden]."""


class Cut(NamedTuple):
    """A matrix whose rows several ranks have.

    Args:
        read: how many columns of its input each has; none: all have all.
        given: how many rows each has.
    """

    read: tuple[int, ...]
    given: tuple[int, ...]


class SplitOps:
    """The operators of a stage's ranks that are exact.

    Args:
        ops: of the device.
        others: of the stage, this one among them.
        spec: of the whole model.
        weights: of this rank.
        shard: which these are.
    """

    def __init__(
        self, ops: MixedOps, others: Collective, spec: ModelSpec, weights: Weights, shard: Shard
    ) -> None:
        self._ops = ops
        self._others = others
        self.rms_norm = ops.rms_norm
        self.rotate_append = ops.rotate_append
        vocabulary = _sizes(shard, spec.vocab)
        self._cuts = {id(weights.head): Cut((), vocabulary)}
        self._cut_layers(spec, weights, shard)
        self._ends = torch.tensor(vocabulary).cumsum(0)
        self._own_tokens = shard.span(spec.vocab)

    def _cut_layers(self, spec: ModelSpec, weights: Weights, shard: Shard) -> None:
        heads = tuple(size * spec.head_dim for size in _sizes(shard, spec.heads))
        hidden, own = _sizes(shard, spec.hidden), shard.layers(len(spec.layers))
        for layer, w in zip(spec.layers[own.start : own.stop], weights.layers, strict=True):
            self._cuts[id(w.o)] = Cut(heads, hidden)
            if features := spec.dense_width(layer):
                self._cuts[id(w.down)] = Cut(_sizes(shard, features), hidden)

    def linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `kvrt.spi.DenseOps`."""
        cut = self._cuts.get(id(weight))
        if cut is None:
            return self._ops.linear(x, weight, bias, residual, out)
        if cut.read:
            x = self._beside(x, cut.read)
        if residual is not None:
            residual = residual.split_with_sizes(cut.given, 1)[self._others.rank].contiguous()
        result = self._beside(self._ops.linear(x, weight, bias, residual), cut.given)
        return result if out is None else out.copy_(result)

    def gated_linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        activation: Activation,
        bias: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `kvrt.spi.DenseOps`."""
        return self._ops.gated_linear(x, weight, activation, bias, out)

    def embed(self, tokens: Tensor, x: Tensor, look_up: LookUp) -> None:
        """Write the embeddings of some tokens: each rank looks up those that it has rows for."""
        own, tokens = self._own_tokens, tokens.long()
        look_up((tokens - own.start).clamp(0, len(own) - 1), x)
        found = self._others.all_gather(x)
        owners = torch.searchsorted(self._ends.to(tokens.device), tokens, right=True)
        x.copy_(found[owners, torch.arange(len(tokens), device=tokens.device)])

    def _beside(self, part: Tensor, sizes: Sequence[int]) -> Tensor:
        """What all ranks have of each token, [tokens, sizes[rank]], beside each other."""
        widest = max(sizes)
        if part.shape[1] < widest:  # all give as much
            wider = part.new_empty(len(part), widest)
            wider[:, : part.shape[1]] = part
            part = wider
        found = self._others.all_gather(part.contiguous())
        return torch.cat([each[:, :size] for each, size in zip(found, sizes, strict=True)], 1)


class AddingOps(SplitOps):
    """The same of ranks that are not exact: they add up, in whatever order, what each makes of its
    own heads and features."""

    def _cut_layers(self, spec: ModelSpec, weights: Weights, shard: Shard) -> None:
        self._parts = {id(part) for layer in weights.layers for part in (layer.o, layer.down)}

    def linear(
        self,
        x: Tensor,
        weight: Tensor | Matrices,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See `kvrt.spi.DenseOps`."""
        if id(weight) not in self._parts:
            return super().linear(x, weight, bias, residual, out)
        once = bias if self._others.rank == 0 else None
        if residual is None:
            made = self._ops.linear(x, weight, once, None, out)
            self._others.all_reduce(made)
            return made
        made = self._ops.linear(x, weight, once)
        self._others.all_reduce(made)
        return torch.add(made, residual, out=made if out is None else out)

    def embed(self, tokens: Tensor, x: Tensor, look_up: LookUp) -> None:
        """As `SplitOps.embed`, and as exact: one of the numbers that are added is not 0."""
        own, tokens = self._own_tokens, tokens.long()
        look_up((tokens - own.start).clamp(0, len(own) - 1), x)
        x.masked_fill_(((tokens < own.start) | (tokens >= own.stop))[:, None], 0.0)
        self._others.all_reduce(x)


class Stage:
    """A rank's place in the line of stages.

    Args:
        split: the rank.
    """

    def __init__(self, split: Split) -> None:
        self._shard, self._world = split.shard, split.world
        self.is_first, self.is_last = self._shard.is_first, self._shard.is_last

    def take(self, x: Tensor) -> None:
        """Have what the stage before has made of the tokens, [tokens, hidden]."""
        self._world.receive(x, self._shard.rank - self._shard.parts)

    def give(self, x: Tensor) -> None:
        """Give that to the next stage."""
        self._world.send(x.contiguous(), self._shard.rank + self._shard.parts)

    def scores(self, logits: Tensor) -> Tensor:
        """The logits, [rows, vocab], which the last stage has: rank 0 gets them."""
        shard = self._shard
        last = shard.parts * (shard.stages - 1)
        if shard.rank == last:
            self._world.send(logits, 0)
        elif shard.rank == 0:
            self._world.receive(logits, last)
        return logits


def _sizes(shard: Shard, count: int) -> tuple[int, ...]:
    return tuple(map(len, shard.spans(count)))


def split_ops(ops: MixedOps, split: Split | None, spec: ModelSpec, weights: Weights) -> MixedOps:
    """The operators of a rank; those of the device, where it has all of each layer."""
    if split is None or split.tensor is None:
        return ops
    kind = SplitOps if split.shard.exact else AddingOps
    return cast(MixedOps, kind(ops, split.tensor, spec, weights, split.shard))
