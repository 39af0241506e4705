"""What memory promises: it comes, keeps its bytes, and goes, from any thread."""

import os
import random
import sys
import threading

import pytest
import torch
from kvrt_cpu import driver, host
from kvrt_cpu.memory import GRANULARITY, PrivateMemory, ShareableMemory

from kvrt.errors import ContractError
from kvrt.spi import Capability, Chunk

MIB = 1 << 20
KINDS = (PrivateMemory, ShareableMemory)


# --- memory comes and goes -------------------------------------------------------------------


def test_reserving_addresses_takes_no_memory(memory, resident):
    before = resident()
    span = memory.reserve(64 << 30)
    assert span.base % GRANULARITY == 0
    assert resident() - before < MIB
    memory.release(span)


@pytest.mark.promise("P4")
def test_physical_memory_comes_with_create_and_goes_with_destroy(memory, held):
    before = held(memory)
    chunks = [memory.create() for _ in range(32)]
    assert memory.info().chunks == 32 * GRANULARITY
    assert held(memory) - before == pytest.approx(32 * GRANULARITY, abs=MIB)
    for chunk in chunks:
        memory.destroy(chunk)
    assert memory.info().chunks == 0
    assert held(memory) - before < MIB


def test_map_and_unmap_neither_take_nor_give_memory(memory, byte, held):
    span = memory.reserve(8 * GRANULARITY)
    chunk = memory.create()
    before = held(memory)
    for at in range(0, span.nbytes, GRANULARITY):
        memory.map(span, at, chunk)
        byte(span, at).value = 1
        memory.unmap(span, at, chunk)
    assert abs(held(memory) - before) < MIB


def test_closing_returns_memory_addresses_and_files_even_of_mapped_chunks(resident):
    for kind in KINDS:
        kind().close()
        before = resident(), host.mappings()[0], len(os.listdir("/proc/self/fd"))
        memory = kind()
        span = memory.reserve(1 << 30)
        for at in range(0, 16 * GRANULARITY, GRANULARITY):
            memory.map(span, at, memory.create())
        memory.create()
        memory.tensor(span, "float32")[:100].fill_(1)
        memory.close()
        memory.close()
        after = resident(), host.mappings()[0], len(os.listdir("/proc/self/fd"))
        assert after[0] - before[0] < MIB
        assert after[1] - before[1] <= 2, "malloc may have mapped something; we must not have"
        assert after[2] == before[2]


def test_a_closed_memory_refuses_to_be_used(memory):
    span, chunk = memory.reserve(2 * GRANULARITY), memory.create()
    memory.map(span, 0, chunk)
    memory.close()
    for call, *args in (
        (memory.reserve, GRANULARITY),
        (memory.create,),
        (memory.map, span, GRANULARITY, chunk),
        (memory.tensor, span, "float32"),
        (memory.unmap, span, 0, chunk),
        (memory.destroy, chunk),
        (memory.release, span),
    ):
        with pytest.raises(ContractError, match="closed"):
            call(*args)


# --- bytes ------------------------------------------------------------------------------------


def test_a_chunk_keeps_its_bytes_wherever_it_is_mapped(memory):
    span = memory.reserve(5 * GRANULARITY)
    chunk = memory.create()
    pattern = torch.randn(GRANULARITY // 4)
    memory.map(span, 0, chunk)
    memory.tensor(span, "float32")[: len(pattern)] = pattern
    memory.unmap(span, 0, chunk)
    memory.map(span, 3 * GRANULARITY, chunk)
    place = slice(3 * len(pattern), 4 * len(pattern))
    assert torch.equal(memory.tensor(span, "float32")[place], pattern)


@pytest.mark.promise("P6")
def test_a_new_chunk_never_shows_the_bytes_of_a_destroyed_one(memory):
    span = memory.reserve(GRANULARITY)
    for _ in range(3):
        chunk = memory.create()
        memory.map(span, 0, chunk)
        tensor = memory.tensor(span, "float32")
        assert not tensor.any()
        tensor.fill_(-1.0)
        memory.unmap(span, 0, chunk)
        memory.destroy(chunk)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_tensor_covers_its_whole_span_and_shares_its_memory(memory, dtype):
    span = memory.reserve(3 * GRANULARITY)
    memory.map(span, GRANULARITY, memory.create())
    tensor = memory.tensor(span, dtype)
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.nbytes == span.nbytes
    assert tensor.data_ptr() == span.base
    tensor[len(tensor) // 2] = 1.0
    assert memory.tensor(span, dtype)[len(tensor) // 2] == 1.0


def test_random_operations_agree_with_a_plain_dict(memory, byte):
    places = 24
    span = memory.reserve(places * GRANULARITY)
    rng = random.Random(7)
    content: dict[int, int] = {}
    mapped: dict[int, Chunk] = {}
    loose: list[Chunk] = []
    for turn in range(3000):
        action = rng.choice(("create", "destroy", "map", "map", "unmap", "write"))
        holes = [p for p in range(places) if p not in mapped]
        if action == "create" and len(content) < 32:
            chunk = memory.create()
            assert chunk.handle not in content
            content[chunk.handle] = 0
            loose.append(chunk)
        elif action == "destroy" and loose:
            chunk = loose.pop(rng.randrange(len(loose)))
            memory.destroy(chunk)
            del content[chunk.handle]
        elif action == "map" and loose and holes:
            place = rng.choice(holes)
            mapped[place] = loose.pop(rng.randrange(len(loose)))
            memory.map(span, place * GRANULARITY, mapped[place])
        elif action == "unmap" and mapped:
            place = rng.choice(sorted(mapped))
            memory.unmap(span, place * GRANULARITY, mapped[place])
            loose.append(mapped.pop(place))
        elif action == "write" and mapped:
            place = rng.choice(sorted(mapped))
            content[mapped[place].handle] = turn % 251
            byte(span, place * GRANULARITY).value = turn % 251
            byte(span, (place + 1) * GRANULARITY - 1).value = turn % 251
        for place, chunk in mapped.items():
            assert byte(span, place * GRANULARITY).value == content[chunk.handle]
            assert byte(span, (place + 1) * GRANULARITY - 1).value == content[chunk.handle]
        assert memory.info().chunks == len(content) * GRANULARITY or turn % 100


# --- one chunk at several addresses ------------------------------------------------------------


def test_a_shareable_chunk_is_the_same_memory_at_every_address(shareable, byte):
    assert Capability.ALIASING in shareable.capabilities
    first, second = shareable.reserve(2 * GRANULARITY), shareable.reserve(GRANULARITY)
    chunk = shareable.create()
    for span, at in ((first, 0), (first, GRANULARITY), (second, 0)):
        shareable.map(span, at, chunk)
    byte(first, 5).value = 77
    assert byte(first, GRANULARITY + 5).value == byte(second, 5).value == 77
    shareable.unmap(first, 0, chunk)
    assert byte(second, 5).value == 77


def test_private_chunks_do_not_claim_to_be_mappable_twice(private):
    assert Capability.ALIASING not in private.capabilities


# --- threads ----------------------------------------------------------------------------------


@pytest.mark.promise("P7")
@pytest.mark.timeout(120)
def test_eight_threads_may_create_map_unmap_and_destroy_at_once(memory, byte, held):
    """20,000 calls of each thread. Most chunks are only moved: filling a new one takes longest."""
    workers, places, calls = 8, 6, 20_000
    span = memory.reserve(workers * places * GRANULARITY)
    before = held(memory)
    failures: list[BaseException] = []
    finished = threading.Event()

    def work(number: int) -> None:
        rng = random.Random(number)
        mapped: dict[int, Chunk] = {}
        spare: list[tuple[Chunk, int]] = []  # and what is written in it
        done = 0
        try:
            while done < calls:
                at = (number * places + rng.randrange(places)) * GRANULARITY
                if at in mapped:
                    chunk, mark = mapped.pop(at), byte(span, at).value
                    assert mark // places == number
                    memory.unmap(span, at, chunk)
                    spare.append((chunk, mark))
                elif spare:
                    chunk, mark = spare.pop()
                    if rng.random() < 0.1:
                        memory.destroy(chunk)
                    else:
                        memory.map(span, at, chunk)
                        assert byte(span, at).value == mark
                        mapped[at] = chunk
                else:
                    mapped[at] = memory.create()
                    memory.map(span, at, mapped[at])
                    byte(span, at).value = number * places + rng.randrange(places)
                    done += 1
                done += 1
            for at, chunk in mapped.items():
                memory.unmap(span, at, chunk)
                memory.destroy(chunk)
            for chunk, _ in spare:
                memory.destroy(chunk)
        except BaseException as error:
            failures.append(error)

    def take_every_gap() -> None:
        """Maps memory all the time, as malloc does, and sees where the kernel puts it."""
        while not finished.is_set():
            address = driver.reserve(GRANULARITY)
            if span.base <= address < span.base + span.nbytes:
                failures.append(AssertionError("a stranger's mapping landed inside the span"))
            driver.unmap(address, GRANULARITY)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(workers)]
        stranger = threading.Thread(target=take_every_gap)
        for thread in (stranger, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        finished.set()
        stranger.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert memory.info().chunks == 0
    assert held(memory) - before < 2 * MIB
