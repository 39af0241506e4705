"""What goes wrong is typed, says why, and leaves everything as it was; older kernels are served."""

import pytest
from kvrt_cpu import driver, host
from kvrt_cpu.memory import GRANULARITY, ShareableMemory, _Slots, open_memory

from kvrt.errors import DeviceError, OutOfMemory

MIB = 1 << 20


def test_too_little_free_memory_is_typed_and_says_how_much_there_is(memory, monkeypatch):
    monkeypatch.setattr(host.HostMemory, "free", lambda self, exact=True: GRANULARITY - 1)
    with pytest.raises(OutOfMemory, match="another chunk") as error:
        memory.create()
    assert (error.value.needed, error.value.free) == (GRANULARITY, GRANULARITY - 1)
    assert memory.info().chunks == 0


def test_every_place_for_a_chunk_is_given_once_the_lowest_first():
    slots = _Slots(3)
    assert [slots.take() for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OutOfMemory, match=r"all .* bytes of memory are taken"):
        slots.take()
    slots.give(1)
    slots.give(0)
    assert (slots.take(), slots.live) == (0, 2)


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


def test_a_chunk_the_kernel_refuses_leaves_nothing_behind(memory, monkeypatch, held):
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


def test_an_unmap_that_fails_half_way_leaves_the_chunk_mapped(private, monkeypatch, byte):
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


def test_a_kernel_that_cannot_gather_huge_pages_still_works_and_says_so(monkeypatch, byte):
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
