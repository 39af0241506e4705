"""What stands in the way of opening a device, and what closing gives back."""

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from kvrt_kernels.gpu import Kernels

from kvrt import registry
from kvrt.errors import BackendUnavailable, DeviceError
from kvrt.spi import Capability
from tests.emulator.inside.conftest import Open
from tests.emulator.inside.names import CALLS, INVALID, LAUNCH_FAILED
from tests.emulator.library import Emulator
from tests.emulator.place import HostPlace

NO_DEVICE = 100


def test_a_device_that_is_not_there_is_refused_with_how_many_are(
    emulator: Emulator, vendor: str
) -> None:
    emulator.set(devices=2)
    with pytest.raises(BackendUnavailable, match=r"no .* device 2: there are 2") as raised:
        registry.load(vendor).open(2)
    assert raised.value.fix == "use a device from 0 to 1"


def test_no_device_at_all_is_said(emulator: Emulator, vendor: str) -> None:
    emulator.set(devices=0)
    probe = registry.load(vendor).probe()
    assert not probe.available
    assert probe.devices == 0
    with pytest.raises(BackendUnavailable, match=r"NO_DEVICE|hipErrorNoDevice") as raised:
        registry.load(vendor).open()
    assert "VISIBLE_DEVICES" in raised.value.fix


def test_a_driver_that_is_too_old_is_said_with_what_is_needed(
    emulator: Emulator, vendor: str
) -> None:
    emulator.set(version={"cuda": 11080, "rocm": 50700000}[vendor])
    with pytest.raises(BackendUnavailable, match=r"(11\.8|5\.7): too old") as raised:
        registry.load(vendor).open()
    assert "update" in raised.value.fix


@pytest.mark.parametrize("invariant", [False, True])
def test_a_device_is_what_its_driver_says_and_can_do_what_its_kernels_can(
    vendor: str, *, invariant: bool
) -> None:
    asked = []

    class Asked(HostPlace):
        def kernels(self, index: int, arch: str, multiprocessors: int) -> Kernels:
            asked.append((index, arch, multiprocessors))
            found = super().kernels(index, arch, multiprocessors)
            return replace(
                found, head_dims=(64, 96), weight_dtypes=("float16",), batch_invariant=invariant
            )

    backend = type(importlib.import_module(f"kvrt_{vendor}").backend)(Asked())
    device = backend.open()
    info = device.info
    told = {"cuda": ("sm_90", 132), "rocm": ("gfx942", 304)}[vendor]
    assert asked == [(0, *told)]
    assert (info.backend, info.index, info.name) == (vendor, 0, "Emulated GPU in host memory")
    assert info.arch == told[0]
    assert info.total_bytes == device.memory.info().total
    assert (info.head_dims, info.weight_dtypes) == ((64, 96), ("float16",))
    assert (info.compute_dtypes, "fp8" in info.kv_formats) == (("float32",), True)
    can = {Capability.ASYNC_COPIES, Capability.TREES, Capability.VALUE_WIDTHS}
    can |= {Capability.ALIASING} if vendor == "cuda" else set()
    assert info.capabilities == can | ({Capability.BATCH_INVARIANT} if invariant else set())
    device.close()


def test_every_call_of_opening_may_fail(emulator: Emulator, open_device: Open) -> None:
    open_device().close()
    total = emulator.calls()
    for number in range(1, total):
        emulator.fail(number, INVALID)
        with contextlib.suppress(BackendUnavailable, DeviceError):
            open_device().close()
        emulator.fail(0, 0)  # it may have needed fewer calls than the first
        open_device()  # what was left half-open does not stand in its way


@pytest.mark.parametrize("number", range(1, 25))
def test_whichever_call_of_closing_fails_closing_again_gives_back_the_rest(
    number: int, emulator: Emulator, open_device: Open
) -> None:
    device = open_device()
    size = device.info.granularity
    span = device.memory.reserve(3 * size)
    for n in range(3):
        device.memory.map(span, n * size, device.memory.create())
    device.memory.create()
    device.copier.host_buffer(64)
    device.fence().wait()
    emulator.fail(number, INVALID)
    with contextlib.suppress(DeviceError):
        device.close()
    emulator.fail(0, 0)
    device.close()
    assert emulator.left() == {}


def test_closing_a_lost_device_says_so_and_ends(emulator: Emulator, open_device: Open) -> None:
    device = open_device()
    span = device.memory.reserve(device.info.granularity)
    device.memory.map(span, 0, device.memory.create())
    emulator.lose(LAUNCH_FAILED)
    with pytest.raises(DeviceError, match=r"LAUNCH_FAILED|LaunchFailure") as raised:
        device.close()
    assert "another process" in raised.value.fix
    emulator.lose(0)


# --- what is missing besides the driver ----------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    detail: str
    fix: str
    version: tuple[int, ...] = field(default=())


@pytest.fixture
def with_software(vendor: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    def make(detail: str, fix: str = "", version: tuple[int, ...] = ()) -> object:
        backend = registry.load(vendor)
        place = backend._place  # type: ignore[attr-defined]
        answer = Missing(detail, fix, version)
        monkeypatch.setattr(type(place), "software", lambda self: answer)
        return backend

    return make


def test_what_torch_lacks_is_said_with_what_to_install(
    with_software: Callable[..., registry.Backend],
) -> None:
    backend = with_software("this torch is built for CPUs only", "install another")
    assert not backend.probe().available
    with pytest.raises(BackendUnavailable, match="built for CPUs only") as raised:
        backend.open()
    assert raised.value.fix == "install another"


def test_a_torch_that_is_newer_than_the_driver_is_said(
    with_software: Callable[..., registry.Backend],
) -> None:
    backend = with_software("torch", version=(99, 1))
    with pytest.raises(BackendUnavailable, match=r"torch needs .*99\.1") as raised:
        backend.open()
    assert "update" in raised.value.fix


def test_a_device_without_virtual_memory_is_refused(
    emulator: Emulator, vendor: str, open_device: Open
) -> None:
    emulator.set(virtual_memory=0)
    with pytest.raises(BackendUnavailable, match="no virtual memory management"):
        open_device()


def test_the_call_that_fails_is_named(emulator: Emulator, vendor: str, open_device: Open) -> None:
    emulator.fail(1, INVALID, CALLS["stream"][vendor])
    with pytest.raises(DeviceError, match=CALLS["stream"][vendor]):
        open_device()
