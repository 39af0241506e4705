"""What a backend offers, and all that its author needs to read.

A backend is an object with a name, found through the entry-point group ``kvrt.backends``. Opened,
it gives a `Device` with three parts:

    memory      virtual memory: address ranges without memory, and memory to map into them
    copier      copies between host and device, with tickets
    attention   paged attention over the KV pages in that memory

Everything else is optional: a device hands out further abilities through `Device.extension`. One
that is missing may cost speed and never correctness.

Time. `PagedAttention.append` and `run`, `FusedOps`, `Graph.replay` and torch's own operators on the
device's tensors are *compute*. It takes effect in the order of the calls and may be done later than
the call returns: `Device.fence` tells when. Its tensors on the device may be changed by later
compute, or dropped, as soon as the call has returned; a device whose torch does not reuse memory in
the order of compute keeps them alive until then, and so it does a plan. What lies on the host is
taken when the call returns. *Copies* are in no order but that of their tickets, and see to it that
both of their tensors live until the ticket is done. All other methods are done when they return,
those of memory above all: a caller unmaps what no compute and no copy can use any more.

Rules of the house: sizes and offsets are bytes, strides are elements. A method raises
`kvrt.errors.OutOfMemory` when the device has no memory left, `kvrt.errors.DeviceError` with the
vendor's own name for any other failure, and leaves everything as it was before the call. Arguments
are checked by `kvrt.wrappers.Checked`, which stands in front of every device, so that a backend's
method can be one vendor call and one look at its status.

``docs/backends.md`` builds a complete small backend; ``pytest --pyargs kvrt.testing.suite
--kvrt-backend NAME`` proves one.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

SPI_VERSION = 1
"""Raised when a method changes. A backend written for another version is refused by name."""

DType = Literal["float32", "bfloat16", "float16"]
"""Of weights and of activations."""

KVFormat = Literal["float32", "bfloat16", "float16", "int8", "fp8", "int4"]
"""How keys and values are kept in pages; `KVLayout` says what each means."""

ITEM_BYTES: Mapping[DType, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

Extension = TypeVar("Extension")


# --- the backend, before anything is opened --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a backend could be opened here.

    Args:
        available: true if `Backend.open` is expected to work.
        detail: what was found ("1 device, driver 580.65") or what is missing.
        fix: the command or sentence that mends it; empty if available.
        devices: how many devices there are.
        by_name_only: true if nobody should run on it who has not asked for it by its name, e.g.
            because it is slow, unfinished or make-believe: ``--backend auto`` passes it over.
    """

    available: bool
    detail: str
    fix: str = ""
    devices: int = 0
    by_name_only: bool = False


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """How to open a device. What does not apply to a device is ignored by it.

    Args:
        threads: host threads for kernels that run on the host; None lets the device choose.
        shareable: chunks can be mapped at several addresses and by other processes, where the
            device can do that; may be slower. kvrt has no call to export one yet, so all it asks
            of a device is that everything else works as ever.
    """

    threads: int | None = None
    shareable: bool = False


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
        """Open device `index`. Looks again whether it can: `probe` may not have been asked.

        Looks again whether it can: a user who names the backend gets here without a `probe`.

        Raises:
            BackendUnavailable: there is no such device, or something it needs is missing.
        """


# --- an opened device ------------------------------------------------------------------------


class Capability(enum.Enum):
    """A fact about a device.

    What is not declared is not asked for: a chunk is not mapped twice without ALIASING, drafts do
    not branch without TREES, and without RAGGED_GRAPHS a recorded step is replayed only for one
    token of each sequence. ASYNC_COPIES and BATCH_INVARIANT change nothing that kvrt does: they
    tell users what to expect, and the kit what to test.
    """

    ALIASING = "one chunk may be mapped at several addresses at once"
    ASYNC_COPIES = "copies run beside compute"
    BATCH_INVARIANT = "a token's result has the same bits whatever else is in its batch"
    RAGGED_GRAPHS = "a recorded step serves any batch of as many tokens, branches included"
    TREES = "a sequence's new tokens may branch (`AttentionBatch.parents`)"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What a device is.

    Args:
        backend: the backend's name.
        index: the device's index within its backend.
        name: the product, as its vendor calls it.
        arch: the instruction set or compute architecture that kernels are chosen by.
        total_bytes: physical memory of the device.
        granularity: bytes of one chunk, the unit of `VirtualMemory.map`; a power of two.
        torch_device: the device string of its tensors, e.g. ``cuda:0``. Torch must know the device
            (its own, or one registered as PrivateUse1) and have the operators of
            `kvrt.testing.operators` there.
        compute_dtypes: dtypes that activations (q, k, v, out) may have, the preferred one first.
        weight_dtypes: dtypes that weights may have.
        kv_formats: formats that KV pages may have.
        capabilities: see `Capability`.
        notes: what a user should be told, e.g. that a slower path serves. ``; fix: `` stands before
            what mends it, if anything does.
        head_dims: sizes of a head that attention can do; empty: every one. A model with another
            size is refused when it is loaded.
    """

    backend: str
    index: int
    name: str
    arch: str
    total_bytes: int
    granularity: int
    torch_device: str
    compute_dtypes: tuple[DType, ...]
    weight_dtypes: tuple[DType, ...]
    kv_formats: tuple[KVFormat, ...]
    capabilities: frozenset[Capability] = frozenset()
    notes: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()


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
        """The device's implementation of an optional protocol such as `FusedOps`, or None."""

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
    """

    total: int
    free: int
    chunks: int


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


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a format keeps numbers as small whole ones, *codes*, with a scale for several of them.

    Args:
        bits: of a code.
        group: elements of a head that share a scale; 0: all of them.
        scale_bytes: of a scale.
    """

    bits: int
    group: int
    scale_bytes: int


QUANTIZATIONS: Mapping[KVFormat, Quantization] = {
    "int8": Quantization(bits=8, group=0, scale_bytes=4),
    "fp8": Quantization(bits=8, group=0, scale_bytes=4),
    "int4": Quantization(bits=4, group=32, scale_bytes=2),
}
"""The formats whose pages hold scales. Their tensors are of bytes."""

_BLOCK_BYTES = 64
"""Packed heads of pages that hold scales begin at multiples of a cache line."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Where the keys and values of a token are, and as what.

    Strides are in items of the KV tensor: numbers of the format's own dtype, or bytes, multiples of
    a scale's, if the format is one of `QUANTIZATIONS`. The keys (kv = 0) or values (kv = 1) of one
    head in one page are a *block*: slot after slot of `slot_stride` items, and then the scales.

        block(page, layer, kv, head) =
            page * page_stride + layer * layer_stride + kv * v_offset + head * head_stride

        slot 0 | slot 1 | ... | slot page_size - 1 | scales of group 0: slot 0, slot 1, ... | ...
        ^ block                                    ^ block + scale_offset

    float32, bfloat16, float16: element d of a slot is item d; there are no scales.

    int8: element d of a slot is byte d, a two's complement code from -127 to 127, times the slot's
    scale, a float32.

        scale = max |x| / 127       code = round(x / scale)

    fp8: element d of a slot is byte d, a code in E4M3 (Micikevicius et al. 2022, arXiv 2209.05433;
    torch's ``float8_e4m3fn``), whose largest number is 448, times the slot's scale, a float32.

        scale = max |x| / 448       code = round_to_e4m3(x / scale)

    int4: elements are in groups of 32, each in 16 bytes. Byte j of a group holds element j in its
    low and element 16 + j in its high four bits, as a code from -8 to 7 with 8 added; what lies
    beyond head_dim is 0 with 8 added. It is multiplied by its group's scale, a bfloat16.

        scale = round_to_bfloat16(e / -8)       code = min(7, max(-8, round(x / scale)))

    e is the largest element of the group if that is larger than minus the smallest, or else the
    smallest: its code is -8, the end of the range, whichever its sign.

    All this is float32 arithmetic, each operation rounded to nearest even. Where max |x| or |e| is
    below 2^-100, scale and codes are 0. Where an element is not finite the scale is NaN and the
    codes are 0: all that is read of it is NaN. So is what is read of bytes that are 0xFF.
    """

    format: KVFormat
    layers: int
    kv_heads: int
    head_dim: int
    page_size: int
    page_stride: int
    layer_stride: int
    v_offset: int
    head_stride: int

    @classmethod
    def packed(
        cls, format: KVFormat, *, layers: int, kv_heads: int, head_dim: int, page_size: int
    ) -> "KVLayout":
        """``[page][layer][k|v][kv_head]`` blocks without gaps; with scales, whole cache lines."""
        one = cls(format, layers, kv_heads, head_dim, page_size, 0, 0, 0, 0)
        block = one.block_items
        if one.quantization is not None:
            block = -(-block // _BLOCK_BYTES) * _BLOCK_BYTES
        half = kv_heads * block
        return replace(
            one,
            page_stride=layers * 2 * half,
            layer_stride=2 * half,
            v_offset=half,
            head_stride=block,
        )

    @property
    def quantization(self) -> Quantization | None:
        """How elements are kept as codes; None: they are kept as they are."""
        return QUANTIZATIONS.get(self.format)

    @property
    def storage(self) -> Literal["float32", "bfloat16", "float16", "uint8"]:
        """The dtype of the KV tensor."""
        if self.format == "int8" or self.format == "fp8" or self.format == "int4":
            return "uint8"
        return self.format

    @property
    def item_bytes(self) -> int:
        """Bytes of one item of the KV tensor."""
        return 1 if self.storage == "uint8" else ITEM_BYTES[self.storage]

    @property
    def groups(self) -> int:
        """Scales of one slot; 0 if the format has none."""
        kept = self.quantization
        return 0 if kept is None else -(-self.head_dim // (kept.group or self.head_dim))

    @property
    def slot_stride(self) -> int:
        """Items from one slot to the next."""
        kept = self.quantization
        if kept is None or not kept.group:
            return self.head_dim
        return self.groups * kept.group * kept.bits // 8

    @property
    def scale_offset(self) -> int:
        """Items from the beginning of a block to its scales, a multiple of their size."""
        kept = self.quantization
        align = 1 if kept is None else kept.scale_bytes
        return -(-self.page_size * self.slot_stride // align) * align

    @property
    def block_items(self) -> int:
        """Items of a block, its scales included."""
        kept = self.quantization
        scales = 0 if kept is None else self.groups * self.page_size * kept.scale_bytes
        return self.scale_offset + scales

    @property
    def page_bytes(self) -> int:
        """Bytes from one page to the next."""
        return self.page_stride * self.item_bytes


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The sequences of one step; each brings some new ("query") tokens, or none.

    Sequence `s` brings the rows ``query_start[s] : query_start[s + 1]`` of q, k, v and out. They
    are the last tokens of its context: row ``query_start[s] + i`` stands at position
    ``context_len[s] - query_len[s] + i``. The token at position p lives in slot
    ``p % page_size`` of page ``page_table[s, p // page_size]``. Entries of the page table beyond
    the context, and slots beyond it, may be anything and must not be read.

    With `parents`, which needs `Capability.TREES`, the new tokens of a sequence may branch, as
    guesses at what comes next do:

        7 tokens before -- a --+-- b -- c        row         0   1   2   3   4
                               +-- d -- e        parents    -1   0   1   0   3
                                                 position    7   8   9   8   9
                                                 slot        7   8   9  10  11

    A token then sees the tokens before this step, its ancestors among the new ones, and itself,
    and stands at the position after its parent's. Its slot goes by its row as ever. Its result is
    that of a batch in which its ancestors stand in line and nothing is beside them: the same bits,
    where the device is `BATCH_INVARIANT`.

    The tensors on the host are the caller's again when `plan`, `capture` or `replay` has returned:
    the page table is an array that is changed in place from step to step.

    Args:
        kv: 1-D, `layout.storage`, over the whole span (`VirtualMemory.tensor`, seen as bytes for
            `uint8`).
        layout: where in `kv` a token's keys and values are.
        page_table: int32 [sequences, max pages], on the host, contiguous.
        query_start: int32 [sequences + 1], on the host, begins with 0, never decreases.
        context_len: int32 [sequences], on the host, this step's tokens included.
        parents: int32 [tokens], on the host: which of its sequence's new tokens each one follows,
            counted from 0 and before itself; -1 for the last token before this step. None: each
            follows the one before it.
    """

    kv: "Tensor" = field(repr=False)  # printing it would read the holes
    layout: KVLayout
    page_table: "Tensor"
    query_start: "Tensor"
    context_len: "Tensor"
    parents: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class AttentionParams:
    """What may differ between layers.

    Args:
        scale: multiplies the dot products of q and k.
        window: a token sees only the last `window` positions, its own included; 0 = all.
        softcap: scores become ``softcap * tanh(score / softcap)``; 0 = off.
    """

    scale: float
    window: int = 0
    softcap: float = 0.0


class PagedAttention(Protocol):
    """Causal attention of each new token over its sequence's pages.

    In a step: `plan` once; then for each layer `append`, then `run`. The plan is the backend's
    own object; the caller uses it until the next step, and its compute may be done after that.
    """

    def plan(self, batch: AttentionBatch) -> object:
        """Prepare what all layers share, e.g. copy the page table to the device."""

    def append(self, plan: object, layer: int, k: "Tensor", v: "Tensor") -> None:
        """Store k and v, [tokens, kv_heads, head_dim] in a compute dtype, in their slots.

        A token's heads are contiguous; rows may have any stride. Rounds to nearest even, as
        `KVLayout` says.
        """

    def run(
        self, plan: object, layer: int, q: "Tensor", out: "Tensor", params: AttentionParams
    ) -> None:
        """Attend: q and out are [tokens, heads, head_dim] in a compute dtype.

        `heads` is a multiple of `kv_heads`; query head h reads KV head
        ``h // (heads // kv_heads)``. Accumulates in float32. Where keys are codes, q may be taken
        as whole numbers, too, with an error well below that of the keys. A token's heads are
        contiguous; rows may have any stride. Needs this step's keys and values appended.
        """


# --- optional --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary position embedding in the half-split convention (Su et al. 2021, arXiv 2104.09864).

    Args:
        cos: float32 [positions, rotary_dim / 2], contiguous, on the device.
        sin: the same shape.
    """

    cos: "Tensor"
    sin: "Tensor"


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norm over head_dim of each query and key head, before rotation.

    Args:
        q: float32 [head_dim] weight.
        k: float32 [head_dim] weight.
        eps: added to the mean square.
    """

    q: "Tensor"
    k: "Tensor"
    eps: float


Activation = Literal["silu", "gelu_tanh"]


@runtime_checkable
class FusedOps(Protocol):
    """The dense parts of a decoder layer, where a device beats torch's own operators.

    `x` is [tokens, in features] in a compute dtype; its last dimension is contiguous, rows may
    have any stride. Weights are [out features, in features], contiguous, in any of the device's
    `weight_dtypes`; norm weights and biases are float32. A result is written to `out` and that is
    returned, if it is given: contiguous, of the result's shape and dtype, and not `x`. Else the
    result is a new tensor.
    """

    def linear(
        self,
        x: "Tensor",
        weight: "Tensor",
        bias: "Tensor | None" = None,
        residual: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``x @ weight.T (+ bias) (+ residual)``. `out` may be `residual`."""

    def gated_linear(
        self,
        x: "Tensor",
        weight: "Tensor",
        activation: Activation,
        bias: "Tensor | None" = None,
        out: "Tensor | None" = None,
    ) -> "Tensor":
        """``act(x @ gate.T) * (x @ up.T)`` where `weight` is gate's rows, then up's.

        `bias`, likewise gate's and then up's, is added to the products first.
        """

    def rms_norm(
        self, x: "Tensor", weight: "Tensor", eps: float, out: "Tensor | None" = None
    ) -> "Tensor":
        """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension."""

    def rotate_append(
        self,
        plan: object,
        layer: int,
        q: "Tensor",
        k: "Tensor",
        v: "Tensor",
        rotation: Rotation | None,
        norm: HeadNorm | None,
    ) -> None:
        """Norm and rotate q and k, in place, at their positions in the plan; then append k, v."""


class Graph(Protocol):
    """The calls of a step, recorded."""

    def replay(self, batch: AttentionBatch) -> None:
        """Make the recorded calls anew, on what their tensors hold now, for another batch.

        `batch` has the `kv` and `layout` that were recorded; its page table (of any width) and
        contexts are its own. It has the `query_start` that was recorded and no `parents`, unless
        the device declares `RAGGED_GRAPHS`: then it has as many tokens, and may group them anew.
        """


@runtime_checkable
class GraphCapture(Protocol):
    """Recording of a step's calls, so that later steps of its shape take one call.

    A decode step of a small model is hundreds of kernels of a few microseconds each; calling them
    one by one can take the host longer than the device needs to run them.
    """

    def size(self, tokens: int) -> int:
        """How many tokens a step of `tokens` should be recorded with, one for each sequence.

        `tokens`, or more where few sizes are better than many: the rest is padding. 0: a step
        that large is better not recorded.
        """

    def capture(self, batch: AttentionBatch, record: Callable[[object], None]) -> Graph:
        """Call `record(plan)` once, and keep the calls it makes instead of computing.

        These are calls of this device's `PagedAttention` and `FusedOps`, in the calling thread,
        and nothing else; each result goes to an `out`. The tensors must live as long as the graph.
        """


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """A device's measured limits, for `kvrt doctor` and benchmarks.

    Args:
        read_bytes_per_s: sustained reading of device memory.
        flops_per_s: float32 multiply-adds, each counted as two.
    """

    read_bytes_per_s: float
    flops_per_s: float


@runtime_checkable
class Measurable(Protocol):
    """A device that can measure its own physical limits."""

    def measure(self) -> Bandwidth:
        """Run a short measurement (well under two seconds)."""
