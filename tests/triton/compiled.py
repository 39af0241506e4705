"""Compiles what the kernels' launchers would launch on a GPU that is not there, and looks at it.

The launchers run on tensors of the host, Triton is told that another GPU is present, and each
launch ends when its kernel is compiled. So what is looked at is what a user gets, up to the
divisibility of each argument.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tests.triton.unset import unset

TARGETS: dict[str, GPUTarget] = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
    "gfx1201": GPUTarget("hip", "gfx1201", 32),
}
SHARED: dict[str, int] = {"sm_80": 163, "sm_90": 227, "sm_100": 227}
"""KiB of shared memory that one program may have; 64 on AMD GPUs."""
SHARED_OF_ALL: dict[str, int] = {"sm_80": 164, "sm_90": 228, "sm_100": 228}
"""KiB that all programs on a multiprocessor share."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What a compiled kernel takes.

    Args:
        name: of the kernel.
        registers: of a thread.
        spilled: bytes of a thread that do not fit in registers and are kept in memory.
        shared: bytes of shared memory (LDS) of a program.
        warps: of a program.
        occupancy: warps that fit on a multiprocessor (NVIDIA) or a SIMD (AMD) at a time.
        matrix: matrix instructions, by kind.
        fused: whether products are added in float32 without being rounded before.
        unset: instructions that read what nothing has written, where matrix instructions of Hopper
            make it worth a look.
    """

    name: str
    registers: int
    spilled: int
    shared: int
    warps: int
    occupancy: int
    matrix: dict[str, int]
    fused: bool
    unset: tuple[str, ...] = ()


class Absent:
    """The driver of a GPU that is not there: it says which, and launches nothing."""

    def __init__(self, arch: str) -> None:
        self._target = TARGETS[arch]
        self._index = list(TARGETS).index(arch)

    def get_current_device(self) -> int:
        return self._index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def compiling(arch: str) -> Iterator[list[Resources]]:
    """Within it launches compile for `arch` and end there; gives what was compiled."""
    compiled: list[Resources] = []
    run, before = JITFunction.run, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled.append(resources(run(self, *args, grid=grid, warmup=True, **kwargs), arch))

    JITFunction.run = compile_only
    driver.set_active(Absent(arch))
    try:
        yield compiled
    finally:
        JITFunction.run = run
        driver._active = before  # `reset_active` would look for a real one


def resources(kernel: Any, arch: str) -> Resources:
    """Read them from the machine code."""
    read: Callable[[Any, str], Resources] = nvidia if arch.startswith("sm_") else amd
    return read(kernel, arch)


def nvidia(kernel: Any, arch: str) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = cuobjdump("-res-usage", file.name)
        hopper = "wgmma.mma_async" in kernel.asm["ptx"]
        code = cuobjdump("-sass", file.name) if hopper else ""
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert numbers, usage
    registers, stack, _, local = map(int, numbers.groups())
    warps, ptx = kernel.metadata.num_warps, kernel.asm["ptx"]
    by_registers = 65536 // (-(-registers // 8) * 8 * 32) // warps
    shared = kernel.metadata.shared
    by_shared = SHARED_OF_ALL[arch] * 1024 // (shared + 1024)
    return Resources(
        name=kernel.metadata.name,
        registers=registers,
        spilled=stack + local,
        shared=shared,
        warps=warps,
        occupancy=min(by_registers, by_shared, 64 // warps, 32) * warps,
        matrix=counted(ptx, mma=r"\bmma\.sync", wgmma=r"wgmma\.mma_async", tcgen05=r"tcgen05\.mma"),
        fused=bool(re.search(r"\bfma\.", ptx)),
        unset=tuple(unset(code)),
    )


def cuobjdump(*arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def amd(kernel: Any, arch: str) -> Resources:
    code = kernel.asm["amdgcn"]

    def number(pattern: str) -> int:
        found = re.search(pattern, code)
        return int(found.group(1)) if found else 0

    # Scalar registers that do not fit go to lanes of vector registers, which are counted there.
    return Resources(
        name=kernel.metadata.name,
        registers=number(r"\.vgpr_count:\s*(\d+)"),
        spilled=number(r"\.private_segment_fixed_size:\s*(\d+)")
        + 4 * number(r"\.vgpr_spill_count:\s*(\d+)"),
        shared=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
        occupancy=number(r"; Occupancy: (\d+)"),
        matrix=counted(code, mfma=r"\bv_mfma_", wmma=r"\bv_wmma_"),
        # What is mixed with float16 is but a conversion and one operation.
        fused=bool(re.search(r"\bv_(dual_|pk_)?(fma|mad|mac)(?!_mix)\w*_f32", code)),
    )


def counted(code: str, **patterns: str) -> dict[str, int]:
    found = {name: len(re.findall(pattern, code)) for name, pattern in patterns.items()}
    return {name: count for name, count in found.items() if count}


def shared_limit(arch: str) -> int:
    """Bytes of shared memory that one program may have."""
    return SHARED.get(arch, 64) * 1024
