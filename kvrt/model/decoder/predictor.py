"""A decoder with a layer behind its last one that guesses at the token after the next (DeepSeek-AI
2024, arXiv 2412.19437, section 2.2; Gloeckle et al. 2024, arXiv 2404.19737).

    step      x = layers(embedding[tokens])                     as without
              states = norm(x)
    predictor joined @ [norm(embedding[token]), norm(state of the token before)]
              its layer, norm, the model's own output matrix    the token behind

So its slot of a token depends on that token and those before it, as all others do: pages of it are
found again by their names, forked and moved. States are kept in pages, too, as what a recurrence
convolves: each token reads that of the token before it, wherever that was computed. Before a text
there is none, and 0.

A step stores what the predictor needs of its tokens, which is one product and the layer's keys and
values. The whole layer computes only what is drafted from. Behind its own drafts it goes on with
its own states in place of the model's, and with what it has stored for them; the step that verifies
these writes its own there.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from kvrt.model.decoder.activations import Activations
from kvrt.model.decoder.decoder import Decoder
from kvrt.model.decoder.recurrence import TorchRecurrence
from kvrt.model.decoder.seen import Seen, Turns, put
from kvrt.model.offload.pool import ExpertPool
from kvrt.model.shard import Split
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.layers import Weights
from kvrt.spi import AttentionBatch, Device, DType, Recurrence, StateBatch, StepBatch


class PredictingDecoder(Decoder):
    """See `Decoder`. A step has two more batches, the last ones, of the predictor's groups.

    Args:
        spec: with a predictor.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        device: Device,
        dtype: DType,
        max_positions: int,
        pool: ExpertPool | None = None,
        split: Split | None = None,
    ) -> None:
        assert split is None, "it is not cut into parts"
        super().__init__(spec, weights, device, dtype, max_positions, pool=pool)
        assert weights.predictor is not None
        self._w = weights.predictor
        self._behind = self._layer(len(spec.layers), [(0, 0)])
        own = device.extension(Recurrence)  # type: ignore[type-abstract]
        self._states: Recurrence = TorchRecurrence() if own is None else own
        # A convolution that gives the token before each, as it is.
        self._shift = torch.tensor([[1.0, 0.0]], device=self._torch_device)
        self._shift = self._shift.repeat(spec.hidden, 1)

    def close(self) -> None:
        super().close()
        del self._w, self._behind

    def predict(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        rows: Tensor,
        turns: Turns | None = None,
    ) -> Tensor:
        """What the predictor takes for the token behind some of these.

        Each is in the slot behind one that `forward` has computed, or this.

        Args:
            tokens: int32 or int64 [tokens], on the host; one of each sequence.
            batches: of the predictor's groups; see `forward`.
            rows: int32 or int64 [rows], on the host; the tokens behind which it is wanted.
            turns: see `forward`.

        Returns:
            float32 [rows, vocab], on the device.
        """
        work = self._activations(tokens.numel())
        embedded = self._begun(tokens, batches, work, turns)
        plan = self._states.plan(cast(StateBatch, batches[1]))
        work.x.copy_(self._read(plan, torch.zeros_like(embedded), embedded))
        kept = self._attention.plan(cast(AttentionBatch, batches[0]))
        self._run_layers(self._ops, [kept], work, [self._behind])
        states = self._branches.norm(work.x, self._w.predicted_norm, None)
        self._before(plan, states)
        return self._logits(self._of_rows(states, rows))

    def _run(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        adapters: Sequence[int] | None,
        seen: Sequence[Seen],
        turns: Turns | None,
    ) -> Tensor:
        x = super()._run(tokens, batches[:-2], adapters, seen, turns)
        self._keep(tokens, batches[-2:], x, seen, turns)
        return x

    def _keep(
        self,
        tokens: Tensor,
        batches: Sequence[StepBatch],
        x: Tensor,
        seen: Sequence[Seen],
        turns: Turns | None,
    ) -> None:
        """Store what the predictor needs of a step's tokens, of each of which the layers made x."""
        work, layer = self._activations(tokens.numel()), self._behind
        states = self._branches.norm(x, self.weights.final_norm, self.weights.final_norm_bias)
        embedded = self._begun(tokens, batches, work, turns)
        put(seen, embedded)
        read = self._read(self._states.plan(cast(StateBatch, batches[1])), states, embedded)
        read = self._branches.norm(read, self._w.attention_norm, None, work.normed)
        plan = self._attention.plan(cast(AttentionBatch, batches[0]))
        self._append(layer, plan, read, work.usual, work, self._ops)

    def _begun(
        self, tokens: Tensor, batches: Sequence[StepBatch], work: Activations, turns: Turns | None
    ) -> Tensor:
        """The embedded tokens, [tokens, hidden]."""
        embedded = torch.empty_like(work.x)
        tokens = tokens.to(self._torch_device)
        self._begin(tokens, cast(AttentionBatch, batches[0]), embedded, work, turns)
        return embedded

    def _read(self, plan: object, states: Tensor, embedded: Tensor) -> Tensor:
        """What the layer reads of tokens, whose states are stored: [tokens, hidden]."""
        before = self._before(plan, states)
        norm, w = self._branches.norm, self._w
        both = (norm(embedded, w.token_norm, None), norm(before, w.state_norm, None))
        return self._ops.linear(torch.cat(both, 1), w.joined)

    def _before(self, plan: object, states: Tensor) -> Tensor:
        """Store tokens' states, and read those of the tokens before them."""
        before = torch.empty_like(states)
        self._states.convolve(plan, 0, states, self._shift, None, "none", before)
        return before
