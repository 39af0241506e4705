"""What it costs to put a chunk of memory under the KV cache, beside the driver's bare calls."""

from kvrt.spi import Device
from kvrt.wrappers import Checked
from tests.bench.gpu.rows import Rows
from tests.bench.gpu_memory import CHUNKS, backend_calls, bare_calls

GROUP = "memory, one chunk"
AIM_S = 60e-6
VENDORS = ("cuda", "rocm")


def memory(device: Device, rows: Rows) -> None:
    """Medians of each call; `pooled` is what a chunk costs that was created before."""
    size = device.info.granularity
    case = f"of {size >> 20} MiB, {CHUNKS} at a time"
    pooled = {}
    # The core's device is the checked one. It is not closed: that would close what it checks.
    for by, subject in (("kvrt", device), ("kvrt, checked", Checked(device))):
        spent = {name: us / 1e6 for name, us in backend_calls(subject).items()}
        pooled[by] = spent["map"] + spent["unmap"]
        rows.add(GROUP, case, by, **spent, pooled=pooled[by], not_pooled=sum(spent.values()))
    rows.aim(GROUP, "map and unmap a pooled chunk, seconds", pooled["kvrt, checked"], AIM_S,
             most=True)  # fmt: skip
    if device.info.backend not in VENDORS:
        return
    calls = {name: us / 1e6 for name, us in bare_calls(device.info.backend, 0, size).items()}
    for name, seconds in calls.items():
        rows.add(GROUP, name, "bare call", seconds=seconds)
    bare = calls["MemMap"] + calls["MemSetAccess, 1 at once, each"] + calls["MemUnmap"]
    rows.add(GROUP, "map, set access and unmap", "bare calls", seconds=bare)
    for by, seconds in pooled.items():
        rows.add(GROUP, "map and unmap, beside the bare calls", by, ratio=seconds / bare)
