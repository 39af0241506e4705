"""What a token sees of its context, and that nothing is read that no token sees."""

from dataclasses import replace

import pytest
import torch

from kvrt.spi import AttentionBatch, Capability, Device, DType, KVFormat
from kvrt.testing.paged import (
    NAN_BYTE,
    Case,
    PagedKV,
    assert_agrees,
    attend,
    fill_past,
    mismatch,
    randoms,
    run_layers,
)


def long(case: Case) -> Case:
    """With a context longer than what devices split contexts into, and a piece of a prompt."""
    return replace(case, contexts=(1, 37, 1300, 16, 65), queries=(1, 1, 19, 16, 2), layers=1)


NO_PAGE = 2**31 - 7


def given_away(pages: PagedKV, batch: AttentionBatch, case: Case) -> AttentionBatch:
    """The batch when the pages that no new token sees any more are another's.

    They hold NaN, and every other one has an entry that is no page at all.
    """
    size, page_bytes = case.page_size, case.layout.page_bytes
    content, table = pages.tensor.view(torch.uint8), batch.page_table.clone()
    for s, (context, query) in enumerate(zip(case.contexts, case.queries, strict=True)):
        first = max(0, context - query + 1 - case.window)
        for column in range(-(-case.sinks // size), first // size):
            page = int(table[s, column])
            content[page * page_bytes : (page + 1) * page_bytes] = NAN_BYTE
            if column % 2:
                table[s, column] = NO_PAGE
    return replace(batch, page_table=table)


@pytest.mark.parametrize("queries", [(1, 1, 1), (1, 19, 40), (70, 3, 1)])
@pytest.mark.parametrize("sinks", [0, 5])
def test_nothing_before_a_window_is_read(
    opened: Device, case: Case, kv: KVFormat, queries: tuple[int, ...], sinks: int
) -> None:
    """Neither pages nor their entries of the page table, decoding or in the middle of a prompt."""
    case = replace(case, kv=kv, contexts=(700, 130, 64), queries=queries, window=20, sinks=sinks)
    with PagedKV(opened, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        got, want = run_layers(opened, given_away(pages, batch, case), case)
        assert not mismatch(got, want, case.tolerance)


@pytest.mark.parametrize("window", [1, 20, 64])
@pytest.mark.parametrize("sinks", [1, 4, 16, 17, 600])
def test_the_first_positions_are_seen_besides_the_window(
    device: Device, case: Case, window: int, sinks: int
) -> None:
    assert_agrees(device, replace(long(case), window=window, sinks=sinks))


def test_without_a_window_sinks_change_nothing(device: Device, case: Case) -> None:
    assert_agrees(device, replace(case, sinks=3))


def test_sinks_in_every_dtype(device: Device, case: Case, compute: DType, kv: KVFormat) -> None:
    assert_agrees(device, replace(case, compute=compute, kv=kv, window=20, sinks=4))


def test_branches_have_windows_and_sinks(device: Device, case: Case) -> None:
    if Capability.TREES not in device.info.capabilities:
        pytest.skip("the device does not declare TREES")
    case = replace(case, contexts=(75, 40), queries=(5, 5), window=20, sinks=3)
    with PagedKV(device, case.layout, case.pages) as pages:
        batch = pages.batch([pages.take(n) for n in case.contexts], case.contexts, case.queries)
        fill_past(batch)
        batch = replace(batch, parents=torch.tensor([-1, 0, 1, 0, 3, -1, -1, 0, 2, 1]).int())
        assert not mismatch(*run_layers(device, batch, case), case.tolerance)


@pytest.mark.parametrize("size", [1.0, 8.0])
@pytest.mark.parametrize("window", [0, 20])
def test_a_sinks_logit_is_in_the_denominator(
    device: Device, case: Case, compute: DType, size: float, window: int
) -> None:
    """Neither scaled nor capped, and another one for each query head."""
    case = replace(long(case), compute=compute, window=window, sinks=window // 5, softcap=3.0)
    logits = size * randoms(device, "float32", case.heads, seed=8)
    assert not mismatch(*attend(device, case, sink_logits=logits), case.tolerance)


def test_a_sink_that_outweighs_all_leaves_nothing(device: Device, case: Case) -> None:
    logits = torch.full((case.heads,), 300.0).to(device.info.torch_device)
    got, want = attend(device, case, sink_logits=logits)
    assert not mismatch(got, torch.zeros_like(want), case.tolerance)


def test_without_causality_a_token_sees_all_of_its_context(
    device: Device, case: Case, kv: KVFormat
) -> None:
    assert_agrees(device, replace(long(case), kv=kv, causal=False))
    prompts = replace(case, contexts=(70, 33), queries=(70, 20), kv=kv, causal=False)
    assert_agrees(device, prompts)
