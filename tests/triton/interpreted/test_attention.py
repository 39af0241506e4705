"""Paged attention against plain arithmetic, with NaN in all that must not be read."""

from dataclasses import replace

import pytest
import torch

from kvrt.spi import QUANTIZATIONS, Device, DType, KVFormat
from kvrt.testing.paged import Case, PagedKV, attend, fill_past, mismatch, randoms, run_layers

DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")
SMALL = Case(contexts=(1, 37, 65), queries=(1, 1, 19), layers=1, heads=4)


def check(device: Device, case: Case) -> None:
    got, want = attend(device, case)
    problem = mismatch(got, want, case.tolerance)
    assert not problem, f"{case}: {problem}"


@pytest.mark.parametrize("compute", DTYPES)
@pytest.mark.parametrize("kv", DTYPES)
def test_every_pair_of_dtypes_agrees(device: Device, compute: DType, kv: DType) -> None:
    check(device, replace(SMALL, compute=compute, kv=kv))


@pytest.mark.parametrize("kv", QUANTIZATIONS)
def test_codes_are_read_with_their_scales(device: Device, kv: KVFormat) -> None:
    """80 elements are neither a power of 2 nor whole groups."""
    check(device, replace(SMALL, head_dim=80, compute="bfloat16", kv=kv))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 256])
def test_head_sizes_with_and_without_padding(device: Device, head_dim: int) -> None:
    check(device, replace(SMALL, head_dim=head_dim, compute="bfloat16", kv="bfloat16"))


@pytest.mark.parametrize("heads", [2, 10, 14, 34])
def test_query_heads_share_a_kv_head_in_any_ratio(device: Device, heads: int) -> None:
    """1, 5, 7 and 17 to one: less than a tile's rows, and one more than a tile has."""
    check(device, replace(SMALL, heads=heads, contexts=(33, 20), queries=(1, 20)))


@pytest.mark.parametrize("page_size", [1, 16, 64, 128])
def test_pages_smaller_and_larger_than_a_block(device: Device, page_size: int) -> None:
    check(device, replace(SMALL, page_size=page_size))


@pytest.mark.parametrize("length", [255, 256, 257, 512, 513])
def test_contexts_end_at_and_beside_the_border_of_a_segment(device: Device, length: int) -> None:
    check(device, replace(SMALL, contexts=(length,), queries=(1,), compute="float16", kv="float16"))


@pytest.mark.parametrize("queries", [2, 16, 17])
def test_few_and_many_query_tokens_after_a_long_context(device: Device, queries: int) -> None:
    """16 are still split into segments and 17 are not; 300 is two segments."""
    check(device, replace(SMALL, contexts=(300,), queries=(queries,)))


@pytest.mark.parametrize("window", [1, 16, 17, 250])
def test_windows_within_and_across_segments(device: Device, window: int) -> None:
    check(device, replace(SMALL, contexts=(300, 40), queries=(3, 19), window=window))


@pytest.mark.parametrize("sinks", [1, 17, 300])
def test_the_first_positions_are_seen_besides_a_window(device: Device, sinks: int) -> None:
    """Within a block and a segment and beyond, with segments between them and the window or not."""
    check(device, replace(SMALL, contexts=(800, 330), queries=(3, 19), window=20, sinks=sinks))


@pytest.mark.parametrize("window", [0, 20])
def test_a_sinks_logit_is_in_the_denominator(device: Device, window: int) -> None:
    """Of sequences in one segment, in several, and with many tokens."""
    case = replace(SMALL, contexts=(37, 600, 65), window=window, sinks=window // 5, softcap=3.0)
    logits = 4 * randoms(device, "float32", case.heads, seed=8)
    assert not mismatch(*attend(device, case, sink_logits=logits), case.tolerance)


def test_without_causality_a_token_sees_all_of_its_context(device: Device) -> None:
    check(device, replace(SMALL, contexts=(300, 70), queries=(16, 50), causal=False))


def test_window_softcap_and_scale_together(device: Device) -> None:
    for kind in DTYPES:
        special = replace(SMALL, window=20, softcap=3.0, scale=0.3, compute=kind, kv=kind)
        check(device, special)


@pytest.mark.parametrize("window", [0, 3])
def test_branches_with_few_and_with_many_tokens(device: Device, window: int) -> None:
    """The second branch brings 18, so it is computed as a prompt is."""
    forks = [-1, 0, 1, 0, *range(3, 20), 2]
    case = replace(SMALL, contexts=(280, 20), queries=(len(forks), 1), window=window)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        batch = replace(batch, parents=torch.tensor([*forks, -1], dtype=torch.int32))
        fill_past(batch)
        assert not mismatch(*run_layers(device, batch, case), case.tolerance)


def test_a_mixed_batch_with_a_sequence_that_brings_nothing(device: Device) -> None:
    contexts, queries = (30, 270, 20, 16, 64), (1, 1, 0, 16, 40)
    check(device, replace(SMALL, contexts=contexts, queries=queries))
