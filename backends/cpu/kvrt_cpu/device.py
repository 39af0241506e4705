"""The CPU as a device."""

import platform
from typing import cast

import kvrt_kernels
import torch

from kvrt.errors import BackendUnavailable, ConfigError
from kvrt.spi import (
    BranchOps,
    Capability,
    Collectives,
    DenseOps,
    DeviceInfo,
    DeviceOptions,
    Done,
    DType,
    ExpertOps,
    Extension,
    GraphCapture,
    KVFormat,
    LatentOps,
    LowRankOps,
    Measurable,
    PackedMatrices,
    PagedAttention,
    Recurrence,
    Ticket,
)

from . import host
from .attention import NativeAttention, TorchAttention
from .branches import NativeBranches
from .copier import HostCopier
from .experts import NativeExperts
from .graphs import NativeGraphs
from .latent import NativeLatents
from .low_rank import NativeLowRank
from .measure import NativeLimits, TorchLimits
from .memory import GRANULARITY, open_memory
from .ops import NativeOps
from .packed import NativeMatrices
from .recurrence import NativeRecurrence

_WEIGHT_DTYPES: tuple[DType, ...] = ("float32", "bfloat16", "float16")
_KV_FORMATS: tuple[KVFormat, ...] = (*_WEIGHT_DTYPES, "int8", "int4")
_DONE = Done()


class CpuDevice:
    """All processors of this machine that the process may use, and its memory.

    Args:
        options: `threads` bounds the compiled kernels' threads; torch has a setting of its own.

    Raises:
        ConfigError: `options.threads` is not positive.
        OutOfMemory: there is not enough memory for one chunk.
    """

    def __init__(self, options: DeviceOptions) -> None:
        threads = _threads(options.threads)
        self.memory, notes = open_memory(shareable=options.shareable)
        self.copier = HostCopier(self.memory.system)
        self.attention: PagedAttention
        capabilities = {Capability.TREES, Capability.VALUE_WIDTHS, *self.memory.capabilities}
        try:
            arch = kvrt_kernels.isa()
        except BackendUnavailable as error:
            arch = platform.machine()
            slow = f"the slow torch reference path serves: {error}; fix: {error.fix}"
            notes = (*notes, slow)
            self.attention = TorchAttention(self.memory)
            head_dims: tuple[int, ...] = ()
            self._extensions: dict[type, object] = {Measurable: TorchLimits()}
        else:
            capabilities |= {Capability.BATCH_INVARIANT, Capability.RAGGED_GRAPHS}
            head_dims = kvrt_kernels.HEAD_DIMS
            self.attention = native = NativeAttention(self.memory, threads)
            self._extensions = {
                BranchOps: NativeBranches(threads),
                DenseOps: NativeOps(threads),
                ExpertOps: NativeExperts(threads, options.exact),
                GraphCapture: NativeGraphs(native, threads),
                LatentOps: NativeLatents(threads),
                LowRankOps: NativeLowRank(threads, options.exact),
                Measurable: NativeLimits(threads),
                PackedMatrices: NativeMatrices(threads, options.exact),
                Recurrence: NativeRecurrence(threads),
            }
        self.info = DeviceInfo(
            backend="cpu",
            index=0,
            name=host.processor(),
            arch=arch,
            total_bytes=self.memory.system.total(),
            granularity=GRANULARITY,
            torch_device="cpu",
            compute_dtypes=("float32",),
            weight_dtypes=_WEIGHT_DTYPES,
            kv_formats=_KV_FORMATS,
            capabilities=frozenset(capabilities),
            notes=notes,
            head_dims=head_dims,
        )

    def extension(self, kind: type[Extension]) -> Extension | None:
        if cast(object, kind) is Collectives:  # importing it takes longer than all else here
            from kvrt_kernels.collective import TorchCollectives, over_sockets

            return cast(Extension, TorchCollectives(over_sockets))
        return cast(Extension | None, self._extensions.get(kind))

    def fence(self) -> Ticket:
        return _DONE

    def synchronize(self) -> None:
        """Nothing runs beside the caller."""

    def close(self) -> None:
        self.memory.close()


def _threads(asked: int | None) -> int:
    if asked is None:
        return min(torch.get_num_threads(), host.processors())
    if asked < 1:
        raise ConfigError(f"threads = {asked}", fix="use 1 or more threads, or leave it out")
    return asked
