"""What a backend offers: version 2 of the interface between kvrt and a kind of hardware.

This file is what its author writes: `Backend`, `Device` and the device's three parts. The others
are values that these take and give, and what is optional:

    branches   what families put around products
    batch      what attention is asked: the sequences of a step, and what differs between layers
    collective how the devices talk that compute one model together
    experts    mixtures of experts, and what a device may offer for them
    facts      what a backend says of itself and of its devices
    latent     what a device may offer for multi-head latent attention
    layout     formats: as what numbers are kept, and where a token's keys and values are
    low_rank   adapters: matrices of low rank that some tokens have besides
    matrices   formats of weights that are kept as codes; `kvrt.spi.plain` reads and writes them
    optional   what a device may offer besides: dense operators, recorded steps, its own limits
    recurrence layers that go over a sequence token by token, and their pages

A backend is an object with a name, found through the entry-point group ``kvrt.backends``. Opened,
it gives a `Device` with three parts:

    memory      virtual memory: address ranges without memory, and memory to map into them
    copier      copies between host and device, with tickets
    attention   paged attention over the KV pages in that memory

What is optional a device hands out through `Device.extension`. If it is missing, that may cost
speed and never correctness.

Time. `PagedAttention.append` and `run`, `DenseOps`, `PackedMatrices`, `ExpertOps`, `LatentOps`,
`LowRankOps`, `Recurrence`, `Collective`, `Graph.replay` and torch's own operators on the device's
tensors are *compute*. It takes effect in the order of the calls and may be done later than the call
returns: `Device.fence` tells when. Its tensors on the device may be changed by later compute, or
dropped, as soon as the call has returned; a device whose torch does not reuse memory in the order
of compute keeps them alive until then, and so it does a plan. What lies on the host is taken when
the call returns. *Copies* are in no order but that of their tickets, and see to it that both of
their tensors live until the ticket is done. All other methods are done when they return, those of
memory above all: a caller unmaps what no compute and no copy can use any more.

Rules of the house: sizes and offsets are bytes, strides are elements. A method raises
`kvrt.errors.OutOfMemory` when the device has no memory left, `kvrt.errors.DeviceError` with the
vendor's own name for any other failure, and leaves everything as it was before the call. Arguments
are checked by `kvrt.wrappers.Checked`, which stands in front of every device, so that a backend's
method can be one vendor call and one look at its status.

``docs/backends.md`` builds a complete small backend; ``pytest --pyargs kvrt.testing.suite
--kvrt-backend NAME`` proves one.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from kvrt.spi.batch import AttentionBatch, AttentionParams
from kvrt.spi.branches import BranchOps, PlainActivation
from kvrt.spi.collective import Collective, Collectives, Invitation, Meeting
from kvrt.spi.experts import ExpertActivation, ExpertOps, Experts, Router
from kvrt.spi.facts import Capability, DeviceInfo, DeviceOptions, Probe
from kvrt.spi.latent import LatentOps
from kvrt.spi.layout import (
    ITEM_BYTES,
    QUANTIZATIONS,
    Block,
    DType,
    KVFormat,
    KVLayout,
    Quantization,
)
from kvrt.spi.low_rank import LowRank, LowRankOps, LowRankRows
from kvrt.spi.matrices import Matrices, Matrix, WeightFormat
from kvrt.spi.optional import (
    Activation,
    Bandwidth,
    DenseOps,
    Graph,
    GraphCapture,
    HeadNorm,
    Measurable,
    PackedMatrices,
    Rotation,
    Rounding,
)
from kvrt.spi.recurrence import (
    DeltaRule,
    PageLayout,
    Recurrence,
    StateActivation,
    StateBatch,
    StateLayout,
    StateSpaceRule,
    StepBatch,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ITEM_BYTES",
    "QUANTIZATIONS",
    "SPI_VERSION",
    "Activation",
    "AttentionBatch",
    "AttentionParams",
    "Backend",
    "Bandwidth",
    "Block",
    "BranchOps",
    "Capability",
    "Chunk",
    "Collective",
    "Collectives",
    "Copier",
    "DType",
    "DeltaRule",
    "DenseOps",
    "Device",
    "DeviceInfo",
    "DeviceOptions",
    "Done",
    "ExpertActivation",
    "ExpertOps",
    "Experts",
    "Extension",
    "Graph",
    "GraphCapture",
    "HeadNorm",
    "Invitation",
    "KVFormat",
    "KVLayout",
    "LatentOps",
    "LowRank",
    "LowRankOps",
    "LowRankRows",
    "Matrices",
    "Matrix",
    "Measurable",
    "Meeting",
    "MemoryInfo",
    "PackedMatrices",
    "PageLayout",
    "PagedAttention",
    "PlainActivation",
    "Probe",
    "Quantization",
    "Recurrence",
    "Rotation",
    "Rounding",
    "Router",
    "Span",
    "StateActivation",
    "StateBatch",
    "StateLayout",
    "StateSpaceRule",
    "StepBatch",
    "Ticket",
    "VirtualMemory",
    "WeightFormat",
]

SPI_VERSION = 2
"""Raised when a method changes. A backend written for another version is refused by name."""

Extension = TypeVar("Extension")


# --- the backend, and an opened device -------------------------------------------------------


class Backend(Protocol):
    """The object an entry point of the group ``kvrt.backends`` names."""

    @property
    def name(self) -> str:
        """The name users type; the same as the entry point's."""

    @property
    def spi(self) -> int:
        """The `SPI_VERSION` this backend was written for, as a literal number."""

    def probe(self) -> Probe:
        """Look whether a device can be opened. Cheap (well under a second); never raises."""

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> "Device":
        """Open device `index`.

        Looks again whether it can: a user who names the backend gets here without a `probe`.

        Raises:
            BackendUnavailable: there is no such device, or something it needs is missing.
        """


class Device(Protocol):
    """One opened piece of hardware."""

    @property
    def info(self) -> DeviceInfo: ...

    @property
    def memory(self) -> "VirtualMemory": ...

    @property
    def copier(self) -> "Copier": ...

    @property
    def attention(self) -> "PagedAttention": ...

    def extension(self, kind: type[Extension]) -> Extension | None:
        """The device's implementation of an optional protocol such as `DenseOps`, or None."""

    def fence(self) -> "Ticket":
        """A ticket that is done when all compute submitted so far is done."""

    def synchronize(self) -> None:
        """Wait until all compute and copies submitted so far are done."""

    def close(self) -> None:
        """Give everything back. Safe to call twice; other methods must not be called after it."""


class Ticket(Protocol):
    """A promise of work that may still run. Any number of callers may ask, in any order."""

    def done(self) -> bool:
        """True if the work is complete. Never blocks. Once true, it stays true."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until complete or until `timeout` seconds have passed; returns `done()`.

        Raises:
            DeviceError: the work failed.
        """


class Done:
    """The ticket of work that was complete when its method returned."""

    def done(self) -> bool:
        return True

    def wait(self, timeout: float | None = None) -> bool:
        return True


# --- memory ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A reserved range of virtual addresses. Costs no memory until chunks are mapped into it."""

    base: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """`DeviceInfo.granularity` bytes of physical memory, by the backend's own handle."""

    handle: int


@dataclass(frozen=True, slots=True)
class MemoryInfo:
    """Physical memory in bytes: of the device, not taken by anyone, and taken by live chunks.

    `total` is `DeviceInfo.total_bytes`. Of what is free the limit of KV memory is made, so what
    torch's tensors, other processes and mapped chunks hold is not free. What torch keeps of
    memory that nobody uses is not free, either.

    `others` is for devices whose memory is the machine's own: the system promises more of it than
    there is, and ends a process that takes the last. So what is free there is watched, and pages
    are given back before; `others` is about what may come back: what other processes hold, and
    other devices of this one in chunks. None: the device refuses by itself what it has not.
    """

    total: int
    free: int
    chunks: int
    others: int | None = None


class VirtualMemory(Protocol):
    """Address ranges and physical chunks, and the mapping between them.

        span      0        1 chunk  2                 granularity = bytes of one chunk
                  |--------|--------|--------|---
                  |  c7    |  hole  |  c3    |        map(span, at=2 * granularity, chunk=c3)

    A chunk keeps its bytes while it is not mapped. Reading or writing a hole is an error of the
    caller: the result is undefined and may end the process. Several threads may call at once.
    """

    def reserve(self, nbytes: int) -> Span:
        """Reserve `nbytes` of addresses, a multiple of the granularity, aligned to it."""

    def release(self, span: Span) -> None:
        """Give the addresses back. Every chunk must have been unmapped."""

    def create(self) -> Chunk:
        """Take one chunk of physical memory; its content is undefined.

        Raises:
            OutOfMemory: the device has none left.
        """

    def destroy(self, chunk: Chunk) -> None:
        """Give an unmapped chunk's memory back to the system.

        Another thread may be given the same handle by `create` before this returns.
        """

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        """Make `chunk` readable and writable at byte offset `at` of the span, which is a hole."""

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        """Make the chunk mapped at byte offset `at` a hole again."""

    def tensor(self, span: Span, dtype: DType) -> "Tensor":
        """A 1-D tensor over the whole span, holes included; it shares the span's memory.

        Valid until the span is released. It owns nothing.
        """

    def info(self) -> MemoryInfo: ...


class Copier(Protocol):
    """Copies of bytes. Source and destination are contiguous tensors of equal size in bytes.

    A copy starts after `after` is done, if given; otherwise it may start at once, also before
    compute that was submitted earlier. `after` may be another device's ticket. Neither tensor may
    be written until the ticket is done.
    """

    def host_buffer(self, nbytes: int) -> "Tensor":
        """A uint8 tensor in host memory that this device copies from and to at full speed."""

    def to_host(self, dst: "Tensor", src: "Tensor", after: Ticket | None = None) -> Ticket:
        """Copy device memory `src` to host memory `dst`."""

    def to_device(self, dst: "Tensor", src: "Tensor", after: Ticket | None = None) -> Ticket:
        """Copy host memory `src` to device memory `dst`."""

    def within(self, dst: "Tensor", src: "Tensor", after: Ticket | None = None) -> Ticket:
        """Copy between two places that do not overlap on the device."""


# --- attention -------------------------------------------------------------------------------


class PagedAttention(Protocol):
    """Attention of each new token over its sequence's pages.

    In a step: `plan` once for all layers whose pages are in one place, or once for each such set
    of layers; then for each layer `append`, then `run`. A plan is the backend's own object; the
    caller uses it until the next step, and its compute may be done after that.
    """

    def plan(self, batch: AttentionBatch) -> object:
        """Prepare what all layers share, e.g. copy the page table to the device."""

    def append(self, plan: object, layer: int, k: "Tensor", v: "Tensor") -> None:
        """Store k and v, [tokens, kv_heads, head_dim] in a compute dtype, in their slots.

        A value may have another width, `layout.value_dim`; where values are the beginning of the
        keys, v is not looked at. A token's heads are contiguous; rows may have any stride. Rounds
        to nearest even, as `KVLayout` says.
        """

    def run(
        self, plan: object, layer: int, q: "Tensor", out: "Tensor", params: AttentionParams
    ) -> None:
        """Attend: q and out are [tokens, heads, head_dim] in a compute dtype.

        A head of out is as wide as a value, `layout.value_dim`. `heads` is a multiple of
        `kv_heads`; query head h reads KV head ``h // (heads // kv_heads)``. Accumulates in float32.
        Where keys are codes, q may be taken as whole numbers, too, with an error well below that of
        the keys. A token's heads are contiguous; rows may have any stride. Needs this step's keys
        and values appended.
        """
