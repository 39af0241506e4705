"""The same calls on a real driver or an emulated one, and whether the answers are as expected.

    python -m tests.emulator.contract cuda --library real
    python -m tests.emulator.contract rocm --library emulated

Prints JSON; exits with 1 if an answer differs from what is expected: for CUDA what an H100's driver
(13.0) answered, for ROCm what its documentation says. That is what the emulator is held to; where a
real driver differs, the emulator is wrong. Nothing here
makes a device fail for good: calls that might, such as touching what may not be touched, are left
out, and on ROCm, whose handles are pointers, also those that name what is gone.
"""

import argparse
import importlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from kvrt_kernels.driver.probe import look

from tests.emulator import library

STATUS = {
    0: "ok",
    1: "invalid value",
    2: "out of memory",
    101: "invalid device",
    201: "invalid context",
    400: "invalid handle",
    600: "not ready",
    801: "not supported",
}
INVALID = "invalid value"

EXPECTED = {
    "reserve nothing": INVALID,
    "reserve less than the granularity": INVALID,
    "reserve with an alignment that is no power of two": INVALID,
    "reserve with flags": INVALID,
    "reserve": "ok",
    "create less than the granularity": INVALID,
    "create on a device that is not there": "invalid device",
    "create with flags": INVALID,
    "create": "ok",
    "map outside of every span": INVALID,
    "map at half a chunk": INVALID,
    "map more than the chunk": "not supported",
    "map": "ok",
    "map where something is mapped": INVALID,
    "map the same chunk elsewhere": "ok",
    "get access to a hole": INVALID,
    "set access to a hole": INVALID,
    "set access over a hole": INVALID,
    "set access": "ok",
    "get access": "ok",
    "unmap half a chunk": INVALID,
    "unmap a hole": "ok",
    "free a span that has mappings": INVALID,
    "release a chunk that is mapped": "ok",
    "map a chunk that was released": "ok",
    "copy to memory whose handle was released": "ok",
    "unmap": "ok",
    "unmap the other": "ok",
    "unmap what was released before": "ok",
    "free half of a span": INVALID,
    "free a span": "ok",
    "free a span twice": INVALID,
    "release a chunk twice": INVALID,
    "ask for an event that was never recorded": "ok",
    "wait for an event that was never recorded": "ok",
    "record an event": "ok",
    "let a stream wait for an event": "ok",
    "wait for an event": "ok",
    "ask for an event that has come": "ok",
}
DIFFERENT = {
    "rocm": {
        "create on a device that is not there": INVALID,
        "map more than the chunk": INVALID,
        "unmap half a chunk": None,
        "unmap a hole": None,
        "map a chunk that was released": None,
        "unmap what was released before": None,
        "free half of a span": None,
        "free a span twice": None,
        "release a chunk twice": None,
    }
}
"""Where a vendor's documentation says otherwise. None: not to be tried."""


class Driver:
    """A vendor's binding, each call giving its status in words, and its first result."""

    def __init__(self, vendor: str) -> None:
        self._calls = importlib.import_module(f"kvrt_{vendor}.calls")
        self._prefix = {"cuda": "cu", "rocm": "hip"}[vendor]
        self.cuda = vendor == "cuda"
        self.__call__("Init", 0)
        if self.cuda:
            self("CtxSetCurrent", self("DevicePrimaryCtxRetain", 0)[1])
        self.allocation = self._calls.allocation_of(0, shareable=False)
        self.nowhere = self._calls.allocation_of(77, shareable=False)
        access = self._calls.access_by(0)
        self.location = access.location
        self.access = [access] if self.cuda else access
        _, self.size = self("MemGetAllocationGranularity", self.allocation, self._calls.RECOMMENDED)

    def __call__(self, name: str, *arguments: Any) -> tuple[str, Any]:
        status, *results = getattr(self._calls.binding, self._prefix + name)(*arguments)
        return STATUS.get(int(status), status.name), results[0] if results else None

    def copy(self, target: int, source: int, nbytes: int, stream: Any) -> str:
        if self.cuda:
            return self("MemcpyHtoDAsync", target, source, nbytes, stream)[0]
        return self("MemcpyAsync", target, source, nbytes, self._calls.COPIES["to device"], stream)[
            0
        ]

    def stream_and_event(self) -> tuple[Any, Any]:
        suffix = "" if self.cuda else "WithFlags"
        return self(f"StreamCreate{suffix}", 1)[1], self(f"EventCreate{suffix}", 2)[1]


def memory(driver: Driver) -> Iterator[tuple[str, str]]:
    import torch

    size, allocation = driver.size, driver.allocation
    yield "reserve nothing", driver("MemAddressReserve", 0, 0, 0, 0)[0]
    yield "reserve less than the granularity", driver("MemAddressReserve", size // 2, 0, 0, 0)[0]
    odd = driver("MemAddressReserve", size, 3 * size, 0, 0)[0]
    yield "reserve with an alignment that is no power of two", odd
    yield "reserve with flags", driver("MemAddressReserve", size, 0, 0, 1 << 40)[0]
    status, base = driver("MemAddressReserve", 8 * size, size, 0, 0)
    yield "reserve", status
    base = int(base)

    yield "create less than the granularity", driver("MemCreate", size // 2, allocation, 0)[0]
    yield "create on a device that is not there", driver("MemCreate", size, driver.nowhere, 0)[0]
    yield "create with flags", driver("MemCreate", size, allocation, 1 << 40)[0]
    status, chunk = driver("MemCreate", size, allocation, 0)
    yield "create", status

    yield "map outside of every span", driver("MemMap", base + 8 * size, size, 0, chunk, 0)[0]
    yield "map at half a chunk", driver("MemMap", base + size // 2, size, 0, chunk, 0)[0]
    yield "map more than the chunk", driver("MemMap", base, 2 * size, 0, chunk, 0)[0]
    yield "map", driver("MemMap", base, size, 0, chunk, 0)[0]
    yield "map where something is mapped", driver("MemMap", base, size, 0, chunk, 0)[0]
    yield "map the same chunk elsewhere", driver("MemMap", base + 2 * size, size, 0, chunk, 0)[0]

    yield "get access to a hole", driver("MemGetAccess", driver.location, base + size)[0]
    yield "set access to a hole", driver("MemSetAccess", base + size, size, driver.access, 1)[0]
    yield "set access over a hole", driver("MemSetAccess", base, 2 * size, driver.access, 1)[0]
    yield "set access", driver("MemSetAccess", base, size, driver.access, 1)[0]
    yield "get access", driver("MemGetAccess", driver.location, base)[0]

    if driver.cuda:
        yield "unmap half a chunk", driver("MemUnmap", base, size // 2)[0]
        yield "unmap a hole", driver("MemUnmap", base + size, size)[0]
    yield "free a span that has mappings", driver("MemAddressFree", base, 8 * size)[0]
    yield "release a chunk that is mapped", driver("MemRelease", chunk)[0]
    if driver.cuda:
        again = driver("MemMap", base + size, size, 0, chunk, 0)[0]
        yield "map a chunk that was released", again
    source = torch.zeros(16, dtype=torch.uint8)
    yield "copy to memory whose handle was released", driver.copy(base, source.data_ptr(), 16, 0)
    driver("StreamSynchronize", 0)
    yield "unmap", driver("MemUnmap", base, size)[0]
    yield "unmap the other", driver("MemUnmap", base + 2 * size, size)[0]
    if driver.cuda:
        yield "unmap what was released before", driver("MemUnmap", base + size, size)[0]
        yield "free half of a span", driver("MemAddressFree", base, 4 * size)[0]
    yield "free a span", driver("MemAddressFree", base, 8 * size)[0]
    if driver.cuda:
        yield "free a span twice", driver("MemAddressFree", base, 8 * size)[0]
        yield "release a chunk twice", driver("MemRelease", chunk)[0]


def events(driver: Driver, stream: Any, event: Any) -> Iterator[tuple[str, str]]:
    yield "ask for an event that was never recorded", driver("EventQuery", event)[0]
    yield "wait for an event that was never recorded", driver("EventSynchronize", event)[0]
    yield "record an event", driver("EventRecord", event, stream)[0]
    yield "let a stream wait for an event", driver("StreamWaitEvent", 0, event, 0)[0]
    yield "wait for an event", driver("EventSynchronize", event)[0]
    yield "ask for an event that has come", driver("EventQuery", event)[0]


def expected(vendor: str) -> dict[str, str]:
    wanted = {**EXPECTED, **DIFFERENT.get(vendor, {})}
    return {name: status for name, status in wanted.items() if status is not None}


def in_a_thread_without_a_context(driver: Driver) -> dict[str, str]:
    """The same calls from a thread that nobody has prepared, as far as it gets."""
    answers: dict[str, str] = {}
    stream, event = driver.stream_and_event()

    def ask() -> None:
        for calls in (memory(driver), events(driver, stream, event)):
            with suppress(TypeError):  # what the next call needs is not there
                answers.update(calls)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers


def compare(vendor: str) -> dict[str, Any]:
    """The answers of the driver in this process, beside those that are expected."""
    driver, wanted = Driver(vendor), expected(vendor)
    answers = {**dict(memory(driver)), **dict(events(driver, *driver.stream_and_event()))}
    elsewhere = in_a_thread_without_a_context(driver)
    return {
        "vendor": vendor,
        "version": driver("DriverGetVersion")[1],
        "granularity": driver.size,
        "answers": answers,
        "without_a_context": {
            name: elsewhere.get(name)
            for name, answer in answers.items()
            if elsewhere.get(name) != answer
        },
        "differences": {
            name: {"expected": wanted.get(name), "answer": answers.get(name)}
            for name in (*wanted, *(name for name in answers if name not in wanted))
            if wanted.get(name) != answers.get(name)
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.contract", description=__doc__)
    parser.add_argument("vendor", choices=library.VENDORS)
    parser.add_argument("--library", choices=("real", "emulated"), required=True)
    asked = parser.parse_args()
    if asked.library == "emulated":
        library.load(asked.vendor)
    found = look(importlib.import_module(f"kvrt_{asked.vendor}.driver").VENDOR)
    if found.fix or not found.devices:
        sys.exit(f"there is no driver to ask: {found.detail}")
    report = {"library": asked.library, **compare(asked.vendor)}
    print(json.dumps(report, indent=2))
    return 1 if report["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())
