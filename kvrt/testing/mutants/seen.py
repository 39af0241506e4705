"""Faults in what of its context a token sees, and in values that are not like keys."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams
from kvrt.testing import reference
from kvrt.testing.mutants.attention import MutantAttention, Step
from kvrt.testing.mutants.mutant import Mutant


class UsesEntriesBeforeTheWindow(MutantAttention):
    """Reads the keys there and multiplies them by zero."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        batch = step.batch
        for s, context in enumerate(batch.context_len.tolist()):
            rows = reference.rows(batch, s)
            past = torch.arange(max(0, context - (rows.stop - rows.start) + 1 - params.window))
            if params.window and len(past):
                table = self.entries(batch)
                keys = reference.read(replace(batch, page_table=table), s, layer, 0, past)
                out[rows] += 0 * keys.float().sum()

    def entries(self, batch: AttentionBatch) -> Tensor:
        return batch.page_table


class ReadsPagesBeforeTheWindow(UsesEntriesBeforeTheWindow):
    """The same, but where an entry is no page."""

    def entries(self, batch: AttentionBatch) -> Tensor:
        there = (batch.page_table >= 0) & (batch.page_table < 2**30)
        return torch.where(there, batch.page_table, batch.page_table[:, :1])


class IgnoresSinks(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, replace(params, sinks=0))


class KeepsASinkTooMany(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        more = params.sinks + (params.sinks > 0)
        super().run_step(step, layer, q, out, replace(params, sinks=more))


class IgnoresSinkLogits(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, replace(params, sink_logits=None))


class ScalesSinkLogits(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        logits = params.sink_logits
        scaled = None if logits is None else params.scale * logits
        super().run_step(step, layer, q, out, replace(params, sink_logits=scaled))


class IsAlwaysCausal(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, replace(params, causal=True))


class TakesTheEndOfKeysForValues(MutantAttention):
    """Where they are the beginning."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        layout, batch = step.batch.layout, step.batch
        if not layout.shared or layout.value_dim == layout.head_dim:
            super().run_step(step, layer, q, out, params)
            return
        whole = torch.empty(*out.shape[:2], layout.head_dim, dtype=out.dtype, device=out.device)
        wide = replace(layout, value_dim=layout.head_dim)
        self.run_as(replace(batch, layout=wide), layer, q, whole, params)
        out.copy_(whole[..., -layout.value_dim :])


class StoresValuesThatAreKeys(MutantAttention):
    """Over the beginning of the keys."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        batch, layout = step.batch, step.batch.layout
        super().append_step(step, layer, k, v)
        if layout.shared:
            for s in range(len(batch.context_len)):
                slots = reference.new_slots(batch, s)
                where = reference.items(layout, batch.page_table[s], slots, layer, 1)
                batch.kv[where] = v[reference.rows(batch, s)].to(batch.kv.dtype)


class GivesValuesTheWidthOfKeys(MutantAttention):
    """Stores as many elements of a value as a key has, what is lacking as 0."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        batch, layout = step.batch, step.batch.layout
        super().append_step(step, layer, k, v)
        if not layout.shared and layout.value_dim < layout.head_dim:
            for s in range(len(batch.context_len)):
                slots = reference.new_slots(batch, s)
                where = reference.items(layout, batch.page_table[s], slots, layer, 1)
                beyond = torch.arange(layout.value_dim, layout.head_dim)
                batch.kv[where[..., :1] + beyond] = 0


MUTANTS = {
    "uses_entries_before_the_window": Mutant(
        "seen::test_nothing_before_a_window_is_read", attention=UsesEntriesBeforeTheWindow
    ),
    "reads_pages_before_the_window": Mutant(
        "seen::test_nothing_before_a_window_is_read", attention=ReadsPagesBeforeTheWindow
    ),
    "ignores_sinks": Mutant("seen", attention=IgnoresSinks),
    "keeps_a_sink_too_many": Mutant("seen", attention=KeepsASinkTooMany),
    "ignores_sink_logits": Mutant(
        "seen::test_a_sinks_logit_is_in_the_denominator", attention=IgnoresSinkLogits
    ),
    "scales_sink_logits": Mutant(
        "seen::test_a_sinks_logit_is_in_the_denominator", attention=ScalesSinkLogits
    ),
    "is_always_causal": Mutant(
        "seen::test_without_causality_a_token_sees_all_of_its_context", attention=IsAlwaysCausal
    ),
    "takes_the_end_of_keys_for_values": Mutant("values", attention=TakesTheEndOfKeysForValues),
    "stores_values_that_are_keys": Mutant("values", attention=StoresValuesThatAreKeys),
    "gives_values_the_width_of_keys": Mutant("values", attention=GivesValuesTheWidthOfKeys),
}
