"""What mapping memory costs on a GPU: through the backend, and by the driver's bare calls.

    python -m tests.bench.gpu_memory --backend cuda

Prints JSON, in microseconds (medians): each call of `kvrt.spi.VirtualMemory` for a chunk; the same
driver calls without the backend; what a chunk costs that comes from a pool, and one that is created
for the purpose; and setting access for several chunks by one call, for each of them.
"""

import argparse
import importlib
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from kvrt.registry import load
from kvrt.spi import Device

CHUNKS = 64
TURNS = 5
TOGETHER = (1, 4, 16, 64)
"""Chunks that are given access by one call."""


class Clock:
    """Times of named calls."""

    def __init__(self) -> None:
        self._spent: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, work: Callable[[], Any], *, shared_by: int = 1) -> Any:
        begin = time.perf_counter()
        result = work()
        self._spent[name].append((time.perf_counter() - begin) * 1e6 / shared_by)
        return result

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(spent), 2) for name, spent in self._spent.items()}


def backend_calls(device: Device) -> dict[str, float]:
    """Every method for a chunk, with chunks made for the purpose, and once with pooled ones."""
    memory, size = device.memory, device.info.granularity
    clock = Clock()
    span = memory.reserve(CHUNKS * size)
    for _ in range(TURNS):
        chunks = [clock("create", memory.create) for _ in range(CHUNKS)]
        for n, chunk in enumerate(chunks):
            clock("map", lambda n=n, chunk=chunk: memory.map(span, n * size, chunk))
        device.synchronize()
        for n, chunk in enumerate(chunks):
            clock("unmap", lambda n=n, chunk=chunk: memory.unmap(span, n * size, chunk))
        for chunk in chunks:
            clock("destroy", lambda chunk=chunk: memory.destroy(chunk))
    memory.release(span)
    return clock.medians()


def bare_calls(vendor: str, index: int, size: int) -> dict[str, float]:
    """The driver's own calls, by the binding, with nothing around them."""
    calls = importlib.import_module(f"kvrt_{vendor}.calls")
    driver = calls.binding
    cu = {"cuda": "cu", "rocm": "hip"}[vendor]
    allocation, access = calls.allocation_of(index, shareable=False), calls.access_by(index)
    accesses = [access] if vendor == "cuda" else access

    def bare(name: str, *arguments: Any) -> Any:
        status, *results = getattr(driver, cu + name)(*arguments)
        if int(status):
            raise RuntimeError(f"{cu}{name} failed with {status.name}")
        return results[0] if results else None

    clock = Clock()
    base = int(bare("MemAddressReserve", CHUNKS * size, size, 0, 0))
    places = [base + n * size for n in range(CHUNKS)]
    for together in TOGETHER:
        for _ in range(TURNS):
            handles = [
                clock("MemCreate", lambda: bare("MemCreate", size, allocation, 0)) for _ in places
            ]
            for place, handle in zip(places, handles, strict=True):
                clock("MemMap", lambda p=place, h=handle: bare("MemMap", p, size, 0, h, 0))
            for place in places[::together]:
                clock(
                    f"MemSetAccess, {together} at once, each",
                    lambda p=place, n=together: bare("MemSetAccess", p, n * size, accesses, 1),
                    shared_by=together,
                )
            for place in places:
                clock("MemUnmap", lambda p=place: bare("MemUnmap", p, size))
            for handle in handles:
                clock("MemRelease", lambda h=handle: bare("MemRelease", h))
    bare("MemAddressFree", base, CHUNKS * size)
    return clock.medians()


def measure(backend: str, index: int) -> dict[str, Any]:
    device = load(backend).open(index)
    info = device.info
    spent = backend_calls(device)
    report = {
        "device": info.name,
        "arch": info.arch,
        "chunk_bytes": info.granularity,
        "backend_us": spent,
        "driver_us": bare_calls(backend, index, info.granularity),
        "pooled_chunk_us": round(spent["map"] + spent["unmap"], 2),
        "new_chunk_us": round(sum(spent.values()), 2),
    }
    device.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu_memory", description=__doc__)
    parser.add_argument("--backend", choices=("cuda", "rocm"), required=True)
    parser.add_argument("--device", type=int, default=0)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.backend, asked.device), indent=2))


if __name__ == "__main__":
    main()
