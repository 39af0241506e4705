"""Calls from any thread, whatever is current there."""

import importlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvrt.spi import Device
from tests.emulator.inside.conftest import Open
from tests.emulator.library import Emulator


def everything(device: Device) -> None:
    """All that a device may be asked for, but opening it."""
    memory, size = device.memory, device.info.granularity
    span = memory.reserve(size)
    chunk = memory.create()
    memory.map(span, 0, chunk)
    there, back = memory.tensor(span, "float32")[:64], device.copier.host_buffer(256)
    copied = device.copier.to_host(back, there.fill_(2).view(torch.uint8), device.fence())
    while not copied.done():
        pass
    assert device.copier.within(there[:8], there[32:40], after=device.fence()).wait()
    assert memory.info().chunks == size
    device.synchronize()
    memory.unmap(span, 0, chunk)
    memory.destroy(chunk)
    memory.release(span)
    device.close()


def in_a_thread(work: Callable[[], object]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def calls_of(vendor: str, index: int) -> Any:
    module = importlib.import_module(f"kvrt_{vendor}.calls")
    return getattr(module, {"cuda": "CudaCalls", "rocm": "RocmCalls"}[vendor])(index)


@pytest.mark.parametrize("deferred", [0, 1])
def test_a_thread_that_has_no_context_may_ask_for_anything(
    deferred: int, emulator: Emulator, open_device: Open, vendor: str
) -> None:
    if vendor == "cuda":
        emulator.set(strict=1)
    emulator.set(deferred=deferred)
    device = open_device()
    in_a_thread(lambda: everything(device))


def test_the_device_that_a_thread_uses_stays_its_own(
    emulator: Emulator, open_device: Open, vendor: str
) -> None:
    emulator.set(devices=2)
    first, other = open_device(0), calls_of(vendor, 1)

    def work() -> None:
        other.make_current(other.own)
        everything(first)
        assert other.current() == other.own

    in_a_thread(work)
    other.close()


def test_a_device_that_cannot_be_made_the_old_one_again_fails_nothing(
    emulator: Emulator, open_device: Open, vendor: str
) -> None:
    emulator.set(devices=2)
    first, other = open_device(0), calls_of(vendor, 1)
    set_current = {"cuda": "cuCtxSetCurrent", "rocm": "hipSetDevice"}[vendor]

    def work() -> None:
        other.make_current(other.own)
        emulator.fail(2, 1, set_current)
        chunk = first.memory.create()
        assert other.current() != other.own, "or the wrong call has failed"
        first.memory.destroy(chunk)

    in_a_thread(work)
    other.close()
