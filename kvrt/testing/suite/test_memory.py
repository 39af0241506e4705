"""Virtual memory: what is mapped, what it contains, and who holds the physical memory."""

import gc
import os
import random
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from kvrt.spi import ITEM_BYTES, Capability, Chunk, Device, DeviceOptions, DType, MemoryInfo, Span
from kvrt.testing import host
from kvrt.testing.subject import Subject
from kvrt.wrappers import Checked

MIB = 2**20


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "shareable"])
def device(request: pytest.FixtureRequest, subject: Subject) -> Iterator[Device]:
    """A fresh device, opened in both ways: what is shareable may be other memory altogether."""
    options = DeviceOptions(shareable=request.param)
    device = Checked(subject.backend.open(subject.index, options))
    yield device
    device.close()


def part(device: Device, span: Span, at: int) -> torch.Tensor:
    """The bytes of the chunk-sized part of a span that begins at byte `at`."""
    granularity = device.info.granularity
    return device.memory.tensor(span, "float32").view(torch.uint8)[at : at + granularity]


def holds(device: Device, span: Span, at: int, value: int) -> bool:
    return bool((part(device, span, at) == value).all())


def give_back(device: Device, span: Span, mapped: dict[int, Chunk]) -> None:
    device.synchronize()
    for at, chunk in mapped.items():
        device.memory.unmap(span, at, chunk)
        device.memory.destroy(chunk)
    device.memory.release(span)


def places(granularity: int, *, wide: bool) -> list[int]:
    """Some byte offsets of chunks in a span; those of a wide one lie around 2^32 and 2^33."""
    far = [border // granularity + n for border in (2**32, 2**33) for n in (-1, 0, 2)]
    return [n * granularity for n in ((2, *sorted(set(far))) if wide else (0, 2))]


@pytest.mark.vital
@pytest.mark.parametrize("wide", [False, True])
def test_a_chunk_is_mapped_where_it_was_asked_to_be(
    device: Device, on_host: bool, wide: bool
) -> None:
    """From its first byte to its last, and not one further. Nothing is touched before it is known
    to be there."""
    granularity = device.info.granularity
    ats = places(granularity, wide=wide)
    span = device.memory.reserve(ats[-1] + 4 * granularity)
    mapped: dict[int, Chunk] = {}
    for at in ats:
        mapped[at] = device.memory.create()
        device.memory.map(span, at, mapped[at])
    if on_host:
        for at in ats:
            first, last = span.base + at, span.base + at + granularity - host.PEEK
            assert host.peek(first) is not None, f"nothing is mapped at byte {at}"
            assert host.peek(last) is not None, f"less than a chunk is mapped at byte {at}"
            if at + granularity not in mapped:
                beyond = host.peek(span.base + at + granularity)
                assert beyond is None, f"more than a chunk is mapped at byte {at}"
    for value, at in enumerate(ats, start=1):
        part(device, span, at).fill_(value)
    for value, at in enumerate(ats, start=1):
        assert holds(device, span, at, value), f"the chunk at byte {at}"
    window = device.memory.reserve(granularity)
    for value, (at, chunk) in enumerate(mapped.items(), start=1):
        device.memory.unmap(span, at, chunk)
        device.memory.map(window, 0, chunk)
        assert holds(device, window, 0, value), f"another chunk was at byte {at}"
        device.memory.unmap(window, 0, chunk)
        device.memory.destroy(chunk)
    device.memory.release(window)
    device.memory.release(span)


def test_an_unmapped_chunk_cannot_be_read_any_more(device: Device, on_host: bool) -> None:
    if not on_host:
        pytest.skip("the operating system cannot be asked about this device's memory")
    granularity = device.info.granularity
    span = device.memory.reserve(2 * granularity)
    chunk = device.memory.create()
    device.memory.map(span, 0, chunk)
    part(device, span, 0).fill_(7)
    device.memory.unmap(span, 0, chunk)
    seen = host.peek(span.base)
    device.memory.destroy(chunk)
    device.memory.release(span)
    assert seen is None or 7 not in seen, "the hole shows what the chunk contains"


def test_spans_are_aligned_and_apart(device: Device) -> None:
    granularity = device.info.granularity
    spans = [device.memory.reserve(n * granularity) for n in (1, 3, 2, 7)]
    ends = sorted((span.base, span.base + span.nbytes) for span in spans)
    assert all(base % granularity == 0 for base, _ in ends)
    assert all(stop <= base for (_, stop), (base, _) in pairwise(ends))
    for span in spans:
        device.memory.release(span)


@pytest.mark.parametrize("dtype", list(ITEM_BYTES))
def test_tensors_of_a_span_share_its_memory(device: Device, dtype: DType) -> None:
    granularity = device.info.granularity
    span = device.memory.reserve(2 * granularity)
    chunk = device.memory.create()
    device.memory.map(span, granularity, chunk)
    tensor = device.memory.tensor(span, dtype)
    assert tensor.numel() == 2 * granularity // ITEM_BYTES[dtype]
    tensor[tensor.numel() // 2 :] = 1.5
    again = device.memory.tensor(span, dtype)
    assert (again[tensor.numel() // 2 :] == 1.5).all()
    give_back(device, span, {granularity: chunk})


def test_a_tensor_covers_its_span_also_where_another_one_was(device: Device) -> None:
    """Addresses come again. What was remembered for the span before them is then wrong.

    In a process that has many gaps between its mappings, the same one comes late for another size.
    """
    walk, spans = random.Random(1), list[Span]()
    for _ in range(400):
        nbytes = walk.randint(1, 6) * device.info.granularity
        spans.append(device.memory.reserve(nbytes))
        assert device.memory.tensor(spans[-1], "float32").nbytes == nbytes
        while len(spans) > walk.randint(0, 8):
            device.memory.release(spans.pop(walk.randrange(len(spans))))
    for span in spans:
        device.memory.release(span)


def test_a_chunk_keeps_its_bytes_while_it_is_not_mapped(device: Device) -> None:
    granularity = device.info.granularity
    here, there = device.memory.reserve(2 * granularity), device.memory.reserve(3 * granularity)
    first, second = device.memory.create(), device.memory.create()
    device.memory.map(here, 0, first)
    part(device, here, 0).fill_(11)
    device.synchronize()
    device.memory.unmap(here, 0, first)
    device.memory.map(here, 0, second)
    part(device, here, 0).fill_(22)
    device.memory.map(there, 2 * granularity, first)
    assert holds(device, there, 2 * granularity, 11)
    assert holds(device, here, 0, 22)
    give_back(device, there, {2 * granularity: first})
    give_back(device, here, {0: second})


def test_a_random_walk_agrees_with_a_dict(device: Device) -> None:
    """Chunks are created, mapped, written, moved and destroyed; a dict says what must be where."""
    granularity = device.info.granularity
    slots = [n * granularity for n in range(5)]
    memory = device.memory
    walk = random.Random(2)
    spans = [memory.reserve(len(slots) * granularity) for _ in range(2)]
    content: dict[Chunk, int] = {}
    places: dict[tuple[Span, int], Chunk] = {}
    before = memory.info().chunks
    for step in range(400):
        place = walk.choice(spans), walk.choice(slots)
        loose = [chunk for chunk in content if chunk not in places.values()]
        if place in places:
            chunk = places[place]
            assert holds(device, *place, content[chunk]), f"step {step}"
            if walk.random() < 0.5:
                memory.unmap(*place, chunk)
                del places[place]
            else:
                content[chunk] = step % 251
                part(device, *place).fill_(content[chunk])
        elif loose and walk.random() < 0.6:
            chunk = walk.choice(loose)
            memory.map(*place, chunk)
            places[place] = chunk
            assert holds(device, *place, content[chunk]), f"step {step}"
        elif loose and walk.random() < 0.5:
            chunk = walk.choice(loose)
            memory.destroy(chunk)
            del content[chunk]
        elif len(content) < 8:
            chunk = memory.create()
            memory.map(*place, chunk)
            content[chunk] = step % 251
            part(device, *place).fill_(content[chunk])
            places[place] = chunk
        device.synchronize()
        assert memory.info().chunks == before + len(content) * granularity, f"step {step}"
    for place, chunk in places.items():
        memory.unmap(*place, chunk)
    for chunk in content:
        memory.destroy(chunk)
    for span in spans:
        memory.release(span)
    assert memory.info().chunks == before


def test_an_aliased_chunk_shows_the_same_bytes_at_each_address(device: Device) -> None:
    if Capability.ALIASING not in device.info.capabilities:
        pytest.skip("the device does not declare ALIASING")
    granularity = device.info.granularity
    span = device.memory.reserve(3 * granularity)
    chunk = device.memory.create()
    device.memory.map(span, 0, chunk)
    device.memory.map(span, 2 * granularity, chunk)
    part(device, span, 0).fill_(5)
    device.synchronize()
    assert holds(device, span, 2 * granularity, 5)
    device.memory.unmap(span, 0, chunk)
    part(device, span, 2 * granularity).fill_(6)
    device.memory.map(span, 0, chunk)
    assert holds(device, span, 0, 6)
    device.memory.unmap(span, 0, chunk)
    give_back(device, span, {2 * granularity: chunk})


def test_reserving_addresses_takes_no_memory(device: Device, on_host: bool) -> None:
    granularity = device.info.granularity
    before, held = device.memory.info(), host.physical_bytes()
    span = device.memory.reserve(8 * 1024 * MIB // granularity * granularity)
    assert device.memory.info().chunks == before.chunks
    if on_host:
        assert host.physical_bytes() - held < 4 * MIB
    device.memory.release(span)


def test_destroyed_chunks_are_physical_memory_given_back(device: Device, on_host: bool) -> None:
    granularity = device.info.granularity
    count = max(2, min(64 * MIB, device.info.total_bytes // 4) // granularity)
    span = device.memory.reserve(count * granularity)
    gc.collect()
    idle, held = device.memory.info(), host.physical_bytes()
    mapped: dict[int, Chunk] = {}
    for n in range(count):
        mapped[n * granularity] = chunk = device.memory.create()
        device.memory.map(span, n * granularity, chunk)
    device.memory.tensor(span, "float32").fill_(1.0)
    device.synchronize()
    full = device.memory.info()
    assert full.total == idle.total
    assert full.chunks - idle.chunks == count * granularity
    if on_host:
        assert host.physical_bytes() - held > 0.8 * count * granularity
    give_back(device, span, mapped)
    assert device.memory.info().chunks == idle.chunks
    if on_host:
        assert host.physical_bytes() - held < 0.05 * count * granularity + 2 * MIB
    else:
        assert device.memory.info().free - full.free > 0.5 * count * granularity


def test_no_chunk_of_a_thousand_is_kept(device: Device, on_host: bool) -> None:
    """Chunks come and go, and a leak shows in every round; what others take does not."""
    granularity = device.info.granularity
    span = device.memory.reserve(granularity)

    def taken() -> int:
        return host.physical_bytes() if on_host else -device.memory.info().free

    def come_and_go(times: int) -> int:
        """How much more memory is taken afterwards."""
        before = taken()
        for _ in range(times):
            chunk = device.memory.create()
            device.memory.map(span, 0, chunk)
            part(device, span, 0).fill_(1)
            device.synchronize()
            device.memory.unmap(span, 0, chunk)
            device.memory.destroy(chunk)
        return taken() - before

    come_and_go(10)
    grown = [come_and_go(1100) for _ in range(2)]
    device.memory.release(span)
    assert min(grown) < granularity / 2, f"each 1,100 chunks left some behind: {grown} bytes"


def test_memory_info_adds_up(device: Device, on_host: bool) -> None:
    info = device.memory.info()
    assert isinstance(info, MemoryInfo)
    assert info.total == device.info.total_bytes
    assert info.free + info.chunks <= info.total
    if on_host:
        assert info.total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_free_memory_falls_by_what_is_taken_and_rises_again(device: Device) -> None:
    """Others take and give back memory meanwhile, and a system counts late, so it may fall by
    less than was taken; but not every time."""
    granularity = device.info.granularity
    count = max(2, min(256 * MIB, device.memory.info().free // 4) // granularity)
    span = device.memory.reserve(count * granularity)

    def turn() -> tuple[float, float]:
        """By how much of what is taken free memory falls, and then rises."""
        idle = device.memory.info().free
        mapped: dict[int, Chunk] = {}
        for at in range(0, span.nbytes, granularity):
            mapped[at] = device.memory.create()
            device.memory.map(span, at, mapped[at])
        device.memory.tensor(span, "float32").fill_(1.0)
        device.synchronize()
        full = device.memory.info().free
        for at, chunk in mapped.items():
            device.memory.unmap(span, at, chunk)
            device.memory.destroy(chunk)
        return (idle - full) / span.nbytes, (device.memory.info().free - full) / span.nbytes

    fell = rose = 0.0
    for _ in range(20):
        shares = turn()
        fell, rose = max(fell, shares[0]), max(rose, shares[1])
        if fell > 0.25 and rose > 0.25:
            break
    device.memory.release(span)
    assert fell > 0.25, f"free fell by {fell:.2f} times what was taken, at most"
    assert rose > 0.25, f"free rose by {rose:.2f} times what was given back, at most"


def test_threads_may_map_beside_one_another(device: Device) -> None:
    """What one thread maps elsewhere at the same time does not disturb another's bytes."""
    granularity = device.info.granularity
    wrong: list[str] = []

    def work(value: int) -> None:
        try:
            span = device.memory.reserve(2 * granularity)
            for turn in range(25):
                at = turn % 2 * granularity
                chunk = device.memory.create()
                device.memory.map(span, at, chunk)
                part(device, span, at).fill_(value)
                if not holds(device, span, at, value):
                    wrong.append(f"thread {value} lost its bytes in turn {turn}")
                device.synchronize()
                device.memory.unmap(span, at, chunk)
                device.memory.destroy(chunk)
            device.memory.release(span)
        except Exception as error:
            wrong.append(f"thread {value}: {error!r}")

    before = device.memory.info().chunks
    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert device.memory.info().chunks == before
