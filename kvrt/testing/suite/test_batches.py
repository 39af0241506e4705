"""Attention over batches of every shape: many sequences and none, long ones, wide ones.

Kernels have tables, tiles and counters of a fixed size. Each case here is larger than a likely one.
"""

import math
from dataclasses import replace

import pytest
import torch

from kvrt.spi import Device, DType, KVFormat
from kvrt.testing import reference
from kvrt.testing.paged import Case, PagedKV, assert_agrees, fill_past, mismatch, randoms
from kvrt.wrappers.rules import TORCH_DTYPE


def test_every_size_of_a_head_agrees(device: Device, case: Case, head_size: int) -> None:
    assert_agrees(device, replace(case, head_dim=head_size, contexts=(5, 50), queries=(5, 1)))


@pytest.mark.parametrize(
    ("heads", "kv_heads"),
    [(1, 1), (5, 5), (9, 3), (7, 1), (32, 8), (12, 1), (16, 1), (32, 2), (48, 1)],
)
def test_each_query_head_reads_its_own_kv_head(
    device: Device, case: Case, heads: int, kv_heads: int
) -> None:
    grouped = replace(case, heads=heads, kv_heads=kv_heads, contexts=(33, 7), queries=(1, 7))
    assert_agrees(device, grouped)


@pytest.mark.parametrize("queries", [(1,), (3,), (1, 1)])
def test_a_long_context(device: Device, case: Case, queries: tuple[int, ...]) -> None:
    """Long enough that a device splits it among its processors."""
    contexts = (1501, 900)[: len(queries)]
    assert_agrees(device, replace(case, contexts=contexts, queries=queries, layers=1, heads=4))


@pytest.mark.parametrize("query", [1, 19])
def test_a_very_long_context(device: Device, case: Case, query: int) -> None:
    smallest = min(device.info.head_dims or (16,))
    one_head = replace(case, heads=1, kv_heads=1, head_dim=smallest, layers=1)
    assert_agrees(device, replace(one_head, contexts=(5000,), queries=(query,)))


def test_a_long_prompt(device: Device, case: Case) -> None:
    assert_agrees(device, replace(case, contexts=(600, 700), queries=(600, 530), layers=1))


@pytest.mark.parametrize("longest", [3, 40])
def test_seventy_sequences_at_once(device: Device, case: Case, longest: int) -> None:
    contexts = tuple(1 + n * 7 % longest for n in range(70))
    for queries in ((1,) * 70, contexts):
        assert_agrees(device, replace(case, contexts=contexts, queries=queries, layers=1))


@pytest.mark.parametrize(
    "queries", [(0, 2, 0, 1), (2, 0, 0, 3), (0, 0, 1, 0), (1, 0, 19, 0), (0, 0, 0, 0)]
)
def test_sequences_may_bring_nothing(device: Device, case: Case, queries: tuple[int, ...]) -> None:
    """Their pages stay as they are, and their neighbours' tokens go where they belong."""
    case = replace(case, contexts=(40, 37, 50, 20), queries=queries)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        everything = [torch.arange(length) for length in case.contexts]
        before = [reference.read(batch, s, 0, 0, tokens) for s, tokens in enumerate(everything)]
        tokens = sum(queries)
        q, k, v = (
            randoms(device, case.compute, tokens, heads, case.head_dim, seed=seed)
            for seed, heads in enumerate((case.heads, case.kv_heads, case.kv_heads))
        )
        out = torch.full_like(q, math.nan)
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, case.params)
        device.synchronize()
        for s, (kept, query) in enumerate(zip(before, queries, strict=True)):
            now = reference.read(batch, s, 0, 0, everything[s])
            past = len(kept) - query
            assert torch.equal(now[:past], kept[:past]), f"sequence {s} was written to"
            stored = k[reference.rows(batch, s)].cpu().to(now.dtype)
            if case.layout.quantization is None:
                assert torch.equal(now[past:], stored), f"sequence {s} lacks its new keys"
        reference.append(batch, 0, k, v)
        want = reference.attention(batch, 0, q, case.params)
        assert not mismatch(out, want, case.tolerance)


def test_the_batch_is_the_callers_again_after_plan(device: Device, case: Case) -> None:
    """Its tensors on the host may be changed at once; the page table is one array for ever."""
    case = replace(case, layers=1)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        tokens = sum(case.queries)
        q, k, v = (
            randoms(device, case.compute, tokens, heads, case.head_dim, seed=seed)
            for seed, heads in enumerate((case.heads, case.kv_heads, case.kv_heads))
        )
        out = torch.full_like(q, math.nan)
        mine = replace(
            batch,
            page_table=batch.page_table.clone(),
            query_start=batch.query_start.clone(),
            context_len=batch.context_len.clone(),
        )
        plan = device.attention.plan(mine)
        # To what is a batch as well, so that one who reads it now reads pages that are mapped.
        mine.page_table.fill_(tables[0][0])
        mine.context_len.copy_(mine.query_start.diff())
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, case.params)
        device.synchronize()
        reference.append(batch, 0, k, v)
        assert not mismatch(out, reference.attention(batch, 0, q, case.params), case.tolerance)


def test_a_page_that_holds_something_else_is_read_anew(device: Device, case: Case) -> None:
    """What was read of a page is not kept: others may have written to it, or it was remapped."""
    case = replace(case, contexts=(50, 40), queries=(1, 1), layers=1)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        q, k, v = (
            randoms(device, case.compute, 2, heads, case.head_dim, seed=seed)
            for seed, heads in enumerate((case.heads, case.kv_heads, case.kv_heads))
        )
        for turn in range(3):
            fill_past(batch, seed=turn)
            out = torch.full_like(q, math.nan)
            plan = device.attention.plan(batch)
            device.attention.append(plan, 0, k, v)
            device.attention.run(plan, 0, q, out, case.params)
            device.synchronize()
            want = reference.attention(batch, 0, q, case.params)
            assert not mismatch(out, want, case.tolerance), f"turn {turn}"


def test_sums_are_taken_in_float32(
    device: Device, case: Case, compute: DType, kv: KVFormat
) -> None:
    """2,000 equal weights, the first half on 0 and the rest on 1: to a sum of 16 bits, ones are
    nothing beyond 256, or 2,048."""
    length = 2000
    case = replace(case, compute=compute, kv=kv, contexts=(length,), queries=(1,), layers=1)
    with PagedKV(device, case.layout, case.pages) as pages:
        batch = pages.batch([pages.take(length)], case.contexts, case.queries)
        values = torch.zeros(length - 1, case.kv_heads, case.head_dim)
        values[length // 2 :] = 1
        for kv_side in (0, 1):
            reference.write(batch, 0, 0, kv_side, torch.arange(length - 1), values)
        q, k, v = (
            torch.full((1, heads, case.head_dim), value, dtype=TORCH_DTYPE[compute]).to(
                device.info.torch_device
            )
            for heads, value in ((case.heads, 0.0), (case.kv_heads, 1.0), (case.kv_heads, 1.0))
        )
        out = torch.full_like(q, math.nan)
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, case.params)
        device.synchronize()
        assert not mismatch(out, torch.full_like(out, 0.5), case.tolerance)
