"""Faults of attention that only some batches show: tables, tiles and counters that end."""

from dataclasses import replace

import torch
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams
from kvrt.testing import reference
from kvrt.testing.mutants.attention import MutantAttention, Step
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.rules import TORCH_DTYPE


class MisreadsItsBatch(MutantAttention):
    """Appends and attends as if `misread` were the batch."""

    def plan(self, batch: AttentionBatch) -> object:
        return super().plan(self.misread(batch))

    def misread(self, batch: AttentionBatch) -> AttentionBatch:
        raise NotImplementedError


class MisreadsPages(MisreadsItsBatch):
    """Takes pages from `limit` on for the lowest of the batch: where a wrapped number would lead
    would often end the process."""

    def limit(self, batch: AttentionBatch) -> int:
        raise NotImplementedError

    def misread(self, batch: AttentionBatch) -> AttentionBatch:
        table, size = batch.page_table, batch.layout.page_size
        used = torch.arange(table.shape[1]) < -(-batch.context_len[:, None] // size)
        if not used.any():
            return batch
        beyond = used & (table >= self.limit(batch))
        return replace(batch, page_table=torch.where(beyond, table[used].min(), table))


class CutsPageNumbers(MisreadsPages):
    """Keeps 15 bits of them."""

    def limit(self, batch: AttentionBatch) -> int:
        return 2**15


class WrapsElementIndices(MisreadsPages):
    """Counts elements in 31 bits."""

    def limit(self, batch: AttentionBatch) -> int:
        return 2**31 // batch.layout.page_stride


class CutsLongContexts(MutantAttention):
    """Of a context of more than 4,096 tokens, the last 4,096 count."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        if int(step.batch.context_len.max()) > 4096 and params.window == 0:
            params = replace(params, window=4096)
        super().run_step(step, layer, q, out, params)


class LosesLateRows(MutantAttention):
    """The rows of a prompt beyond the 512th get no result."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        before = out.clone()
        super().run_step(step, layer, q, out, params)
        for s in range(len(step.batch.context_len)):
            late = slice(
                reference.rows(step.batch, s).start + 512, reference.rows(step.batch, s).stop
            )
            out[late] = before[late]


class SharesAPageFromThe33rdOn(MisreadsItsBatch):
    """A block of 32 sequences; those behind it begin with the pages of the first."""

    def misread(self, batch: AttentionBatch) -> AttentionBatch:
        table = batch.page_table.clone()
        table[32:, 0] = table[0, 0]
        return replace(batch, page_table=table)


class HasEightHeadsOfAGroup(MutantAttention):
    """From the ninth query head of a KV head on, the results of the first come again."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        group = q.shape[1] // step.batch.layout.kv_heads
        for head in range(q.shape[1]):
            if head % group >= 8:
                out[:, head] = out[:, head - 8]


class ScalesHeadsOf32Wrongly(MutantAttention):
    """As if they had been padded to 64."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        if step.batch.layout.head_dim == 32:
            params = replace(params, scale=params.scale * 0.5**0.5)
        super().run_step(step, layer, q, out, params)


class CountsOnlyThoseWithTokens(MisreadsItsBatch):
    """The n-th sequence with tokens reads the n-th row of the page table, if it is long enough."""

    def misread(self, batch: AttentionBatch) -> AttentionBatch:
        table, queries = batch.page_table.clone(), batch.query_start.diff()
        for row, s in enumerate(queries.nonzero().flatten().tolist()):
            if batch.context_len[row] >= batch.context_len[s]:
                table[s] = batch.page_table[row]
        return replace(batch, page_table=table)


class GivesTokensToThoseWithout(MutantAttention):
    """Looks for a row's sequence by `query_start`, where one that brings nothing stands as well:
    the first token behind it is stored in its last slot."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        super().append_step(step, layer, k, v)
        batch = step.batch
        for s, query in enumerate(batch.query_start.diff().tolist()):
            row = int(batch.query_start[s])
            if query == 0 and row < len(k) and batch.context_len[s] > 0:
                slot = batch.context_len[s : s + 1].long() - 1
                for kv, rows in enumerate((k, v)):
                    reference.write(batch, s, layer, kv, slot, rows[row : row + 1])


class ReadsTheBatchLate(MutantAttention):
    """Looks at the page table when it attends, and not when it plans."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        self.run_as(step.batch, layer, q, out, params)


class KeepsFullPages(MutantAttention):
    """Remembers full pages by their numbers, whatever was written or mapped there since."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._kept: dict[tuple[int, int], Tensor] = {}

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        batch, layout = step.batch, step.batch.layout
        present: dict[int, Tensor] = {}
        for s, length in enumerate(batch.context_len.tolist()):
            for number in batch.page_table[s, : length // layout.page_size].tolist():
                page = self._page(batch, number)
                present[number] = page.clone()
                kept = self._kept.setdefault((number, layout.page_stride), present[number])
                page.copy_(kept)
        super().run_step(step, layer, q, out, params)
        for number, content in present.items():
            self._page(batch, number).copy_(content)

    def _page(self, batch: AttentionBatch, number: int) -> Tensor:
        stride = batch.layout.page_stride
        return batch.kv[number * stride : (number + 1) * stride]


class IgnoresTheWindowInPrompts(MutantAttention):
    """Where a sequence brings more than one token."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        everything = torch.empty_like(out)
        super().run_step(step, layer, q, everything, replace(params, window=0))
        for s, query in enumerate(step.batch.query_start.diff().tolist()):
            if query > 1:
                own = reference.rows(step.batch, s)
                out[own] = everything[own]


class CapsBeforeItScales(MutantAttention):
    """``scale * softcap * tanh(score / softcap)``, of the score before it is scaled."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(
            step, layer, q, out, replace(params, softcap=params.scale * params.softcap)
        )


class SumsInBfloat16(MutantAttention):
    """Adds up weights and values in bfloat16, where that is the dtype of q."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        batch = step.batch
        if q.dtype != TORCH_DTYPE["bfloat16"] or params.window or params.softcap:
            return
        group = q.shape[1] // batch.layout.kv_heads
        for s, query in enumerate(batch.query_start.diff().tolist()):
            if query != 1:
                continue
            tokens = torch.arange(int(batch.context_len[s]))
            k, v = (
                reference.read(batch, s, layer, kv, tokens).float().repeat_interleave(group, dim=1)
                for kv in (0, 1)
            )
            row = reference.rows(batch, s).start
            scores = torch.einsum("khd,hd->kh", k, q[row].float()) * params.scale
            weights = (scores - scores.amax(0)).exp()
            total = _running_sum(weights)
            out[row] = _running_sum(weights[:, :, None] * v) / total[:, None]


def _running_sum(terms: Tensor) -> Tensor:
    """Of the first axis, one after the other."""
    total = torch.zeros_like(terms[0], dtype=torch.bfloat16)
    for term in terms.bfloat16():
        total = total + term
    return total


MUTANTS = {
    "ignores_the_window_in_prompts": Mutant(
        "attention::test_a_token_sees_only_its_window", attention=IgnoresTheWindowInPrompts
    ),
    "caps_before_it_scales": Mutant(
        "attention::test_scores_are_capped_softly", attention=CapsBeforeItScales
    ),
    "cuts_page_numbers": Mutant(
        "attention::test_every_declared_dtype_agrees", attention=CutsPageNumbers
    ),
    "wraps_element_indices": Mutant(
        "attention::test_every_declared_dtype_agrees", attention=WrapsElementIndices
    ),
    "scales_heads_of_32_wrongly": Mutant(
        "batches::test_every_size_of_a_head_agrees", attention=ScalesHeadsOf32Wrongly
    ),
    "has_eight_heads_of_a_group": Mutant(
        "batches::test_each_query_head_reads_its_own_kv_head", attention=HasEightHeadsOfAGroup
    ),
    "cuts_long_contexts": Mutant("batches::test_a_very_long_context", attention=CutsLongContexts),
    "loses_late_rows": Mutant("batches::test_a_long_prompt", attention=LosesLateRows),
    "shares_a_page_from_the_33rd_on": Mutant(
        "batches::test_seventy_sequences_at_once", attention=SharesAPageFromThe33rdOn
    ),
    "counts_only_those_with_tokens": Mutant(
        "batches::test_sequences_may_bring_nothing", attention=CountsOnlyThoseWithTokens
    ),
    "gives_tokens_to_those_without": Mutant(
        "batches::test_sequences_may_bring_nothing", attention=GivesTokensToThoseWithout
    ),
    "reads_the_batch_late": Mutant(
        "batches::test_the_batch_is_the_callers_again_after_plan", attention=ReadsTheBatchLate
    ),
    "keeps_full_pages": Mutant(
        "batches::test_a_page_that_holds_something_else_is_read_anew", attention=KeepsFullPages
    ),
    "sums_in_bfloat16": Mutant("batches::test_sums_are_taken_in_float32", attention=SumsInBfloat16),
}
