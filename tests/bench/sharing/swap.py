"""Three models in memory for one, asked in turn: how long each takes to wake, beside reading its
file once, and whether its memory goes back when it sleeps.

They have the shape of SmolLM2-135M and random weights, in float32. A file is read into new memory
of its size, by one thread, as a program would that only loads it: once when the system still keeps
it, and once from the disk.
"""

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from kvrt.sharing.share import Share
from kvrt.units import MIB

from ..page import head, row
from ..peers.shapes import SHAPES, make_checkpoint
from .watch import resident

MODELS, ROUNDS = 3, 3
BLOCK = 16 * MIB


def measured(*, shape: str = "smollm2-135m") -> str:
    """Markdown."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["KVRT_SHARE_DIR"] = str(folder / "shares")
        model = make_checkpoint(SHAPES[shape], folder / "model")
        return "\n".join(_lines(stack, model))


def _lines(stack: ExitStack, model: Path) -> Iterator[str]:
    file = model / "model.safetensors"
    share = Share(name="swap", size=file.stat().st_size + 64 * MIB)
    runtimes = []
    for _ in range(MODELS):
        runtimes.append(stack.enter_context(Runtime(model, share=share, keep_warm=0)))
        runtimes[-1].sleep(2)
    least = resident(os.getpid()) or 0
    yield from head("file", "read once", "wake", "ratio", "left asleep", "failed requests")
    for where in ("kept by the system", "on disk"):
        reads, wakes, left, failed = [], [], 0, 0
        for runtime in runtimes * ROUNDS:
            for seconds, do in ((reads, lambda: _read(file)), (wakes, runtime.wake)):
                _forget(file) if where == "on disk" else _read(file)
                begun = time.perf_counter()
                do()
                seconds.append(time.perf_counter() - begun)
            (result,) = runtime.generate([[1, 2, 3]], SamplingParams(max_tokens=4))
            failed += result.error is not None
            runtime.sleep(2)
            left = max(left, (resident(os.getpid()) or 0) - least)
        read, wake = statistics.median(reads), statistics.median(wakes)
        yield row(
            f"{file.stat().st_size / 1e6:.0f} MB, {where}", f"{read * 1e3:.0f} ms",
            f"{wake * 1e3:.0f} ms", f"{wake / read:.2f}", f"{left / MIB:.1f} MiB",
            f"{failed} of {len(wakes)}",
        )  # fmt: skip


def _read(file: Path) -> None:
    """All of it, into new memory."""
    nbytes = file.stat().st_size
    with mmap.mmap(-1, nbytes) as memory, file.open("rb", buffering=0) as source:
        memory.madvise(mmap.MADV_HUGEPAGE)
        with memoryview(memory) as view:
            at = 0
            while at < nbytes:
                with view[at : at + BLOCK] as block:
                    at += source.readinto(block) or nbytes


def _forget(file: Path) -> None:
    """The system keeps nothing of it in memory."""
    with file.open("rb") as source:
        os.fdatasync(source.fileno())
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
