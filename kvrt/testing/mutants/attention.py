"""Faults of paged attention."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvrt.spi import AttentionBatch, AttentionParams, Capability
from kvrt.testing import reference
from kvrt.testing.mutants.mutant import Mutant
from kvrt.wrappers.parts import WrappedAttention


@dataclass(frozen=True, slots=True)
class Step:
    """A plan and the batch it was made of."""

    plan: object
    batch: AttentionBatch


class MutantAttention(WrappedAttention):
    """Correct attention that knows its batch; mutants replace `append_step` or `run_step`."""

    def plan(self, batch: AttentionBatch) -> object:
        return Step(super().plan(batch), batch)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        assert isinstance(plan, Step)
        self.append_step(plan, layer, k, v)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        assert isinstance(plan, Step)
        self.run_step(plan, layer, q, out, params)

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        super().append(step.plan, layer, k, v)

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run(step.plan, layer, q, out, params)

    def run_as(
        self, batch: AttentionBatch, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        """Attend as if the batch had been another one."""
        self.inner.run(self.inner.plan(batch), layer, q, out, params)


class IgnoresTheScale(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        usual = step.batch.layout.head_dim**-0.5
        super().run_step(step, layer, q, out, replace(params, scale=usual))


class IgnoresTheWindow(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, replace(params, window=0))


class IgnoresTheSoftcap(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, replace(params, softcap=0.0))


class IgnoresTheLayer(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, 0, q, out, params)


class ReadsPagesBackwards(MutantAttention):
    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        table = step.batch.page_table.clone()
        for s, length in enumerate(step.batch.context_len.tolist()):
            pages = -(-length // step.batch.layout.page_size)
            table[s, :pages] = table[s, :pages].flip(0)
        self.run_as(replace(step.batch, page_table=table), layer, q, out, params)


class ReadsPagesByNumber(MutantAttention):
    """In the order in which they lie in memory."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        table = step.batch.page_table.clone()
        for s, length in enumerate(step.batch.context_len.tolist()):
            pages = -(-length // step.batch.layout.page_size)
            table[s, :pages] = table[s, :pages].sort().values
        self.run_as(replace(step.batch, page_table=table), layer, q, out, params)


class MissesTheLastPage(MutantAttention):
    """Reads the entry before the last one once more, where the context has just begun a page."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        table, size = step.batch.page_table.clone(), step.batch.layout.page_size
        for s, length in enumerate(step.batch.context_len.tolist()):
            if length % size == 1 and length > size:
                table[s, length // size] = table[s, length // size - 1]
        self.run_as(replace(step.batch, page_table=table), layer, q, out, params)


class InterleavesHeads(MutantAttention):
    """Query head h reads KV head ``h % kv_heads``."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        kv_heads = step.batch.layout.kv_heads
        order = torch.arange(q.shape[1]).view(-1, kv_heads).T.reshape(-1)
        permuted = torch.empty_like(q)
        super().run_step(step, layer, q[:, order], permuted, params)
        out[:, order] = permuted


class SeesTheFuture(MutantAttention):
    """Every row sees the whole context: as if each were the last token of its sequence."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        batch = step.batch
        sequence = torch.repeat_interleave(batch.query_start.diff())
        rows = replace(
            batch,
            page_table=batch.page_table[sequence],
            context_len=batch.context_len[sequence],
            query_start=torch.arange(len(q) + 1, dtype=torch.int32),
        )
        self.run_as(rows, layer, q, out, params)


class MultipliesTheUnusedByZero(MutantAttention):
    """Masks what lies beyond the context by weight zero; zero times NaN is NaN."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        size = step.batch.layout.page_size
        for s, length in enumerate(step.batch.context_len.tolist()):
            beyond = torch.arange(length, -(-length // size) * size)
            unused = reference.read(step.batch, s, layer, 1, beyond).float().sum().to(out)
            out[reference.rows(step.batch, s)] += 0 * unused


class IgnoresRowStrides(MutantAttention):
    """Takes it for granted that q is contiguous."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        _, heads, head_dim = q.shape
        q = q.as_strided(q.shape, (heads * head_dim, head_dim, 1))
        super().run_step(step, layer, q, out, params)


class DependsOnTheBatch(MutantAttention):
    """Within tolerance, but not the same bits for a token alone and among others."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        out *= 1 + 2e-6 * (len(q) % 7)


class TruncatesOnAppend(MutantAttention):
    """Cuts off the lower bits instead of rounding."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        if k.dtype == torch.float32 and step.batch.layout.format == "bfloat16":
            k, v = ((t.contiguous().view(torch.int32) >> 16 << 16).view(t.dtype) for t in (k, v))
        super().append_step(step, layer, k, v)


class DropsTheLastToken(MutantAttention):
    """Stores the last token of a batch only if it is the only one."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        last = len(step.batch.context_len) - 1
        if len(k) == 1:
            super().append_step(step, layer, k, v)
            return
        batch = step.batch
        slot = reference.new_slots(batch, last)[-1:]
        kept = [reference.read(batch, last, layer, kv, slot) for kv in (0, 1)]
        super().append_step(step, layer, k, v)
        for kv in (0, 1):
            reference.write(batch, last, layer, kv, slot, kept[kv])


class IgnoresBranches(MutantAttention):
    """Each new token follows the one before it, whatever its parent."""

    def plan(self, batch: AttentionBatch) -> object:
        return super().plan(replace(batch, parents=None))


class StoresByPosition(MutantAttention):
    """A token goes to the slot of its position, where its siblings go as well."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        super().append_step(step, layer, k, v)
        batch = step.batch
        if batch.parents is None:
            return
        for s in range(len(batch.context_len)):
            own, slots = reference.rows(batch, s), reference.new_positions(batch, s)
            reference.write(batch, s, layer, 0, slots, k[own])
            reference.write(batch, s, layer, 1, slots, v[own])


class SeesOtherBranches(MutantAttention):
    """A token sees all rows before its own, as if a branch only gave it a position."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        if step.batch.parents is None:
            super().run_step(step, layer, q, out, params)
        else:
            self.run_as(replace(step.batch, parents=None), layer, q, out, params)


class WindowsByRow(MutantAttention):
    """Counts the window in slots: branches in between make it smaller."""

    def run_step(
        self, step: Step, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        super().run_step(step, layer, q, out, params)
        batch = step.batch
        if batch.parents is None or not params.window:
            return
        for s in range(len(batch.context_len)):
            own = reference.rows(batch, s)
            for row, slot in enumerate(reference.new_slots(batch, s).tolist()):
                seen = reference.line(batch, s, row)
                smaller = int((seen > slot - params.window).sum())
                if smaller < min(len(seen), params.window):
                    narrow = replace(params, window=smaller)
                    every = torch.empty_like(out)
                    super().run_step(step, layer, q, every, narrow)
                    out[own.start + row] = every[own.start + row]


class MutantCodes(MutantAttention):
    """Spoils what it has just stored as codes: `spoil` is given the bytes of keys or of values."""

    def append_step(self, step: Step, layer: int, k: Tensor, v: Tensor) -> None:
        super().append_step(step, layer, k, v)
        batch = step.batch
        if batch.layout.quantization is None:
            return
        for s in range(len(batch.context_len)):
            where = batch.layout, batch.page_table[s], reference.new_slots(batch, s), layer
            for kv in (0, 1):
                self.spoil(batch, reference.items(*where, kv), reference.scales(*where, kv))

    def spoil(self, batch: AttentionBatch, items: Tensor, scales: Tensor) -> None:
        """`items` and `scales` are indices into the KV tensor: see `reference`."""
        raise NotImplementedError


class KeepsOneScaleForAll(MutantCodes):
    """All tokens of a step share the first one's scale."""

    def spoil(self, batch: AttentionBatch, items: Tensor, scales: Tensor) -> None:
        batch.kv[scales] = batch.kv[scales[:1]].expand(scales.shape)


class KeepsTheScaleOfTheTokenBefore(MutantCodes):
    def spoil(self, batch: AttentionBatch, items: Tensor, scales: Tensor) -> None:
        batch.kv[scales[1:]] = batch.kv[scales[:-1]]


class SwapsGroups(MutantCodes):
    """The scales of a head's groups in reverse order."""

    def spoil(self, batch: AttentionBatch, items: Tensor, scales: Tensor) -> None:
        batch.kv[scales] = batch.kv[scales.flip(2)]


class SwapsNibbles(MutantCodes):
    """The elements that share a byte change places."""

    def spoil(self, batch: AttentionBatch, items: Tensor, scales: Tensor) -> None:
        if batch.layout.format == "int4":
            batch.kv[items] = batch.kv[items] << 4 | batch.kv[items] >> 4


class ForgetsTheSign(MutantCodes):
    """Stores codes of int8 as magnitudes."""

    def spoil(self, batch: AttentionBatch, items: Tensor, scales: Tensor) -> None:
        if batch.layout.format == "int8":
            batch.kv[items] = batch.kv[items].view(torch.int8).abs().view(torch.uint8)


MUTANTS = {
    "ignores_the_scale": Mutant("attention", attention=IgnoresTheScale),
    "ignores_the_window": Mutant("attention", attention=IgnoresTheWindow),
    "ignores_the_softcap": Mutant("attention", attention=IgnoresTheSoftcap),
    "ignores_the_layer": Mutant("attention", attention=IgnoresTheLayer),
    "reads_pages_backwards": Mutant("attention", attention=ReadsPagesBackwards),
    "reads_pages_by_number": Mutant("attention", attention=ReadsPagesByNumber),
    "misses_the_last_page": Mutant("attention", attention=MissesTheLastPage),
    "interleaves_heads": Mutant("attention", attention=InterleavesHeads),
    "sees_the_future": Mutant("attention", attention=SeesTheFuture),
    "multiplies_the_unused_by_zero": Mutant("attention", attention=MultipliesTheUnusedByZero),
    "ignores_row_strides": Mutant("attention", attention=IgnoresRowStrides),
    "truncates_on_append": Mutant("attention", attention=TruncatesOnAppend),
    "drops_the_last_token": Mutant("attention", attention=DropsTheLastToken),
    "ignores_branches": Mutant("trees", attention=IgnoresBranches),
    "stores_by_position": Mutant("trees", attention=StoresByPosition),
    "sees_other_branches": Mutant("trees", attention=SeesOtherBranches),
    "windows_by_row": Mutant("trees", attention=WindowsByRow),
    "keeps_one_scale_for_all": Mutant("attention", attention=KeepsOneScaleForAll, codes=True),
    "keeps_the_scale_of_the_token_before": Mutant(
        "attention", attention=KeepsTheScaleOfTheTokenBefore, codes=True
    ),
    "swaps_groups": Mutant("attention", attention=SwapsGroups, codes=True),
    "swaps_nibbles": Mutant("attention", attention=SwapsNibbles, codes=True),
    "forgets_the_sign": Mutant("attention", attention=ForgetsTheSign, codes=True),
    "depends_on_the_batch": Mutant(
        "attention",
        attention=DependsOnTheBatch,
        claims=frozenset({Capability.BATCH_INVARIANT}),
    ),
}
