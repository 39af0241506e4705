"""A whole backend in one file: a make-believe device of 256 MiB, in the host's memory."""

import ctypes
import itertools
import mmap
import os
from errno import errorcode

import torch
from torch import Tensor

from kvrt.errors import BackendUnavailable, DeviceError, OutOfMemory
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    Backend,
    Capability,
    Chunk,
    Device,
    DeviceInfo,
    DeviceOptions,
    Done,
    DType,
    Extension,
    MemoryInfo,
    Probe,
    Span,
    Ticket,
)

CHUNK = 2**16
TOTAL = 2**28
DTYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

# --- memory: a reserved address range is a mapping without access, a chunk is a piece of a file

NO_ACCESS, READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
FIXED = 0x10
PUNCH_HOLE_KEEP_SIZE = 0x3

word, libc = ctypes.c_size_t, ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = word
libc.mmap.argtypes = [word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, word]
libc.munmap.argtypes = [word, word]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, word, word]


def checked(call: str, result: int) -> int:
    if result in (-1, 2**64 - 1):
        number = ctypes.get_errno()
        raise DeviceError(f"{call}: {os.strerror(number)}", call=call, code=errorcode[number])
    return result


class Memory:
    def __init__(self) -> None:
        self.file = os.memfd_create("kvrt-null")
        self.spans: set[Span] = set()
        self.live: set[Chunk] = set()
        self.free = [Chunk(offset) for offset in range(TOTAL - CHUNK, -1, -CHUNK)]

    def reserve(self, nbytes: int) -> Span:
        wide = checked("mmap", libc.mmap(0, nbytes + CHUNK, NO_ACCESS, NOTHING, -1, 0))
        base = -(-wide // CHUNK) * CHUNK  # the first chunk border in it
        checked("munmap", libc.munmap(base + nbytes, wide + CHUNK - base))
        if base > wide:
            checked("munmap", libc.munmap(wide, base - wide))
        span = Span(base, nbytes)
        self.spans.add(span)
        return span

    def release(self, span: Span) -> None:
        checked("munmap", libc.munmap(span.base, span.nbytes))
        self.spans.remove(span)

    def create(self) -> Chunk:
        try:
            chunk = self.free.pop()
        except IndexError:
            raise OutOfMemory("all chunks are taken", needed=CHUNK) from None
        try:
            os.posix_fallocate(self.file, chunk.handle, CHUNK)
        except OSError as error:
            self.free.append(chunk)
            raise OutOfMemory(f"posix_fallocate: {error.strerror}", needed=CHUNK) from error
        self.live.add(chunk)
        return chunk

    def destroy(self, chunk: Chunk) -> None:
        punched = libc.fallocate(self.file, PUNCH_HOLE_KEEP_SIZE, chunk.handle, CHUNK)
        checked("fallocate", punched)
        self.live.remove(chunk)
        self.free.append(chunk)

    def map(self, span: Span, at: int, chunk: Chunk) -> None:
        flags = mmap.MAP_SHARED | FIXED
        place = (span.base + at, CHUNK, READ_WRITE, flags, self.file, chunk.handle)
        checked("mmap", libc.mmap(*place))

    def unmap(self, span: Span, at: int, chunk: Chunk) -> None:
        place = (span.base + at, CHUNK, NO_ACCESS, NOTHING | FIXED, -1, 0)
        checked("mmap", libc.mmap(*place))

    def tensor(self, span: Span, dtype: DType) -> Tensor:
        buffer = (ctypes.c_uint8 * span.nbytes).from_address(span.base)
        return torch.frombuffer(buffer, dtype=DTYPES[dtype])

    def info(self) -> MemoryInfo:
        taken = len(self.live) * CHUNK
        return MemoryInfo(total=TOTAL, free=TOTAL - taken, chunks=taken)

    def close(self) -> None:
        while self.spans:
            self.release(next(iter(self.spans)))
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


# --- copies: host and device memory are the same here, and every copy is done when it returns


class Copier:
    def host_buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def copy(self, dst: Tensor, src: Tensor, after: Ticket | None = None) -> Ticket:
        if after is not None:
            after.wait()
        dst.view(-1).view(torch.uint8).copy_(src.view(-1).view(torch.uint8))
        return Done()

    to_host = to_device = within = copy


# --- attention: one sequence after the other, with torch's own operators


class Plan:
    """For each sequence its rows, its length, and its row of the page table."""

    def __init__(self, batch: AttentionBatch) -> None:
        self.kv, self.layout = batch.kv, batch.layout
        starts, lengths = batch.query_start.tolist(), batch.context_len.tolist()
        rows = [slice(*ends) for ends in itertools.pairwise(starts)]
        self.sequences = list(zip(rows, lengths, batch.page_table.long(), strict=True))

    def elements(self, pages: Tensor, positions: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Where keys and values are in kv: int64 [positions, kv_heads, elements of a head]."""
        layout, slot = self.layout, positions % self.layout.page_size
        page = pages[positions // layout.page_size] * layout.page_stride
        head = torch.arange(layout.kv_heads) * layout.head_stride + layer * layout.layer_stride
        blocks = page[:, None, None] + head[:, None]
        keys, values = (
            blocks + slot[:, None, None] * block.slot_stride + torch.arange(block.dim)
            for block in (layout.keys, layout.values)
        )
        return keys, values + layout.v_offset


class Attention:
    def plan(self, batch: AttentionBatch) -> Plan:
        return Plan(batch)

    def append(self, plan: object, layer: int, k: Tensor, v: Tensor) -> None:
        assert isinstance(plan, Plan)
        for rows, length, pages in plan.sequences:
            new = torch.arange(length - (rows.stop - rows.start), length)
            keys, values = plan.elements(pages, new, layer)
            plan.kv[keys] = k[rows].to(plan.kv.dtype)
            if not plan.layout.shared:
                plan.kv[values] = v[rows].to(plan.kv.dtype)

    def run(
        self, plan: object, layer: int, q: Tensor, out: Tensor, params: AttentionParams
    ) -> None:
        assert isinstance(plan, Plan)
        group = q.shape[1] // plan.layout.kv_heads
        for rows, length, pages in plan.sequences:
            query = torch.arange(length - (rows.stop - rows.start), length)[:, None]
            first = max(0, int(query[0]) + 1 - params.window) if params.window and len(query) else 0
            sinks = torch.arange(min(params.sinks, first))
            key = torch.cat((sinks, torch.arange(first, length)))
            k, v = (
                plan.kv[elements].float().repeat_interleave(group, dim=1)
                for elements in plan.elements(pages, key, layer)
            )
            scores = torch.einsum("qhd,khd->hqk", q[rows].float(), k) * params.scale
            if params.softcap:
                scores = params.softcap * torch.tanh(scores / params.softcap)
            hidden = (key > query) & params.causal
            if params.window:
                hidden |= (key <= query - params.window) & (key >= params.sinks)
            scores = scores.masked_fill(hidden, float("-inf"))
            if params.sink_logits is not None:
                logits = params.sink_logits[:, None, None].expand(-1, len(query), 1)
                scores = torch.cat((scores, logits), dim=-1)
            weights = scores.softmax(dim=-1)[..., : len(key)]
            out[rows] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)


# --- the device and the backend


class NullDevice:
    def __init__(self) -> None:
        self.memory = Memory()
        self.copier = Copier()
        self.attention = Attention()
        self.info = DeviceInfo(
            backend="null",
            index=0,
            name="make-believe device",
            arch="none",
            total_bytes=TOTAL,
            granularity=CHUNK,
            torch_device="cpu",
            compute_dtypes=("float32", "bfloat16", "float16"),
            weight_dtypes=("float32", "bfloat16", "float16"),
            kv_formats=("float32", "bfloat16", "float16"),
            capabilities=frozenset({Capability.ALIASING, Capability.VALUE_WIDTHS}),
            notes=("attention is computed by torch, one sequence after the other",),
        )

    def extension(self, kind: type[Extension]) -> Extension | None:
        return None

    def fence(self) -> Ticket:
        return Done()

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.memory.close()


class NullBackend:
    name = "null"
    spi = 2

    def probe(self) -> Probe:
        detail = "1 make-believe device of 256 MiB"
        return Probe(available=True, detail=detail, devices=1, by_name_only=True)

    def open(self, index: int = 0, options: DeviceOptions = DeviceOptions()) -> Device:
        if index != 0:
            raise BackendUnavailable(f"null has one device, 0; there is no device {index}")
        return NullDevice()


backend: Backend = NullBackend()
