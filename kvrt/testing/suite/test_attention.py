"""Paged attention against plain arithmetic (`kvrt.testing.reference`).

Pages come in random order from memory with holes, and all that is not a sequence's own is NaN
(`kvrt.testing.paged`), so every test here also tests that nothing else is read.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from kvrt.spi import AttentionParams, Device, DType, KVFormat, KVLayout
from kvrt.testing import reference
from kvrt.testing.paged import (
    Case,
    PagedKV,
    assert_agrees,
    attend,
    fill_past,
    mismatch,
    randoms,
    run_layers,
)
from kvrt.wrappers.rules import TORCH_DTYPE


def test_every_declared_dtype_agrees(
    device: Device, case: Case, compute: DType, kv: KVFormat
) -> None:
    assert_agrees(device, replace(case, compute=compute, kv=kv))


@pytest.mark.parametrize("page_size", [1, 7, 16, 32, 128])
def test_page_sizes(device: Device, case: Case, page_size: int) -> None:
    assert_agrees(device, replace(case, page_size=page_size))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48, 49])
def test_contexts_end_at_before_and_after_a_page_boundary(
    device: Device, case: Case, length: int
) -> None:
    assert_agrees(device, replace(case, contexts=(length,), queries=(1,)))


@pytest.mark.parametrize("query", [1, 2, 16, 17, 70])
def test_a_chunk_of_a_prompt_attends_to_what_came_before(
    device: Device, case: Case, query: int
) -> None:
    assert_agrees(device, replace(case, contexts=(70,), queries=(query,)))


@pytest.mark.parametrize(("head_dim", "page_size"), [(16, 1), (80, 7), (112, 16), (256, 8)])
def test_heads_and_pages_of_any_size_are_kept_in_every_format(
    device: Device, case: Case, kv: KVFormat, head_dim: int, page_size: int
) -> None:
    """In int4 the last group of a head may have half its elements."""
    case = replace(case, kv=kv, head_dim=head_dim, page_size=page_size)
    got, want = attend(device, case)
    # The larger a head, the coarser the whole numbers that q may be taken as.
    assert not mismatch(got, want, case.tolerance * max(1, head_dim / 64))


def test_tokens_of_very_different_size_keep_their_own_scales(
    device: Device, case: Case, kv: KVFormat
) -> None:
    """Keys and values of one token are a thousand times those of the next, and some are 0."""
    case = replace(case, kv=kv, contexts=(70,), queries=(70,), scale=1e-4)
    with PagedKV(device, case.layout, case.pages) as pages:
        batch = pages.batch([pages.take(70)], case.contexts, case.queries)
        size = 10.0 ** (torch.arange(70) % 4)
        size[::9] = 0
        size = size[:, None, None].to(device.info.torch_device)
        k, v = (
            (randoms(device, "float32", 70, 2, 64, seed=seed) * size).to(TORCH_DTYPE[case.compute])
            for seed in (1, 2)
        )
        q = randoms(device, case.compute, 70, case.heads, 64, seed=3)
        out = torch.full_like(q, math.nan)
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, case.params)
        device.synchronize()
        reference.append(batch, 0, k, v)
        want = reference.attention(batch, 0, q, case.params)
        assert want.isfinite().all()
        assert not mismatch(out / 1000, want / 1000, case.tolerance)


def test_decode_prefill_and_their_mixture_are_one_operator(device: Device, case: Case) -> None:
    contexts = (1, 5, 123, 200, 129, 40, 16)
    for queries in ((1,) * 7, contexts, (1, 5, 123, 1, 17, 2, 1)):
        assert_agrees(device, replace(case, contexts=contexts, queries=queries))


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0, 3.0, -1.0])
def test_scores_are_multiplied_by_the_scale(device: Device, case: Case, factor: float) -> None:
    assert_agrees(device, replace(case, scale=factor * case.head_dim**-0.5))


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 64, 1000])
def test_a_token_sees_only_its_window(device: Device, case: Case, window: int) -> None:
    assert_agrees(device, replace(case, window=window))


@pytest.mark.parametrize("softcap", [0.5, 2.0, 50.0])
def test_scores_are_capped_softly(device: Device, case: Case, softcap: float) -> None:
    assert_agrees(device, replace(case, softcap=softcap, scale=0.5))


def test_window_softcap_and_scale_together(device: Device, case: Case) -> None:
    assert_agrees(device, replace(case, window=20, softcap=3.0, scale=0.3))


def test_large_scores_do_not_overflow(device: Device, case: Case) -> None:
    """Scores of some thousands: their exponentials exist only relative to the largest."""
    got, want = attend(device, replace(case, scale=300.0))
    assert got.isfinite().all()
    close = (got - want).abs() <= 0.05 * (1 + want.abs())
    assert close.float().mean() > 0.99, "a near tie may fall the other way, and no more"


def test_layers_may_have_different_parameters(device: Device, case: Case) -> None:
    """One plan serves all layers of a step; the parameters come with each call."""
    case = replace(case, layers=3)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        run_layers(device, batch, case)
        plan = device.attention.plan(batch)
        tokens = int(batch.query_start[-1])
        q = randoms(device, case.compute, tokens, case.heads, case.head_dim, seed=9)
        for layer, window in ((2, 0), (0, 5), (1, 33), (2, 5)):
            out = torch.full_like(q, math.nan)
            params = AttentionParams(scale=0.11, window=window)
            device.attention.run(plan, layer, q, out, params)
            device.synchronize()
            want = reference.attention(batch, layer, q, params)
            assert not mismatch(out, want, case.tolerance), f"layer {layer}, window {window}"


def test_appended_tokens_land_in_their_slots_and_nowhere_else(
    device: Device, case: Case, compute: DType, kv: KVFormat
) -> None:
    """Bit for bit: rounded to nearest even, and not one element beside them is touched."""
    case = replace(case, compute=compute, kv=kv)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        tokens = int(batch.query_start[-1])
        k, v = (randoms(device, compute, tokens, 2, 64, seed=seed) for seed in (1, 2))
        if compute == "float32":
            k, v = (with_ties(tensor) for tensor in (k, v))
        ids = sorted(page for table in tables for page in table)
        stride = case.layout.page_stride
        before = [pages.tensor[n * stride : (n + 1) * stride].clone() for n in ids]
        plan = device.attention.plan(batch)
        device.attention.append(plan, 1, k, v)
        device.synchronize()
        after = [pages.tensor[n * stride : (n + 1) * stride].clone() for n in ids]
        for n, page in zip(ids, before, strict=True):
            pages.tensor[n * stride : (n + 1) * stride] = page
        reference.append(batch, 1, k, v)
        want = [pages.tensor[n * stride : (n + 1) * stride] for n in ids]
        for n, got, expected in zip(ids, after, want, strict=True):
            # NaN beyond the context must stay as it was, so the bits are what is compared.
            same = torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
            different = (got != expected) & ~(got.isnan() & expected.isnan())
            assert same, f"page {n}: elements {different.nonzero().flatten()[:5].tolist()} differ"


def with_ties(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers, many of them exactly half-way between two bfloat16 values."""
    bits = tensor.view(torch.int32)
    return torch.where(bits % 2 == 0, bits >> 16 << 16 | 0x8000, bits).view(torch.float32)


def test_rows_may_be_parts_of_wider_rows(device: Device, case: Case) -> None:
    """q, k and v as three slices of one projection; out beside something else."""
    heads, kv_heads, d = case.heads, case.kv_heads, case.head_dim
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        tokens = int(batch.query_start[-1])
        qkv = randoms(device, case.compute, tokens, heads + 2 * kv_heads, d, seed=3)
        q, k, v = qkv[:, :heads], qkv[:, heads:-kv_heads], qkv[:, -kv_heads:]
        wide = torch.full((tokens, heads + 2, d), 7.0, dtype=q.dtype, device=q.device)
        out = wide[:, 1:-1]
        plan = device.attention.plan(batch)
        device.attention.append(plan, 0, k, v)
        device.attention.run(plan, 0, q, out, case.params)
        device.synchronize()
        reference.append(batch, 0, k, v)
        want = reference.attention(batch, 0, q, case.params)
        assert not mismatch(out, want, case.tolerance)
        assert (wide[:, 0] == 7).all(), "written before the row"
        assert (wide[:, -1] == 7).all(), "written behind the row"


def gaps(layout: KVLayout) -> KVLayout:
    """The same axes, with unused elements between heads, values, layers and pages."""
    head = layout.head_stride + 8
    values = layout.kv_heads * head + 16
    layer = 2 * values + 24
    return replace(
        layout,
        head_stride=head,
        v_offset=values,
        layer_stride=layer,
        page_stride=layout.layers * layer + 32,
    )


def values_outermost(layout: KVLayout) -> KVLayout:
    """``[page][k|v][kv_head][layer]`` blocks."""
    block = layout.head_stride
    head = layout.layers * block
    return replace(layout, layer_stride=block, head_stride=head, v_offset=layout.kv_heads * head)


@pytest.mark.parametrize("change", [gaps, values_outermost])
def test_the_layout_is_a_value_with_strides(
    device: Device, case: Case, kv: KVFormat, change: Callable[[KVLayout], KVLayout]
) -> None:
    case = replace(case, kv=kv)
    layout = change(case.layout)
    with PagedKV(device, layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        got, want = run_layers(device, batch, case)
        assert not mismatch(got, want, case.tolerance)


def test_what_lies_beyond_the_context_does_not_leak(
    device: Device, case: Case, kv: KVFormat
) -> None:
    """Infinities in unused slots and others' pages: even multiplied by zero they would show."""
    case = replace(case, kv=kv)
    with PagedKV(device, case.layout, case.pages + 4) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        for page in [page for table in tables for page in table] + pages.take(4 * 16):
            start = page * case.layout.page_stride
            pages.tensor[start : start + case.layout.page_stride] = (
                math.inf if pages.tensor.is_floating_point() else 0xFF
            )
        fill_past(batch)
        got, want = run_layers(device, batch, case)
        assert want.isfinite().all()
        assert not mismatch(got, want, case.tolerance)


def test_sequences_may_share_their_first_pages(device: Device, case: Case) -> None:
    with PagedKV(device, case.layout, 8) as pages:
        shared = pages.take(48)
        tables = [shared + pages.take(5), shared + pages.take(1), shared]
        batch = pages.batch(tables, [53, 49, 48], [1, 1, 0])
        fill_past(batch)
        got, want = run_layers(device, batch, case)
        assert not mismatch(got, want, case.tolerance)


def test_a_prompt_in_pieces_is_the_prompt_at_once(device: Device, case: Case) -> None:
    case = replace(case, layers=1)
    length = 61
    q = randoms(device, case.compute, length, case.heads, case.head_dim, seed=1)
    k, v = (
        randoms(device, case.compute, length, case.kv_heads, case.head_dim, seed=seed)
        for seed in (2, 3)
    )
    results = []
    for pieces in ([61], [20, 1, 40], [16, 16, 16, 13]):
        with PagedKV(device, case.layout, 5, seed=len(pieces)) as pages:
            table, out, stop = pages.take(length), torch.full_like(q, math.nan), 0
            for piece in pieces:
                start, stop = stop, stop + piece
                plan = device.attention.plan(pages.batch([table], [stop], [piece]))
                device.attention.append(plan, 0, k[start:stop], v[start:stop])
                device.attention.run(plan, 0, q[start:stop], out[start:stop], case.params)
            device.synchronize()
            results.append(out.cpu())
    assert results[0].isfinite().all()
    for result in results[1:]:
        assert not mismatch(result, results[0], case.tolerance)


@pytest.mark.usefixtures("batch_invariant")
def test_a_result_has_the_same_bits_whatever_else_is_in_the_batch(
    device: Device, case: Case, compute: DType, kv: KVFormat
) -> None:
    """A sequence alone, in pieces, and among others gives bit for bit the same rows."""
    case = replace(case, compute=compute, kv=kv, layers=1)
    length, others = 300, (1, 77, 129)
    q = randoms(device, compute, length, case.heads, case.head_dim, seed=1)
    k, v = (randoms(device, compute, length, 2, case.head_dim, seed=seed) for seed in (2, 3))
    whole = rows_of_one(device, case, [length], (q, k, v), ())
    for pieces, beside in (([299, 1], ()), ([7, 250, 43], others), ([1, 1, 298], others * 5)):
        got = rows_of_one(device, case, pieces, (q, k, v), beside)
        assert torch.equal(got, whole), f"pieces {pieces} beside {len(beside)} others"


def rows_of_one(
    device: Device,
    case: Case,
    pieces: list[int],
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    beside: tuple[int, ...],
) -> torch.Tensor:
    """One sequence computed in pieces, in each of which other sequences decode a token."""
    out, stop = torch.full_like(qkv[0], math.nan), 0
    with PagedKV(device, case.layout, 24 + sum(n // 16 + 1 for n in beside), seed=stop) as pages:
        tables = [pages.take(len(out)), *(pages.take(n) for n in beside)]
        for turn, piece in enumerate(pieces):
            start, stop = stop, stop + piece
            batch = pages.batch(tables, [stop, *beside], [piece, *(1 for _ in beside)])
            if turn == 0:
                fill_past(pages.batch(tables[1:], beside, [0] * len(beside))) if beside else None
            extra = [
                randoms(device, case.compute, len(beside), tensor.shape[1], case.head_dim, seed=7)
                for tensor in qkv
            ]
            rows = [
                torch.cat((tensor[start:stop], more))
                for tensor, more in zip(qkv, extra, strict=True)
            ]
            result = torch.full_like(rows[0], math.nan)
            plan = device.attention.plan(batch)
            device.attention.append(plan, 0, rows[1], rows[2])
            device.attention.run(plan, 0, rows[0], result, case.params)
            device.synchronize()
            out[start:stop] = result[:piece]
    return out
