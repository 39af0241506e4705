"""The decoder: one transformer for every supported architecture, driven by its spec.

    x = embedding[tokens]
    for each layer:
        q, k, v = qkv @ norm(x)         rotated; k and v go to the KV pages
        x += o @ attention(q, pages)
        x += down @ (act(gate @ norm(x)) * (up @ norm(x)))
    logits = head @ norm(x)             for the rows that were asked for

What families do otherwise is in `branches`, and what layers have in place of attention in `mixers`.
Nothing that is kept here outlives a step: the KV pages are the only memory, and they belong to the
cache.
"""

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kvrt.model.decoder import branches
from kvrt.model.decoder.activations import Activations, Heads, computed_in
from kvrt.model.decoder.branches import Branches
from kvrt.model.decoder.experts import Mixture
from kvrt.model.decoder.graphs import DecodeGraphs, padded
from kvrt.model.decoder.latent import Latents
from kvrt.model.decoder.layer import Layer, Place
from kvrt.model.decoder.mixers import Mixer
from kvrt.model.decoder.ops import MixedOps, TorchOps
from kvrt.model.decoder.pieces import pieces
from kvrt.model.decoder.rope import RotationTable, positions_of
from kvrt.model.decoder.seen import Plans, Seen, Turns, deepened, plans_of, put, turned
from kvrt.model.decoder.split import SplitOps, Stage, split_ops
from kvrt.model.lora.adapter import Adapters
from kvrt.model.lora.ops import AdaptedOps, Segment, segments_of
from kvrt.model.offload.pool import ExpertPool
from kvrt.model.shard import Split
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.layers import Weights
from kvrt.spi import (
    AttentionBatch,
    BranchOps,
    Capability,
    DenseOps,
    Device,
    DType,
    GraphCapture,
    LowRankOps,
    PackedMatrices,
    StateBatch,
    StepBatch,
)


class Decoder:
    """A model on a device.

    Args:
        spec: its shape.
        weights: its weights, on the device.
        device: computes, with its own `DenseOps` if it has them and in plain torch if not. Weights
            that are codes need its `PackedMatrices`.
        dtype: of the weights; activations have it too if the device computes in it, and
            otherwise the dtype the device prefers.
        max_positions: the longest context that will be asked for.
        groups: the layers whose pages are in one place, for each of a step's batches; None: those
            that keep memory alike, as in `ModelSpec.groups`.
        pool: experts that are brought as needed; `close` closes it.
        split: other ranks have the rest of the model, and `weights` are this one's.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        device: Device,
        dtype: DType,
        max_positions: int,
        groups: Sequence[Sequence[int]] | None = None,
        pool: ExpertPool | None = None,
        split: Split | None = None,
    ) -> None:
        if groups is None:
            groups = [group.layers for group in spec.groups[: spec.own_groups]]
        self._stage: Stage | None = None
        whole = spec
        if split is not None:
            groups = [split.shard.of_group(spec, tuple(layers)) for layers in groups]
            spec = split.shard.local(spec)
            self._stage = Stage(split) if split.shard.stages > 1 else None
        self.spec = spec
        self.weights = weights
        self.max_positions = max_positions
        self.dtype = computed_in(dtype, device.info)
        self._torch_dtype: torch.dtype = getattr(torch, self.dtype)
        self._torch_device = device.info.torch_device
        self._attention = device.attention
        dense = device.extension(DenseOps)  # type: ignore[type-abstract]
        ops = TorchOps(device.attention) if dense is None else dense
        self._packed = device.extension(PackedMatrices)  # type: ignore[type-abstract]
        # Without weights that are codes, no call needs to look what its weight is.
        self._ops = cast(MixedOps, ops)
        if self._packed is not None and weights.packed:
            self._ops = MixedOps(ops, self._packed)
        self._ops = split_ops(self._ops, split, whole, weights)
        own = device.extension(BranchOps)  # type: ignore[type-abstract]
        self._branches = Branches(spec, self._ops, own, self._torch_device)
        # As floats beside codes, and else as the weights are, if the device multiplies such.
        own_dtype = dtype in device.info.weight_dtypes and not weights.packed
        adapted = dtype if own_dtype else self.dtype
        self.adapters = Adapters(spec, weights, device, adapted, whole=split is None)
        self._low_rank = device.extension(LowRankOps)  # type: ignore[type-abstract]
        self._mixture = Mixture(spec, self._ops, device, pool, split)
        self._pool = pool
        self._mixer = Mixer(spec, device)
        self._latents = None if spec.latent is None else Latents(spec.latent, self._ops, device)
        self._work: Activations | None = None
        capture = device.extension(GraphCapture)  # type: ignore[type-abstract]
        self._graphs: DecodeGraphs | None = None
        if (
            capture is not None
            and dense is not None
            and not isinstance(self._ops, SplitOps)  # ranks talk within a step
            and branches.recordable(spec, self._branches.recordable, self._mixture.recordable)
            and (self._latents is None or self._latents.recordable)
        ):
            ragged = Capability.RAGGED_GRAPHS in device.info.capabilities
            self._graphs = DecodeGraphs(capture, ragged)
        self._tables = [
            RotationTable(rope, spec.head_dim, max_positions, self._torch_device)
            for rope in spec.ropes
        ]
        places: list[list[Place]] = [[] for _ in spec.layers]
        for batch, layers in enumerate(groups):
            for number, layer in enumerate(layers):
                places[layer].append((batch, number))
        self._layers = [self._layer(number, places[number]) for number in range(len(spec.layers))]

    def close(self) -> None:
        """Give the weights back, and all that steps were computed in. It computes no more."""
        self._graphs = self._work = None
        self._layers = []
        if self._pool is not None:
            self._pool.close()
        del self.weights, self._tables

    def forward(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        logits_rows: Tensor,
        adapters: Sequence[int] | None = None,
        seen: Sequence[Seen] = (),
        turns: Turns | None = None,
    ) -> Tensor:
        """One step: store the tokens' keys and values, and compute the logits asked for.

        Args:
            tokens: int32 or int64 [tokens], on the host; all sequences, one after the other.
            batches: where each sequence's pages are, and which of the tokens are its own; one
                batch for each of the `groups`, of the same sequences, first those that attend.
            logits_rows: int32 or int64 [rows], on the host; the tokens whose logits are wanted.
            adapters: [sequences]; the numbers of their adapters, 0: of none. None: of none at all.
            seen: what stands in place of tokens' own embeddings.
            turns: by what tokens are rotated; None: by their places.

        Returns:
            float32 [rows, vocab], on the device. Of several ranks, only the first has them.
        """
        if self._stage is not None and not self._stage.is_last:
            self._run(tokens, batches, adapters, seen, turns)
            shape = logits_rows.numel(), self.spec.vocab
            logits = torch.empty(shape, device=self._torch_device)
            return self._stage.scores(logits) if logits.numel() else logits
        if not logits_rows.numel():
            self._run(tokens, batches, adapters, seen, turns)
            return torch.empty(0, self.spec.vocab, device=self._torch_device)
        return self._logits(self._last(tokens, batches, logits_rows, adapters, seen, turns))

    def states(self, tokens: Tensor, batches: Sequence[StepBatch], rows: Tensor) -> Tensor:
        """The same with what the head reads, in place of logits: float32 [rows, hidden]."""
        return self._last(tokens, batches, rows).float()

    def _last(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        rows: Tensor,
        adapters: Sequence[int] | None = None,
        seen: Sequence[Seen] = (),
        turns: Turns | None = None,
    ) -> Tensor:
        """The last states of some rows, normed."""
        x = self._of_rows(self._run(tokens, batches, adapters, seen, turns), rows)
        return self._branches.norm(x, self.weights.final_norm, self.weights.final_norm_bias)

    def _of_rows(self, x: Tensor, rows: Tensor) -> Tensor:
        if rows.tolist() == [*range(len(x))]:  # a decode step asks for those of all tokens
            return x
        return x.index_select(0, rows.to(self._torch_device))

    def _logits(self, states: Tensor) -> Tensor:
        logits = self._ops.linear(states, self.weights.head, self.weights.head_bias)
        logits = branches.finish(self.spec, logits.float())
        return logits if self._stage is None else self._stage.scores(logits)

    def _run(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        adapters: Sequence[int] | None,
        seen: Sequence[Seen],
        turns: Turns | None,
    ) -> Tensor:
        """A step's layers: what the last one here leaves of each token, which the next stage gets
        if there is one."""
        x = self._run_own(tokens, batches, adapters, seen, turns)
        if self._stage is not None and not self._stage.is_last:
            self._stage.give(x)
        return x

    def _run_own(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        adapters: Sequence[int] | None,
        seen: Sequence[Seen],
        turns: Turns | None,
    ) -> Tensor:
        count, first = tokens.numel(), cast(AttentionBatch, batches[0])
        segments = segments_of(first.query_start.tolist(), adapters) if adapters else ()
        recorded = not seen and (not segments or self._low_rank is not None)
        size = self._graphs.size(count, first) if self._graphs and recorded else 0
        tokens = tokens.to(self._torch_device)
        if self._graphs is not None and size:
            to_size = [padded(cast(AttentionBatch, batch), size) for batch in batches]
            graph, work = self._graphs.of_size(
                size, to_size, self._allocate, self._record(segments), segments
            )
            x = work.x
            if size > count:
                x[count:].zero_()
                x = x[:count]
            self._begin(tokens, to_size[0], x, work, turns)
            graph.replay(to_size)
            return x
        work = self._activations(count)
        self._begin(tokens, first, work.x, work, turns)
        put(seen, work.x)
        plans = plans_of(self._attention, batches, self._plan, seen)
        self._record(segments, seen)(plans, work)
        return work.x

    def _plan(self, batch: StepBatch) -> object:
        planner = self._mixer if isinstance(batch, StateBatch) else self._attention
        return planner.plan(batch)  # type: ignore[arg-type]

    def _begin(
        self,
        tokens: Tensor,
        batch: AttentionBatch,
        x: Tensor,
        work: Activations,
        turns: Turns | None,
    ) -> None:
        """Embed the tokens in `x`, and look up how they are rotated, as padding is, too."""
        if self._stage is not None and not self._stage.is_first:
            self._stage.take(x)
        else:
            for piece in pieces(len(tokens), self.spec.hidden, self._torch_device):
                self._embed(tokens[piece], x[piece])
        positions = positions_of(batch)
        for table, rotation in zip(self._tables, work.rotations, strict=True):
            turned(table, positions, turns, rotation)
        if self.weights.positions is not None:
            rows = torch.from_numpy(positions[: len(x)]).to(self._torch_device)
            x.add_(self.weights.positions.index_select(0, rows))
        if self.spec.query_beta:
            work.heat[: len(positions), 0, 0] = branches.heat_at(self.spec, positions)

    def _embed(self, tokens: Tensor, x: Tensor) -> None:
        if isinstance(self._ops, SplitOps):
            self._ops.embed(tokens, x, self._look_up)
        else:
            self._look_up(tokens, x)
        if self.spec.embedding_scale != 1.0:
            x.mul_(self.spec.embedding_scale)

    def _look_up(self, tokens: Tensor, x: Tensor) -> None:
        embedding = self.weights.embedding
        if isinstance(embedding, Tensor):
            x.copy_(F.embedding(tokens, embedding))
        else:
            assert self._packed is not None
            self._packed.rows(embedding[0], tokens, x)

    def _record(
        self, segments: Sequence[Segment], seen: Sequence[Seen] = ()
    ) -> Callable[[Sequence[object], Activations], None]:
        """What makes the calls of a step, some of whose tokens have adapters."""
        if not segments:
            return functools.partial(self._run_layers, self._ops, layers=self._layers, seen=seen)

        def record(plans: Sequence[object], work: Activations) -> None:
            adapted = AdaptedOps(self._ops, self._low_rank, segments, self.adapters.by_number)
            self._run_layers(cast(MixedOps, adapted), plans, work, self._layers, seen)

        return record

    def _run_layers(
        self,
        ops: MixedOps,
        plans: Sequence[object],
        work: Activations,
        layers: Sequence[Layer],
        seen: Sequence[Seen] = (),
    ) -> None:
        """Some layers, from the embedded tokens in ``work.x`` to the last layer's output there."""
        spec = self.spec
        run = plans.run if isinstance(plans, Plans) else self._attention.run
        parallel, latents = spec.parallel, self._latents
        around = self._branches.by(ops)
        norm, mlp, add = around.norm, around.mlp, around.add
        x, normed, gated = work.x, work.normed, work.gated
        usual, finish = work.usual, deepened(self._branches.finish, seen)
        for one in layers:
            w, states = one.weights, one.states
            heads = work.whole if one.whole and work.whole else usual
            attended, mixed = heads.attended, heads.rows
            read = norm(x, w.attention_norm, w.attention_norm_bias, normed)
            if states is not None:
                kept = self._mixer.mix(plans[states:], one.state, read, w, work, ops)
            if one.attends:
                plan = plans[one.batch]
                self._append(one, plan, read, heads, work, ops)
                self._branches.heat(work, one.heat, one.rope is not None)
                run(plan, one.number, heads.q, attended, one.attention)
                if latents is not None:
                    latents.values(w, work)
                self._branches.gate(work)
            if states is not None:
                add(kept, w.mixer_out, w.mixer_out_bias, None, x, normed, spec.mixed_scale)
            if one.attends and not parallel:
                add(mixed, w.o, w.o_bias, w.attention_post_norm, x, normed, spec.attended_scale)
            if not one.feeds:
                continue
            if w.mlp_norm is not None or not parallel:
                read = norm(x, w.mlp_norm, w.mlp_norm_bias, normed)
            if one.experts is not None:
                self._mixture.add(read, w, one.experts, work, ops)
                finish(x, w)
                continue
            mlp(read, w, gated)
            if parallel:
                add(mixed, w.o, w.o_bias, w.attention_post_norm, x, normed, spec.attended_scale)
            add(gated, w.down, w.down_bias, w.mlp_post_norm, x, normed, spec.fed_scale)
            finish(x, w)

    def _append(
        self,
        layer: Layer,
        plan: object,
        read: Tensor,
        heads: Heads,
        work: Activations,
        ops: MixedOps,
    ) -> None:
        """Of what a layer reads: store its keys and values, and make its queries."""
        w = layer.weights
        ops.linear(read, w.qkv, w.qkv_bias, None, heads.qkv)
        rotation = None if layer.rope is None else work.rotations[layer.rope]
        if self._latents is not None:
            self._latents.append(self._attention, plan, layer.number, w, work, rotation, ops)
            return
        self._branches.norm_whole(w, work)
        self._branches.values(heads.k, heads.v, layer.whole)
        ops.rotate_append(plan, layer.number, heads.q, heads.k, heads.v, rotation, layer.norm)

    def _activations(self, count: int) -> Activations:
        """Those of a step of `count` tokens. The same ones as long as the count stays."""
        if self._work is None or self._work.tokens != count:
            self._work = None  # first free the old ones
            self._work = self._allocate(count)
        return self._work

    def _allocate(self, count: int) -> Activations:
        return Activations.empty(self.spec, count, self._torch_dtype, self._torch_device)

    def _layer(self, number: int, places: Sequence[Place]) -> Layer:
        """Args: places: of its pages; first those it attends to."""
        spec, w = self.spec.every_layer[number], self.weights.every_layer[number]
        experts = self._mixture.experts_of(number, w)
        return Layer.of(self.spec, spec, w, places, experts, self._torch_device)
