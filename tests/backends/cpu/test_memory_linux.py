"""What Linux does underneath: huge pages, merged mappings, faults and forks."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from kvrt_cpu import host
from kvrt_cpu.memory import GRANULARITY, ShareableMemory

from kvrt.errors import DeviceError, OutOfMemory

KINDS = ("PrivateMemory", "ShareableMemory")


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


@pytest.mark.skipif(host.huge_pages()[0] == "never", reason="huge pages are off on this machine")
def test_a_chunk_stays_a_huge_page_when_it_moves(memory, byte):
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
        span, chunk = memory.reserve(GRANULARITY), memory.create()
        memory.map(span, 0, chunk)
        byte = ctypes.c_uint8.from_address(span.base)
        byte.value = 1
        before = huge_bytes(span.base)
        wait, go = os.pipe()
        if (child := os.fork()) == 0:
            for call, *args in (
                (memory.reserve, GRANULARITY), (memory.create,), (memory.map, span, 0, chunk),
                (memory.tensor, span, "float32"), (memory.unmap, span, 0, chunk),
                (memory.destroy, chunk), (memory.release, span),
            ):
                try:
                    call(*args)
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
        assert result.stdout.count("cannot be used in its forked child") == 7
        assert result.stdout.endswith("parent: 2 True\n")


def test_what_a_forked_child_has_put_where_the_parents_memory_is_stays_when_it_closes_the_device():
    script = """
        memory = KIND()
        span = memory.reserve(GRANULARITY)
        if (child := os.fork()) == 0:
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
            fixed = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
            rights = mmap.PROT_READ | mmap.PROT_WRITE
            assert libc.mmap(span.base, GRANULARITY, rights, fixed, 2**64 - 1, 0) == span.base
            own = ctypes.c_uint8.from_address(span.base)
            own.value = 7
            memory.close()
            os._exit(own.value)
        print("child:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    for kind in KINDS:
        result = run_script(script, kind)
        assert result.stdout == "child: 7\n", result.stderr


def run_script(body: str, kind: str) -> subprocess.CompletedProcess[str]:
    head = "\n".join(
        [
            "import ctypes, mmap, os, sys",
            f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
            "from kvrt.errors import ContractError",
            f"from kvrt_cpu.memory import GRANULARITY, {kind} as KIND",
            "from test_memory_linux import huge_bytes",
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
