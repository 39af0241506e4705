"""The KV cache on real memory."""

import itertools
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from kvrt.errors import CapacityError, ConfigError, IntegrityError, OutOfMemory
from kvrt.executor.interface import Failed
from kvrt.executor.local import LocalPages
from kvrt.kv.cache import KVCache
from kvrt.kv.limit import LimitChange
from kvrt.kv.pages.table import Change
from kvrt.registry import open_device
from kvrt.spi import Device, DeviceOptions, KVFormat, KVLayout
from kvrt.testing.chaos import Chaos
from kvrt.testing.host import physical_bytes
from kvrt.testing.paged import Case, mismatch, run_layers

from .shapes import CHUNK, LAYERS, SIZE, layout, shape

ROOM = 16 * CHUNK


def open_cache(device: Device, kind: str = "one chunk", **options: int) -> KVCache:
    return open_pages(device, kind, **options)[1]


def open_pages(
    device: Device, kind: str = "one chunk", **options: int
) -> tuple[LocalPages, KVCache]:
    """The pages as well."""
    pages = LocalPages(device, [layout(kind)], shape(kind).pages, poison=True)
    return pages, KVCache(pages, **{"limit_bytes": ROOM, **options})


def grow(cache: KVCache, tokens: dict[object, int]) -> None:
    change = cache.table.grow(tokens)
    assert isinstance(change, Change)
    assert cache.commit(change) is None


def held(cache: KVCache) -> int:
    stats = cache.stats()
    return stats.mapped_bytes + stats.pooled_bytes


# --- opening ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_a_limit_without_room_for_a_page_is_refused_with_what_it_takes(
    kind: str, null_device: Device
) -> None:
    geometry = shape(kind)
    needed = geometry.chunks_of(1).stop * CHUNK
    with pytest.raises(CapacityError, match="no room for a single page") as caught:
        open_cache(null_device, kind, limit_bytes=needed - 1)
    assert caught.value.needed == needed
    cache = open_cache(null_device, kind, limit_bytes=needed)
    assert cache.capacity_tokens >= SIZE
    grow(cache, {"a": cache.capacity_tokens})
    cache.close()
    assert null_device.memory.info().chunks == 0


def test_what_the_device_does_not_keep_is_refused(cpu_device: Device) -> None:
    unknown = replace(layout(), format="int7")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot keep keys and values in int7") as caught:
        LocalPages(cpu_device, [unknown], 9)
    assert ", ".join(cpu_device.info.kv_formats) in caught.value.fix
    with pytest.raises(ConfigError, match="keep_warm_bytes is -1"):
        open_cache(cpu_device, limit_bytes=64 << 20, keep_warm_bytes=-1)
    assert cpu_device.memory.info().chunks == 0


def test_a_device_without_any_memory_is_an_error_and_holds_nothing(null_device: Device) -> None:
    chaos = Chaos(null_device, fail={("memory.create", 1): OutOfMemory("none")})
    with pytest.raises(OutOfMemory, match="none"):
        open_cache(chaos)
    assert chaos.calls["memory.release"] == 1


# --- a batch ---------------------------------------------------------------------------------


def test_a_batch_shows_the_table(null_device: Device) -> None:
    pages, cache = open_pages(null_device, "many in a chunk")
    grow(cache, {"a": 9, "b": 3, "c": 5})
    (batch,) = pages.batches(cache.step(["c", "a"], [5, 1]))
    assert batch.query_start.tolist() == [0, 5, 6]
    assert batch.context_len.tolist() == [5, 9]
    assert batch.page_table.dtype == batch.context_len.dtype == torch.int32
    assert batch.page_table.is_contiguous()
    assert tuple(batch.page_table[0, :2].tolist()) == cache.table.pages("c")
    assert tuple(batch.page_table[1, :3].tolist()) == cache.table.pages("a")
    assert batch.layout == cache.layouts[0]
    cache.close()


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
@pytest.mark.parametrize("backend", ["cpu", "null"])
def test_attention_over_used_pages_never_reads_what_others_left(backend: str) -> None:
    """All free memory is NaN; the sequences are forked, copied, cut, and given used pages."""
    device = open_device(backend)
    case = Case(page_size=SIZE, kv_heads=2, head_dim=64, layers=3)
    form = KVLayout.packed("float32", layers=3, kv_heads=2, head_dim=64, page_size=SIZE)
    pages = LocalPages(device, [form], 4000, poison=True)
    cache = KVCache(pages, limit_bytes=24 * device.info.granularity)
    grow(cache, {seq: 3 + 17 * seq for seq in range(6)})
    (batch,) = pages.batches(cache.step(range(6), [cache.table.length(seq) for seq in range(6)]))
    run_layers(device, batch, case)
    assert cache.commit(cache.table.free(5)) is None
    assert cache.commit(cache.table.truncate(3, 9)) is None
    assert cache.commit(cache.table.fork(4, 40)) is None
    grow(cache, {0: 30, 1: 1, 2: 5, 3: 1, 4: 1, 40: 1, 7: 23})
    seqs, queries = [7, 0, 40, 1, 2, 3, 4], [23, 30, 1, 1, 5, 1, 1]
    (batch,) = pages.batches(cache.step(seqs, queries))
    got, want = run_layers(device, batch, case)
    assert not got.isnan().any()
    assert mismatch(got, want, case.tolerance) == ""
    assert cache.stats().copies == 1
    cache.close()
    device.close()


@pytest.mark.parametrize("kv", ["float32", "bfloat16", "int8", "int4"])
def test_the_tokens_of_a_page_share_no_element_of_it(kv: KVFormat) -> None:
    device = open_device("cpu")
    form = KVLayout.packed(kv, layers=3, kv_heads=2, head_dim=64, page_size=SIZE)
    pages = LocalPages(device, [form], 100)
    cache = KVCache(pages, limit_bytes=4 * device.info.granularity)
    grow(cache, {"a": 3 * SIZE})
    page, backing = cache.table.pages("a")[1], pages._backings[0]
    backing.page(page).zero_()
    for slot in range(SIZE):
        for part in backing.token(page, slot):
            part.fill_(slot + 1)
    items = backing.kv[page * form.page_stride : (page + 1) * form.page_stride]
    own = sum(part.numel() for part in backing.token(page, 0))
    assert items.long().bincount(minlength=SIZE + 1)[1:].tolist() == [own] * SIZE
    cache.close()
    device.close()


@pytest.mark.promise("P6")
def test_a_page_shows_nothing_of_the_sequence_that_had_it_before(null_device: Device) -> None:
    memory, cache = open_pages(null_device, "many in a chunk")
    kv = memory.batches(cache.step([], []))[0].kv
    layout = cache.layouts[0]
    pages = kv.view(-1)[: shape().pages * layout.page_stride].view(-1, layout.page_stride)
    grow(cache, {"a": 6 * SIZE})
    first = cache.table.pages("a")
    pages[list(first)] = 1.0
    freed = cache.table.free("a")
    regrown = freed.table.grow({"b": 6 * SIZE})  # preempted: freed and given in one change
    assert isinstance(regrown, Change)
    assert cache.commit(freed.then(regrown)) is None
    second = cache.table.pages("b")
    assert set(second) == set(first)
    assert pages[list(second)].isnan().all()
    cache.close()


# --- memory follows use ----------------------------------------------------------------------


def test_memory_comes_with_the_first_page_and_goes_when_idle(null_device: Device) -> None:
    cache = open_cache(null_device)
    assert held(cache) == CHUNK
    grow(cache, {"a": 6 * SIZE})
    stats = cache.stats()
    assert (stats.mapped_bytes, stats.pooled_bytes) == (7 * CHUNK, 0)
    assert (stats.used_pages, stats.free_pages, stats.retired_pages) == (6, 9, 0)
    assert cache.commit(cache.table.free("a", after=1)) is None
    assert cache.stats().retired_pages == 6
    cache.end_step(1)
    assert held(cache) == 7 * CHUNK, "it may be needed again at once"
    cache.idle()
    stats = cache.stats()
    assert (stats.mapped_bytes, stats.pooled_bytes) == (CHUNK, 0)
    assert (stats.peak_mapped_bytes, stats.maps, stats.unmaps) == (7 * CHUNK, 7, 6)
    assert null_device.memory.info().chunks == CHUNK
    cache.close()


def test_an_idle_cache_keeps_what_it_was_told_to_keep_warm(null_device: Device) -> None:
    cache = open_cache(null_device, keep_warm_bytes=4 * CHUNK)
    cache.idle()
    assert cache.stats().pooled_bytes == 3 * CHUNK, "created ahead of need"
    grow(cache, {"a": 3 * SIZE})
    assert (cache.stats().mapped_bytes, cache.stats().pooled_bytes) == (4 * CHUNK, 0)
    grow(cache, {"b": 5 * SIZE})
    for seq in "ab":
        assert cache.commit(cache.table.free(seq)) is None
    cache.idle()
    assert (cache.stats().mapped_bytes, cache.stats().pooled_bytes) == (4 * CHUNK, 0)
    cache.close()


def test_what_a_device_cannot_keep_ready_is_not_an_error(null_device: Device) -> None:
    chaos = Chaos(null_device, fail={("memory.create", 2): OutOfMemory("none")})
    cache = open_cache(chaos, keep_warm_bytes=4 * CHUNK)
    cache.idle()
    assert held(cache) == CHUNK
    cache.close()


def test_spare_memory_goes_while_steps_run(null_device: Device) -> None:
    """Not at once, since the next sequence may need it; and what comes and goes is kept."""
    cache = open_cache(null_device)
    grow(cache, {"long": SIZE, "burst": 8 * SIZE, "wave": 3 * SIZE})
    assert cache.commit(cache.table.free("burst")) is None
    cache.end_step(0)
    assert held(cache) == 13 * CHUNK
    maps = cache.stats().maps
    for step in range(1, 200):
        if step % 10 == 0:
            assert cache.commit(cache.table.free("wave", after=step)) is None
        if step % 10 == 5 and "wave" not in cache.table:
            grow(cache, {"wave": 3 * SIZE})
        cache.end_step(step)
    assert held(cache) == 5 * CHUNK
    assert cache.stats().maps == maps, "the wave was mapped once"
    cache.close()


@pytest.mark.promise("P4")
@pytest.mark.parametrize("shareable", [False, True])
def test_the_system_has_its_memory_back_half_a_second_after_the_last_free(shareable: bool) -> None:
    device = open_device("cpu", options=DeviceOptions(shareable=shareable))
    chunk = device.info.granularity
    geometry = shape("straddling", chunks=40, chunk_bytes=chunk)
    form = layout("straddling", chunk_bytes=chunk)
    pages = LocalPages(device, [form], geometry.pages)
    cache = KVCache(pages, limit_bytes=32 * chunk, keep_warm_bytes=2 * chunk)
    cache.idle()
    before = physical_bytes()
    seqs = dict.fromkeys(range(10), 4 * SIZE)
    grow(cache, seqs)
    assert physical_bytes() - before > 20 * chunk
    for seq in seqs:
        assert cache.commit(cache.table.free(seq, after=1)) is None
    started = time.monotonic()
    cache.end_step(1)
    cache.idle()
    assert time.monotonic() - started < 0.5
    assert held(cache) == 2 * chunk
    assert abs(physical_bytes() - before) < chunk // 2
    cache.close()
    device.close()


# --- the limit -------------------------------------------------------------------------------


@pytest.mark.promise("P4")
def test_a_limit_below_use_is_deferred_and_applied_as_pages_come_free(null_device: Device) -> None:
    cache = open_cache(null_device)
    grow(cache, dict.fromkeys(range(5), 2 * SIZE))
    assert cache.set_memory_limit(6 * CHUNK) is LimitChange.DEFERRED
    assert cache.stats().limit_bytes == 6 * CHUNK
    assert cache.stats().free_pages == 0
    sizes = []
    for seq in range(3):
        assert cache.commit(cache.table.free(seq, after=seq)) is None
        cache.end_step(seq)
        sizes.append(held(cache) // CHUNK)
    assert sizes == [9, 7, 6], "one chunk stays for the one page more that fits"
    assert cache.table.free_pages == 1
    assert cache.set_memory_limit(6 * CHUNK) is LimitChange.APPLIED
    assert cache.set_memory_limit(ROOM) is LimitChange.APPLIED
    assert cache.table.free_pages == 11
    cache.close()


@pytest.mark.promise("P4")
def test_a_late_revision_of_the_limit_is_refused(null_device: Device) -> None:
    cache = open_cache(null_device)
    assert cache.set_memory_limit(8 * CHUNK, revision=5) is LimitChange.APPLIED
    assert cache.set_memory_limit(4 * CHUNK, revision=5) is LimitChange.STALE
    assert cache.set_memory_limit(4 * CHUNK, revision=4) is LimitChange.STALE
    assert cache.stats().limit_bytes == 8 * CHUNK
    assert cache.set_memory_limit(9 * CHUNK, revision=6) is LimitChange.APPLIED
    assert cache.stats().limit_bytes == 9 * CHUNK
    with pytest.raises(CapacityError):
        cache.set_memory_limit(CHUNK, revision=7)
    assert cache.set_memory_limit(7 * CHUNK, revision=7) is LimitChange.APPLIED
    cache.close()


def test_a_limit_changed_while_a_step_is_planned_is_not_lost(null_device: Device) -> None:
    cache = open_cache(null_device)
    plan = cache.table.grow({"a": 9 * SIZE})
    assert isinstance(plan, Change)
    cache.set_memory_limit(4 * CHUNK)
    assert cache.commit(plan) is None
    assert cache.table.limit == 4
    assert cache.table.free_pages == 0
    cache.close()


@pytest.mark.parametrize("limit", [5, 8, 13])
def test_mapped_and_pooled_memory_stay_within_the_limit(limit: int, null_device: Device) -> None:
    cache = open_cache(null_device, keep_warm_bytes=4 * CHUNK, limit_bytes=limit * CHUNK)
    for round_ in range(3):
        cache.idle()
        assert held(cache) <= limit * CHUNK
        grow(cache, {"a": cache.capacity_tokens})
        assert cache.stats().mapped_bytes == limit * CHUNK
        assert held(cache) <= limit * CHUNK
        assert cache.commit(cache.table.free("a", after=round_)) is None
        cache.end_step(round_)
    cache.close()


def test_a_limit_is_never_raised_because_more_is_held(null_device: Device) -> None:
    cache = open_cache(null_device)
    grow(cache, {"a": 5 * SIZE})
    assert (held(cache), cache.set_memory_limit(4 * CHUNK)) == (6 * CHUNK, LimitChange.DEFERRED)
    limits = [cache.limit_to_held() for _ in range(4)]
    assert limits == sorted(limits, reverse=True)
    assert limits[0] < 4 * CHUNK
    assert limits[-1] == cache.min_bytes
    assert cache.set_memory_limit(6 * CHUNK) is LimitChange.APPLIED, "that much is held"
    cache.close()


@pytest.mark.parametrize(
    ("chunks", "less"), [(40, 16), (17, 15), (16, 14), (9, 8), (7, 6), (3, 2), (2, 2)]
)
def test_a_limit_is_lowered_by_an_eighth_and_by_one_chunk_at_least(
    null_device: Device, chunks: int, less: int
) -> None:
    cache = open_cache(null_device)
    assert cache.limit_below(chunks * CHUNK) == cache.stats().limit_bytes == less * CHUNK
    assert cache.limit_below(chunks * CHUNK + CHUNK * 30) == less * CHUNK, "it is no higher again"
    cache.close()


def test_a_device_with_less_memory_than_promised_lowers_the_limit(null_device: Device) -> None:
    chaos = Chaos(null_device, fail={("memory.create", 6): OutOfMemory("gone")})
    cache = open_cache(chaos)
    grow(cache, {"a": 3 * SIZE})
    before = cache.table
    plan = before.grow({"b": 5 * SIZE})
    assert isinstance(plan, Change)
    failed = cache.commit(plan)
    assert isinstance(failed, Failed)
    assert str(failed.error) == "gone"
    assert cache.table is before
    assert cache.limit_to_held() == held(cache) == 5 * CHUNK, "with the chunk that was created"
    assert cache.table.free_pages == 1
    stats = cache.stats()
    assert (stats.limit_bytes, stats.asked_bytes) == (5 * CHUNK, ROOM)
    grow(cache, {"b": SIZE})
    cache.check_integrity()
    steps = 0
    while cache.stats().limit_bytes < ROOM:
        steps += 1
        cache.end_step(steps)
    assert steps == 32
    grow(cache, {"b": 5 * SIZE})
    assert held(cache) > 5 * CHUNK, "what was asked for is tried again"
    cache.check_integrity()
    cache.close()


# --- faults ----------------------------------------------------------------------------------


def test_a_plan_on_an_old_table_is_refused(null_device: Device) -> None:
    cache = open_cache(null_device)
    old = cache.table.grow({"a": 2 * SIZE})
    assert isinstance(old, Change)
    grow(cache, {"b": 3 * SIZE})
    with pytest.raises(IntegrityError, match=r"planned on version 1 .* the current one is 2"):
        cache.commit(old)
    cache.check_integrity()
    cache.close()


def test_integrity_compares_the_table_with_the_device(null_device: Device) -> None:
    pages, cache = open_pages(null_device)
    grow(cache, {"a": 2 * SIZE})
    cache.check_integrity()
    lost = pages._backings[0].mapped.pop(2)
    with pytest.raises(IntegrityError, match="are mapped; the page table has"):
        cache.check_integrity()
    pages._backings[0].mapped[2] = lost
    pages._pool.give(lost)
    with pytest.raises(IntegrityError, match="the device counts"):
        cache.check_integrity()
    pages._pool.take()
    cache.close()


def test_closing_gives_everything_back_and_may_be_repeated(null_device: Device) -> None:
    cache = open_cache(null_device, keep_warm_bytes=6 * CHUNK)
    cache.idle()
    grow(cache, {"a": 2 * SIZE})
    cache.close()
    cache.close()
    assert null_device.memory.info().chunks == 0


# --- threads ---------------------------------------------------------------------------------


@pytest.mark.promise("P7")
@pytest.mark.timeout(120)
def test_limits_and_statistics_from_other_threads(null_device: Device) -> None:
    """20,000 calls of each of eight threads, while this one runs steps."""
    cache = open_cache(null_device, "straddling", keep_warm_bytes=2 * CHUNK)
    errors: list[BaseException] = []

    def watch(number: int) -> None:
        try:
            for turn in range(10_000):
                stats = cache.stats()
                assert stats.mapped_bytes <= ROOM
                assert 0 <= stats.used_pages <= shape().pages_in(16)
                cache.set_memory_limit((6 + (turn + number) % 10) * CHUNK)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=watch, args=(number,)) for number in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for step in itertools.count():
            if not any(thread.is_alive() for thread in threads):
                break
            change = cache.table.grow({step: 6})
            if isinstance(change, Change):
                assert cache.commit(change) is None
            for seq in list(cache.table.sequences)[:2]:
                assert cache.commit(cache.table.free(seq, after=step)) is None
            cache.end_step(step)
            if step % 50 == 0:
                cache.idle()
    finally:
        sys.setswitchinterval(interval)
        for thread in threads:
            thread.join()
    assert not errors
    assert step > 100, "steps ran beside the threads"
    cache.check_integrity()
    assert cache.table.limit == cache.stats().limit_bytes // CHUNK
    cache.idle()
    assert held(cache) <= max(2, cache.table.mapped_chunks - cache.table.warm_chunks) * CHUNK
    cache.close()
