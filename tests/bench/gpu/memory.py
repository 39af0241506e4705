"""What it costs to put a chunk of memory under the KV cache, beside the driver's bare calls."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from kvrt.spi import Device
from kvrt.wrappers import Checked
from tests.bench.gpu.rows import Rows

GROUP = "memory, one chunk"
CHUNKS, SMALL_CHUNKS, TOGETHER = 256, 16, 8
AIM_S = 60e-6
VENDORS = ("cuda", "rocm")


def each(count: int, work: Callable[[int], object]) -> float:
    """The median of the seconds of `work(0)`, `work(1)` and so on."""
    times = []
    for n in range(count):
        begin = time.perf_counter()
        work(n)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def memory(device: Device, rows: Rows, *, small: bool) -> None:
    count, size = SMALL_CHUNKS if small else CHUNKS, device.info.granularity
    case = f"of {size >> 20} MiB, median of {count}"
    ours = _backend(device, rows, case, count)
    # The device the core uses; it is not closed, as that would close the one it checks.
    _backend(Checked(device), rows, case, count, by="kvrt, checked")
    rows.aim(GROUP, "map and unmap a pooled chunk, seconds", ours, AIM_S, most=True)
    if device.info.backend in VENDORS:
        bare = _driver(device, rows, case, count)
        rows.add(GROUP, "map and unmap a pooled chunk", "kvrt", times_the_bare_calls=ours / bare)


def _backend(device: Device, rows: Rows, case: str, count: int, by: str = "kvrt") -> float:
    """Each call by itself; gives the seconds of mapping and unmapping together."""
    memory, size = device.memory, device.info.granularity
    span = memory.reserve(count * size)
    chunks = []
    create = each(count, lambda _: chunks.append(memory.create()))
    maps = each(count, lambda n: memory.map(span, n * size, chunks[n]))
    unmaps = each(count, lambda n: memory.unmap(span, n * size, chunks[n]))
    destroy = each(count, lambda n: memory.destroy(chunks[n]))
    memory.release(span)
    rows.add(
        GROUP, case, by, create=create, map=maps, unmap=unmaps, destroy=destroy,
        pooled=maps + unmaps, not_pooled=create + maps + unmaps + destroy,
    )  # fmt: skip
    return maps + unmaps


def _driver(device: Device, rows: Rows, case: str, count: int) -> float:
    """The same by the binding's own calls, with access set for one chunk and for several."""
    from tests.emulator.contract import Driver

    driver = Driver(device.info.backend)
    size = device.info.granularity
    _, reserved = driver("MemAddressReserve", count * size, size, 0, 0)
    base = int(reserved)

    def ok(name: str, *arguments: Any) -> Any:
        status, result = driver(name, *arguments)
        if status != "ok":
            raise RuntimeError(f"{name}: {status}")
        return result

    chunks: list[Any] = []
    create = each(count, lambda _: chunks.append(ok("MemCreate", size, driver.allocation, 0)))
    maps = each(count, lambda n: ok("MemMap", base + n * size, size, 0, chunks[n], 0))
    access = each(count, lambda n: ok("MemSetAccess", base + n * size, size, driver.access, 1))
    unmaps = each(count, lambda n: ok("MemUnmap", base + n * size, size))
    for n in range(count):
        ok("MemMap", base + n * size, size, 0, chunks[n], 0)
    several = TOGETHER * size
    together = each(
        count // TOGETHER,
        lambda n: ok("MemSetAccess", base + n * several, several, driver.access, 1),
    )
    for n in range(count):
        ok("MemUnmap", base + n * size, size)
    destroy = each(count, lambda n: ok("MemRelease", chunks[n]))
    ok("MemAddressFree", base, count * size)
    rows.add(
        GROUP, case, "bare calls", create=create, map=maps + access, set_access=access,
        unmap=unmaps, destroy=destroy, pooled=maps + access + unmaps,
        not_pooled=create + maps + access + unmaps + destroy,
    )  # fmt: skip
    rows.add(GROUP, f"access to {TOGETHER} chunks at once", "bare calls", set_access=together)
    return maps + access + unmaps
