"""What a GPU backend needs of torch and Triton: tensors over its memory, streams, and kernels.

A backend reaches them through a `Place` only, so that one can be tested where torch has no GPU:
its driver is then an emulator, its memory the host's, and its place says so.
"""

import importlib.metadata
import importlib.util
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import kvrt_kernels
from kvrt.errors import BackendUnavailable
from kvrt.spi import (
    Bandwidth,
    DType,
    GraphCapture,
    KVFormat,
    Measurable,
    PagedAttention,
)
from kvrt_kernels.triton._require import OLDEST

if TYPE_CHECKING:
    from torch import Tensor

DTYPES: tuple[DType, ...] = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Software:
    """Whether the Python packages that a place needs are there.

    Args:
        detail: what is there, or what is missing.
        fix: what to install; empty if nothing is missing.
        version: the vendor's version that torch was built with, e.g. (13, 0).
    """

    detail: str
    fix: str = ""
    version: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Kernels:
    """What computes on a device, and what it can do.

    Args:
        extensions: optional protocols of `kvrt.spi`, by their types.
        compute_dtypes: see `kvrt.spi.DeviceInfo`, as for the next two.
        batch_invariant: see `kvrt.spi.Capability`.
        head_dims: see `kvrt.spi.DeviceInfo`.
    """

    attention: PagedAttention
    extensions: Mapping[type, object] = field(default_factory=dict)
    compute_dtypes: tuple[DType, ...] = DTYPES
    weight_dtypes: tuple[DType, ...] = DTYPES
    kv_formats: tuple[KVFormat, ...] = DTYPES
    batch_invariant: bool = False
    head_dims: tuple[int, ...] = ()


class Place(Protocol):
    """Where torch sees a device's memory, and what computes there."""

    def software(self) -> Software:
        """Look for the packages, without importing any. Cheap; never raises."""

    def enter(self, index: int) -> None:
        """Make torch ready for that device, and make it this thread's current one.

        Raises:
            BackendUnavailable: torch cannot use it.
        """

    def torch_device(self, index: int) -> str:
        """The device string of its tensors."""

    def wrap(self, address: int, nbytes: int, index: int) -> "Tensor":
        """uint8 [nbytes] over device memory. It owns nothing."""

    def stream(self, index: int) -> int:
        """The vendor's handle of torch's current stream on that device; 0 is the default one."""

    def give_back(self, index: int) -> bool:
        """Give memory that is kept for later tensors back to the driver; whether there was any."""

    def kernels(self, index: int, arch: str, multiprocessors: int) -> Kernels:
        """What computes on it.

        Args:
            arch: such as ``sm_90`` or ``gfx942``.
            multiprocessors: how many compute units it has.
        """


@dataclass(frozen=True, slots=True)
class TorchPlace:
    """A vendor's GPUs, as torch and Triton see them.

    Args:
        platform: what people call it, e.g. ``CUDA``.
        build: the variable of torch's version that names the platform's, e.g. ``cuda``.
        device_type: in DLPack.
        triton: distributions that may hold Triton.
    """

    platform: str
    build: str
    device_type: int
    triton: tuple[str, ...]

    def software(self) -> Software:
        fix = f"install torch's {self.platform} build: https://pytorch.org/get-started/locally"
        builds = torch_builds()
        if builds is None:
            return Software("torch is not installed", fix)
        version = builds.get(self.build, "")
        if not version:
            other = ", ".join(f"{name} {value}" for name, value in builds.items() if value)
            return Software(f"this torch is built for {other or 'CPUs only'}", fix)
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        detail = f"torch for {self.platform} {version}"
        need = f"pip install 'triton>={OLDEST[0]}.{OLDEST[1]}'"
        found = next(filter(None, map(_installed, self.triton)), "")
        if not found:
            return Software(f"{detail}, Triton is not installed", need, numbers)
        if tuple(int(number) for number in re.findall(r"\d+", found)[:2]) < OLDEST:
            return Software(f"{detail}, Triton {found} is too old", need, numbers)
        return Software(f"{detail}, Triton {found}", version=numbers)

    def enter(self, index: int) -> None:
        import torch

        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
            torch.cuda.set_device(index)
            torch.empty(1, device=self.torch_device(index))
        except (RuntimeError, AssertionError) as error:
            raise BackendUnavailable(
                f"torch {torch.__version__} cannot use {self.platform} device {index}: {error}",
                fix=f"python -c 'import torch; torch.zeros(1, device=\"cuda:{index}\")' must work;"
                f" if it does not, reinstall torch's {self.platform} build",
            ) from error

    def torch_device(self, index: int) -> str:
        return f"cuda:{index}"  # torch says so for every vendor

    def wrap(self, address: int, nbytes: int, index: int) -> "Tensor":
        from kvrt_kernels.dlpack import bytes_at

        return bytes_at(address, nbytes, self.device_type, index)

    def stream(self, index: int) -> int:
        import torch

        return int(torch.cuda.current_stream(index).cuda_stream)

    def give_back(self, index: int) -> bool:
        import torch

        before = torch.cuda.memory_reserved(index)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(index) < before

    def kernels(self, index: int, arch: str, multiprocessors: int) -> Kernels:
        import torch

        from kvrt_kernels.graphs import DeviceGraphs
        from kvrt_kernels.triton import TritonAttention, extensions_on, require_triton
        from kvrt_kernels.triton.configs import formats_on

        require_triton()
        device = self.torch_device(index)
        attention = TritonAttention(arch, device, multiprocessors)
        extensions: dict[type, object] = {
            **extensions_on(arch, device),
            GraphCapture: DeviceGraphs(attention, device),
            Measurable: TorchLimits(device, lambda: torch.cuda.synchronize(device)),
        }
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtypes = DTYPES if has_bfloat16 else DTYPES[1:]
        formats = formats_on(arch, dtypes)
        return Kernels(
            attention, extensions, dtypes, dtypes, formats, head_dims=kvrt_kernels.TRITON_HEAD_DIMS
        )


class TorchLimits:
    """A device's limits, measured by torch: a copy of a gigabyte, and a product in float32.

    A copy reads and writes; its bytes count once each way. Products are not taken in TF32.

    Args:
        synchronize: waits for the device.
        nbytes: of the copy.
        side: of the square matrices.
    """

    def __init__(
        self,
        torch_device: str,
        synchronize: Callable[[], object],
        nbytes: int = 1 << 30,
        side: int = 8192,
    ) -> None:
        self._device = torch_device
        self._synchronize = synchronize
        self._nbytes = nbytes
        self._side = side

    def measure(self) -> Bandwidth:
        import torch

        copied, multiplied = self._copied(), self._multiplied()
        if torch.device(self._device).type == "cuda":
            torch.cuda.empty_cache()  # gigabytes, which would count as taken
        return Bandwidth(2 * self._nbytes / copied, 2 * self._side**3 / multiplied)

    def _copied(self) -> float:
        import torch

        source = torch.ones(self._nbytes, dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        return self._seconds(lambda: target.copy_(source))

    def _multiplied(self) -> float:
        import torch

        matrix = torch.ones(self._side, self._side, device=self._device)
        product = torch.empty_like(matrix)
        return self._seconds(lambda: torch.mm(matrix, matrix, out=product))

    def _seconds(self, work: Callable[[], object]) -> float:
        """The fastest of a few, after one that warms up."""

        def once() -> float:
            self._synchronize()
            begin = time.perf_counter()
            work()
            self._synchronize()
            return time.perf_counter() - begin

        once()
        return min(once() for _ in range(5))


def torch_builds() -> dict[str, str] | None:
    """What the installed torch was built for, by platform; None if there is no torch.

    Read from its version file: importing torch takes seconds.
    """
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    try:
        text = (Path(found.submodule_search_locations[0]) / "version.py").read_text()
    except OSError:
        return None
    return {
        name: match[1] if (match := re.search(rf"^{name}\b.*= '(.*)'", text, re.M)) else ""
        for name in ("cuda", "hip", "xpu")
    }


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
