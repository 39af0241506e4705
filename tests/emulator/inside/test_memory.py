"""Memory on an emulated driver: what is called, what fails, and what stands after it."""

import pytest
import torch

from kvrt.errors import DeviceError, OutOfMemory
from kvrt.spi import Capability
from tests.emulator.inside.conftest import MIB, Open
from tests.emulator.inside.names import CALLS, ERRORS, INVALID, OUT_OF_MEMORY
from tests.emulator.library import Emulator
from tests.emulator.place import HostPlace


@pytest.mark.parametrize("step", ["reserve", "create", "map", "access", "unmap", "release", "free"])
def test_a_call_that_fails_is_named_and_changes_nothing(
    step: str, emulator: Emulator, open_device: Open, vendor: str
) -> None:
    device = open_device()
    size = device.info.granularity
    call = CALLS[step][vendor]
    span = device.memory.reserve(2 * size)
    chunk, mapped = device.memory.create(), device.memory.create()
    device.memory.map(span, size, mapped)
    device.memory.tensor(span, "float32")[size // 4 :] = 5.0

    actions = {
        "reserve": lambda: device.memory.reserve(size),
        "create": lambda: device.memory.create(),
        "map": lambda: device.memory.map(span, 0, chunk),
        "access": lambda: device.memory.map(span, 0, chunk),
        "unmap": lambda: device.memory.unmap(span, size, mapped),
        "release": lambda: device.memory.destroy(chunk),
        "free": lambda: device.memory.release(span),
    }
    if step == "free":
        device.memory.unmap(span, size, mapped)
    before = emulator.left()
    emulator.fail(1, INVALID, call)
    with pytest.raises(DeviceError, match=f"^{call}\\(.+\\) failed with") as raised:
        actions[step]()
    assert (raised.value.call, raised.value.code) == (call, ERRORS[INVALID][vendor])
    assert emulator.left() == before
    if step != "free":
        assert (device.memory.tensor(span, "float32")[size // 4 :] == 5).all()
    actions[step]()  # and the second time it works


@pytest.mark.parametrize("step", ["reserve", "create", "pin"])
def test_no_memory_is_said_with_what_was_needed(
    step: str, emulator: Emulator, open_device: Open, vendor: str
) -> None:
    device = open_device()
    size = device.info.granularity
    emulator.fail(1, OUT_OF_MEMORY, CALLS[step][vendor])
    with pytest.raises(OutOfMemory, match=ERRORS[OUT_OF_MEMORY][vendor]) as raised:
        {
            "reserve": lambda: device.memory.reserve(size),
            "create": lambda: device.memory.create(),
            "pin": lambda: device.copier.host_buffer(size),
        }[step]()
    assert raised.value.needed == size
    assert raised.value.fix


@pytest.mark.parametrize("returns", [True, False])
def test_torch_is_asked_for_what_it_keeps_before_memory_is_short(
    returns: bool, emulator: Emulator, open_device: Open, vendor: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: list[int] = []

    def give_back(self: HostPlace, index: int) -> bool:
        asked.append(index)
        return returns

    monkeypatch.setattr(HostPlace, "give_back", give_back)
    device = open_device()
    emulator.fail(1, OUT_OF_MEMORY, CALLS["create"][vendor])
    if returns:
        device.memory.create()
    else:
        with pytest.raises(OutOfMemory):
            device.memory.create()
    assert asked == [0], "once"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("exports", [0, 1])
def test_memory_is_asked_to_be_shareable_only_where_it_can_be(
    exports: int, emulator: Emulator, open_device: Open
) -> None:
    emulator.set(exports=exports)
    open_device(shareable=True).memory.create()


def test_a_device_that_is_full_says_so_and_works_on(emulator: Emulator, open_device: Open) -> None:
    emulator.set(memory=64 * MIB)
    device = open_device()
    count = 64 * MIB // device.info.granularity
    chunks = [device.memory.create() for _ in range(count)]
    with pytest.raises(OutOfMemory):
        device.memory.create()
    assert device.memory.info().free == 0
    device.memory.destroy(chunks.pop())
    device.memory.create()


def test_the_span_is_wrapped_once_holes_and_all(open_device: Open) -> None:
    """8 GiB of addresses, of which 2 MiB are there."""
    device = open_device()
    size = device.info.granularity
    span = device.memory.reserve(4096 * size)
    tensor = device.memory.tensor(span, "bfloat16")
    device.memory.map(span, 1000 * size, device.memory.create())
    part = tensor[1000 * size // 2 : 1001 * size // 2]
    assert part.isnan().all(), "new memory is undefined: in the emulator, it is NaN"
    part.fill_(1.5)
    again = device.memory.tensor(span, "float16")
    assert again.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert torch.equal(again[1000 * size // 2 :][:1].view(torch.bfloat16), part[:1])


def test_a_tensor_may_be_dropped_after_its_span(open_device: Open) -> None:
    device = open_device()
    span = device.memory.reserve(device.info.granularity)
    tensor = device.memory.tensor(span, "float32")
    device.memory.release(span)
    del tensor


def test_memory_of_another_device_is_not_taken(emulator: Emulator, open_device: Open) -> None:
    emulator.set(devices=2)
    first, second = open_device(0), open_device(1)
    before = second.memory.info().free
    first.memory.create()
    assert second.memory.info().free == before
    assert first.memory.info().chunks == first.info.granularity
    assert second.memory.info().chunks == 0


@pytest.mark.usefixtures("cuda")
def test_a_chunk_may_be_mapped_twice(open_device: Open) -> None:
    device = open_device()
    assert Capability.ALIASING in device.info.capabilities
    size = device.info.granularity
    span, chunk = device.memory.reserve(2 * size), device.memory.create()
    device.memory.map(span, 0, chunk)
    device.memory.map(span, size, chunk)
    tensor = device.memory.tensor(span, "float32")
    tensor[0] = 7
    assert tensor[size // 4] == 7


# --- ROCm's own ways -----------------------------------------------------------------------------


@pytest.mark.usefixtures("rocm")
def test_a_map_that_only_claims_to_have_worked_is_found_out(
    emulator: Emulator, open_device: Open
) -> None:
    device = open_device()
    emulator.set(silent_map=1)
    size = device.info.granularity
    span, chunk = device.memory.reserve(size), device.memory.create()
    emulator.fail(1, INVALID, "hipMemMap")
    with pytest.raises(DeviceError):  # and not the end of the process, by unmapping it
        device.memory.map(span, 0, chunk)
    device.memory.map(span, 0, chunk)
    device.memory.tensor(span, "float32").fill_(1)


@pytest.mark.usefixtures("rocm")
def test_access_that_was_not_given_is_found_out(emulator: Emulator, open_device: Open) -> None:
    device = open_device()
    span, chunk = device.memory.reserve(device.info.granularity), device.memory.create()
    emulator.fail(1, INVALID, "hipMemGetAccess")
    with pytest.raises(DeviceError, match="hipMemGetAccess"):
        device.memory.map(span, 0, chunk)
    device.memory.map(span, 0, chunk)


@pytest.mark.usefixtures("rocm")
def test_memory_that_does_not_come_back_is_used_again_and_said(
    emulator: Emulator, open_device: Open
) -> None:
    emulator.set(keeps_memory=1, memory=64 * MIB)
    device = open_device()
    assert any("grows, but shrinks only when it is closed" in note for note in device.info.notes)
    size = device.info.granularity
    span = device.memory.reserve(size)
    for _ in range(100):  # three times as much as there is
        chunk = device.memory.create()
        device.memory.map(span, 0, chunk)
        device.memory.unmap(span, 0, chunk)
        device.memory.destroy(chunk)
    info = device.memory.info()
    assert (info.chunks, info.free) == (0, info.total)
    assert emulator.count("handles") == 1
    device.memory.release(span)
    assert emulator.count("handles") == emulator.count("chunks") == 0


@pytest.mark.usefixtures("rocm")
def test_memory_that_comes_back_is_given_back_at_once(
    emulator: Emulator, open_device: Open
) -> None:
    device = open_device()
    assert not any("gives memory back only" in note for note in device.info.notes)
    span, chunk = device.memory.reserve(device.info.granularity), device.memory.create()
    device.memory.map(span, 0, chunk)
    device.memory.unmap(span, 0, chunk)
    device.memory.destroy(chunk)
    assert emulator.count("chunks") == 0
