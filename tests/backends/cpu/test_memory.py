import ctypes
import gc
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from kvrt_cpu import driver, host
from kvrt_cpu.memory import GRANULARITY, PrivateMemory, ShareableMemory, open_memory

from kvrt.errors import ContractError, DeviceError, OutOfMemory
from kvrt.spi import Capability, Chunk, Span

MIB = 1 << 20
KINDS = {"private": PrivateMemory, "shareable": ShareableMemory}


@pytest.fixture(params=KINDS)
def memory(request):
    memory = KINDS[request.param]()
    yield memory
    memory.close()


@pytest.fixture
def private():
    memory = PrivateMemory()
    yield memory
    memory.close()


@pytest.fixture
def shareable():
    memory = ShareableMemory()
    yield memory
    memory.close()


def resident() -> int:
    """Bytes of physical memory this process holds, in all kinds of mappings."""
    gc.collect()
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.partition("Rss:")[2].split()[0]) * 1024


def huge_bytes(address: int) -> int:
    """How much of the mapping that contains `address` is in huge pages."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            low, _, high = first.partition("-")
            inside = int(low, 16) <= address < int(high, 16)
        elif inside and first in ("AnonHugePages:", "ShmemPmdMapped:") and rest[0] != "0":
            return int(rest[0]) * 1024
    return 0


def held(memory: PrivateMemory | ShareableMemory) -> int:
    """Bytes of physical memory in the chunks, as the operating system counts them."""
    if isinstance(memory, ShareableMemory):
        return os.fstat(memory.fd).st_blocks * 512
    return resident()


def byte(span: Span, offset: int) -> ctypes.c_uint8:
    return ctypes.c_uint8.from_address(span.base + offset)


# --- memory comes and goes -------------------------------------------------------------------


def test_reserving_addresses_takes_no_memory(memory):
    before = resident()
    span = memory.reserve(64 << 30)
    assert span.base % GRANULARITY == 0
    assert resident() - before < MIB
    memory.release(span)


@pytest.mark.promise("P4")
def test_physical_memory_comes_with_create_and_goes_with_destroy(memory):
    before = held(memory)
    chunks = [memory.create() for _ in range(32)]
    assert memory.info().chunks == 32 * GRANULARITY
    assert held(memory) - before == pytest.approx(32 * GRANULARITY, abs=MIB)
    for chunk in chunks:
        memory.destroy(chunk)
    assert memory.info().chunks == 0
    assert held(memory) - before < MIB


def test_map_and_unmap_neither_take_nor_give_memory(memory):
    span = memory.reserve(8 * GRANULARITY)
    chunk = memory.create()
    before = held(memory)
    for at in range(0, span.nbytes, GRANULARITY):
        memory.map(span, at, chunk)
        byte(span, at).value = 1
        memory.unmap(span, at, chunk)
    assert abs(held(memory) - before) < MIB


def test_closing_returns_memory_addresses_and_files_even_of_mapped_chunks():
    for kind in KINDS.values():
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
    memory.close()
    with pytest.raises(ContractError, match="closed"):
        memory.create()


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


def test_random_operations_agree_with_a_plain_dict(memory):
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


# --- what the kernel does underneath ----------------------------------------------------------


@pytest.mark.skipif(host.huge_pages()[0] == "never", reason="huge pages are off on this machine")
def test_a_chunk_stays_a_huge_page_when_it_moves(memory):
    if isinstance(memory, ShareableMemory) and not collapses(memory):
        pytest.skip("this kernel cannot gather shared memory into huge pages")
    span = memory.reserve(4 * GRANULARITY)
    chunk = memory.create()
    for at in (0, 2 * GRANULARITY, GRANULARITY):
        memory.map(span, at, chunk)
        byte(span, at).value = 1
        assert huge_bytes(span.base + at) == GRANULARITY
        memory.unmap(span, at, chunk)


def collapses(memory: ShareableMemory) -> bool:
    chunk = memory.create()
    try:
        memory.make_huge(chunk.handle)
    except (DeviceError, OutOfMemory):
        return False
    finally:
        memory.destroy(chunk)
    return True


def test_mappings_of_a_filled_and_emptied_span_are_merged_again(memory):
    span = memory.reserve(64 * GRANULARITY)
    before, _ = host.mappings()
    chunks = [memory.create() for _ in range(64)]
    order = list(enumerate(chunks))
    random.Random(1).shuffle(order)
    for place, chunk in order:
        memory.map(span, place * GRANULARITY, chunk)
    assert host.mappings()[0] - before <= 4, "neighbouring chunks share one mapping"
    random.Random(2).shuffle(order)
    for place, chunk in order:
        memory.unmap(span, place * GRANULARITY, chunk)
    for chunk in chunks:
        memory.destroy(chunk)
    assert host.mappings()[0] - before <= 4


def test_a_shareable_chunk_is_the_same_memory_at_every_address(shareable):
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


def test_a_stray_read_of_a_hole_ends_the_process_instead_of_giving_data():
    script = """
        memory = KIND()
        span = memory.reserve(2 * GRANULARITY)
        chunk = memory.create()
        memory.map(span, 0, chunk)
        memory.unmap(span, 0, chunk)
        print("unmapped", flush=True)
        ctypes.c_uint8.from_address(span.base).value
    """
    for kind in KINDS:
        result = run_script(script, kind)
        assert result.stdout == "unmapped\n"
        assert result.returncode == -11


def test_a_forked_child_is_refused_and_does_not_cost_the_parent_its_huge_pages():
    script = """
        memory = KIND()
        span = memory.reserve(GRANULARITY)
        memory.map(span, 0, memory.create())
        byte = ctypes.c_uint8.from_address(span.base)
        byte.value = 1
        before = huge_bytes(span.base)
        wait, go = os.pipe()
        if (child := os.fork()) == 0:
            try:
                memory.create()
            except ContractError as error:
                print("child:", error, flush=True)
            memory.close()
            os.read(wait, 1)
            os._exit(0)
        byte.value = 2
        same = huge_bytes(span.base) == before
        os.write(go, b"x")
        os.waitpid(child, 0)
        print("parent:", byte.value, same)
    """
    for kind in KINDS:
        result = run_script(script, kind)
        assert result.returncode == 0, result.stderr
        assert "cannot be used in its forked child" in result.stdout
        assert result.stdout.endswith("parent: 2 True\n")


def run_script(body: str, kind: str) -> subprocess.CompletedProcess[str]:
    head = "\n".join(
        [
            "import ctypes, os, sys",
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
            "from kvrt.errors import ContractError",
            f"from kvrt_cpu.memory import GRANULARITY, {KINDS[kind].__name__} as KIND",
            "from test_memory import huge_bytes",
        ]
    )
    lines = [line.removeprefix(" " * 8) for line in body.splitlines()]
    return subprocess.run(
        [sys.executable, "-c", "\n".join([head, *lines])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# --- threads ----------------------------------------------------------------------------------


@pytest.mark.promise("P7")
def test_eight_threads_may_create_map_unmap_and_destroy_at_once(memory):
    workers, places, rounds = 8, 6, 60
    span = memory.reserve(workers * places * GRANULARITY)
    before = held(memory)
    failures: list[BaseException] = []
    finished = threading.Event()

    def work(number: int) -> None:
        rng = random.Random(number)
        mine: dict[int, Chunk] = {}
        try:
            for turn in range(rounds * places):
                at = (number * places + rng.randrange(places)) * GRANULARITY
                if at in mine:
                    assert byte(span, at).value == at // GRANULARITY
                    chunk = mine.pop(at)
                    memory.unmap(span, at, chunk)
                    if turn % 3:
                        memory.destroy(chunk)
                        continue
                    memory.map(span, at, chunk)
                    assert byte(span, at).value == at // GRANULARITY
                    mine[at] = chunk
                else:
                    mine[at] = memory.create()
                    memory.map(span, at, mine[at])
                    byte(span, at).value = at // GRANULARITY
            for at, chunk in mine.items():
                memory.unmap(span, at, chunk)
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


# --- failures ---------------------------------------------------------------------------------


def test_too_little_free_memory_is_typed_and_says_how_much_there_is(memory, monkeypatch):
    monkeypatch.setattr(host.HostMemory, "free", lambda self, exact=True: GRANULARITY - 1)
    with pytest.raises(OutOfMemory, match="another chunk") as error:
        memory.create()
    assert (error.value.needed, error.value.free) == (GRANULARITY, GRANULARITY - 1)
    assert memory.info().chunks == 0


def test_memory_can_be_filled_to_the_end_and_used_on(memory, monkeypatch):
    room = 20 * GRANULARITY + 1000
    chunks = []

    def free(self, exact=True):
        return room - len(chunks) * GRANULARITY

    monkeypatch.setattr(host.HostMemory, "free", free)
    for _ in range(20):
        chunks.append(memory.create())
    with pytest.raises(OutOfMemory):
        memory.create()
    memory.destroy(chunks.pop())
    chunks.append(memory.create())
    with pytest.raises(OutOfMemory):
        memory.create()
    assert memory.info().chunks == 20 * GRANULARITY


def test_running_out_of_addresses_names_the_call_and_the_error(memory):
    with pytest.raises(OutOfMemory, match=r"mmap of .* bytes failed with ENOMEM"):
        memory.reserve(1 << 50)


def test_a_chunk_the_kernel_refuses_leaves_nothing_behind(memory, monkeypatch):
    before = held(memory)

    def refuse(*_):
        raise OutOfMemory("the kernel has none")

    with monkeypatch.context() as patch:
        real = driver.advise
        patch.setattr(driver, "allocate", refuse)
        patch.setattr(
            driver,
            "advise",
            lambda at, n, advice: (
                refuse() if advice == driver.MADV_POPULATE_WRITE else real(at, n, advice)
            ),
        )
        for _ in range(3):
            with pytest.raises(OutOfMemory):
                memory.create()
    assert memory.info().chunks == 0
    assert held(memory) - before < MIB
    memory.destroy(memory.create())


def test_an_unmap_that_fails_half_way_leaves_the_chunk_mapped(private, monkeypatch):
    span = private.reserve(GRANULARITY)
    chunk = private.create()
    private.map(span, 0, chunk)
    byte(span, 9).value = 9

    def refuse(*_):
        raise DeviceError("no", call="mmap", code="EPERM")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "clear", refuse)
        with pytest.raises(DeviceError):
            private.unmap(span, 0, chunk)
    assert byte(span, 9).value == 9
    private.unmap(span, 0, chunk)


def test_too_many_mappings_name_the_setting_and_the_command(memory, monkeypatch):
    span = memory.reserve(2 * GRANULARITY)
    chunk = memory.create()
    with monkeypatch.context() as patch:
        patch.setattr(host, "mappings", lambda: (65000, 65530))
        with pytest.raises(OutOfMemory, match=r"vm\.max_map_count is 65530") as error:
            memory.map(span, 0, chunk)
    assert error.value.fix == "sudo sysctl -w vm.max_map_count=262120"
    memory.map(span, 0, chunk)
    memory.unmap(span, 0, chunk)


def test_mappings_are_counted_seldom_while_there_are_few(memory, monkeypatch):
    counted = []
    real = host.mappings
    monkeypatch.setattr(host, "mappings", lambda: counted.append(1) or real())
    span = memory.reserve(GRANULARITY)
    chunk = memory.create()
    for _ in range(500):
        memory.map(span, 0, chunk)
        memory.unmap(span, 0, chunk)
    assert len(counted) <= 1


def test_other_errors_carry_the_kernel_s_names():
    with pytest.raises(DeviceError, match="munmap of 4096 bytes failed with EINVAL") as error:
        driver.unmap(1, 4096)
    assert (error.value.call, error.value.code) == ("munmap", "EINVAL")
    with pytest.raises(DeviceError) as error:
        driver.allocate(-1, 0, 4096)
    assert (error.value.call, error.value.code) == ("fallocate", "EBADF")
    with pytest.raises(DeviceError) as error:
        driver.move(1, 4096, 4096)
    assert (error.value.call, error.value.code) == ("mremap", "EINVAL")


# --- older kernels ----------------------------------------------------------------------------


def without(monkeypatch, advice):
    """A kernel that does not know one kind of madvise."""
    real = driver.advise

    def advise(address, nbytes, what):
        if what == advice:
            raise DeviceError("madvise failed with EINVAL", call="madvise", code="EINVAL")
        real(address, nbytes, what)

    monkeypatch.setattr(driver, "advise", advise)


def test_a_kernel_without_private_chunks_gets_shared_ones_and_says_so(monkeypatch):
    without(monkeypatch, driver.MADV_POPULATE_WRITE)
    memory, notes = open_memory(shareable=False)
    assert isinstance(memory, ShareableMemory)
    assert any("before 5.14" in note for note in notes)
    memory.close()


def test_a_kernel_that_cannot_gather_huge_pages_still_works_and_says_so(monkeypatch):
    without(monkeypatch, driver.MADV_COLLAPSE)
    memory, notes = open_memory(shareable=True)
    assert any("small pages" in note for note in notes)
    span = memory.reserve(GRANULARITY)
    memory.map(span, 0, memory.create())
    byte(span, 3).value = 3
    assert byte(span, 3).value == 3
    memory.close()


def test_a_kernel_with_huge_pages_off_says_so(monkeypatch):
    monkeypatch.setattr(host, "huge_pages", lambda: ("never", 0))
    memory, notes = open_memory(shareable=False)
    assert any("huge pages are off" in note for note in notes)
    memory.close()
