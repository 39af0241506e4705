"""What each KV format takes, how fast it is read, and what it does to quality.

    python -m tests.bench.formats docs/kv-formats.md

writes the tables of that page anew, with machine and date. All formats of a table take turns, so
that whatever else the machine does meets them alike. About five minutes on two cores. A format that
the CPU backend does not keep has no speed here, and the quality that plain torch gives it.
"""

import argparse
import itertools
import math
import mmap
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from kvrt_kernels import append, attention, reference
from kvrt_kernels._args import FORMAT_CODE
from torch.nn import functional

from kvrt.model.loader import Model, load_model
from kvrt.registry import open_device
from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    DenseOps,
    Device,
    Extension,
    KVFormat,
    KVLayout,
)
from tests.bench.page import head, machine, rewrite, row
from tests.emulator.place import ReferenceAttention
from tests.model.stepping import stepping

FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)
TIMED: tuple[KVFormat, ...] = tuple(FORMAT_CODE)
"""What the CPU's kernels read."""
PAGE_SIZE = 16
COLD_BYTES = 256 << 20  # of float32: layers take turns, so that no cache serves them


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's attention."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def layout(self, kv: KVFormat, layers: int) -> KVLayout:
        return KVLayout.packed(
            kv,
            layers=layers,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            page_size=PAGE_SIZE,
        )


SMALL = Shape("SmolLM2-135M", layers=30, heads=9, kv_heads=3, head_dim=64)
LARGE = Shape("Llama-3.1-8B", layers=32, heads=32, kv_heads=8, head_dim=128)
DECODES = [
    (SMALL, 1, 2048), (SMALL, 16, 2048), (SMALL, 1, 32768), (SMALL, 4, 32768),
    (LARGE, 1, 2048), (LARGE, 8, 2048), (LARGE, 1, 32768),
]  # fmt: skip
PREFILLS = [(SMALL, 512, 0), (SMALL, 512, 2048), (LARGE, 512, 0), (LARGE, 512, 2048)]


def token_bytes(shape: Shape, kv: KVFormat) -> float:
    """Bytes of one token's keys and values in all layers, its part of the padding included."""
    return shape.layout(kv, shape.layers).page_bytes / PAGE_SIZE


# --- speed -----------------------------------------------------------------------------------


def filled(shape: Shape, kv: KVFormat, sequences: int, context: int, layers: int) -> AttentionBatch:
    """Sequences of random keys and values, whose pages lie in random order in huge pages."""
    layout = shape.layout(kv, layers)
    pages = sequences * -(-context // PAGE_SIZE)
    # Shared memory often has no huge pages.
    memory = mmap.mmap(-1, pages * layout.page_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    order = torch.randperm(pages, generator=torch.Generator().manual_seed(0)).int()
    batch = AttentionBatch(
        kv=torch.frombuffer(memory, dtype=getattr(torch, layout.storage)),
        layout=layout,
        page_table=order.view(sequences, -1),
        query_start=torch.arange(sequences + 1, dtype=torch.int32) * context,
        context_len=torch.full((sequences,), context, dtype=torch.int32),
    )
    numbers = torch.randn(2, sequences * context, shape.kv_heads, shape.head_dim)
    for layer in range(layers):
        if kv in TIMED:
            append.append(attention.plan(batch), layer, *numbers)
        else:
            reference.append(reference.plan(batch), layer, *numbers)
    return batch


def turns(works: dict[KVFormat, Callable[[int], object]], seconds: float) -> dict[KVFormat, float]:
    """The fastest call of each that fit, in turns, into so many seconds; at least five.

    Calls are numbered, and short, so that some meet a machine that does nothing else.
    """
    best = dict.fromkeys(works, math.inf)
    stop = time.perf_counter() + seconds
    for number in itertools.count():
        for kv, work in works.items():
            begin = time.perf_counter()
            work(number)
            best[kv] = min(best[kv], time.perf_counter() - begin)
        if number >= 5 and time.perf_counter() > stop:
            return best
    raise AssertionError


def attended(shape: Shape, batch: AttentionBatch) -> Callable[[int], None]:
    """Attention of the batch's query tokens in one layer, in turn."""
    tokens = int(batch.query_start[-1])
    q = torch.randn(tokens, shape.heads, shape.head_dim)
    out, plan = torch.empty_like(q), attention.plan(batch)
    params = AttentionParams(shape.head_dim**-0.5)

    def work(number: int) -> None:
        attention.run(plan, number % batch.layout.layers, q, out, params)

    return work


def decode_seconds(shape: Shape, sequences: int, context: int) -> dict[KVFormat, float]:
    """Seconds a layer for one new token of each sequence."""
    once = token_bytes(shape, "float32") / shape.layers * sequences * context
    layers = max(1, min(shape.layers, math.ceil(COLD_BYTES / once)))
    works = {}
    for kv in TIMED:
        batch = filled(shape, kv, sequences, context, layers)
        one_each = torch.arange(sequences + 1, dtype=torch.int32)
        works[kv] = attended(shape, replace(batch, query_start=one_each))
    return turns(works, 2.0)


def prefill_seconds(shape: Shape, new: int, before: int) -> dict[KVFormat, float]:
    """Seconds a layer for the last `new` tokens of a prompt."""
    works = {}
    for kv in TIMED:
        batch = filled(shape, kv, 1, before + new, 1)
        works[kv] = attended(shape, replace(batch, query_start=torch.tensor([0, new]).int()))
    return turns(works, 2.0)


# --- quality ---------------------------------------------------------------------------------


class PlainTorch:
    """A device whose attention is plain torch, which reads every format."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.info, self.memory, self.copier = device.info, device.memory, device.copier
        self.attention = ReferenceAttention()
        self.fence, self.synchronize, self.close = device.fence, device.synchronize, device.close

    def extension(self, kind: type[Extension]) -> Extension | None:
        return None if issubclass(kind, DenseOps) else self._device.extension(kind)


def device_for(kv: KVFormat) -> Device:
    """The CPU, computing in plain torch if its kernels do not read that format."""
    device = open_device("cpu")
    return device if kv in TIMED else PlainTorch(device)


def heldout_loss(model: Model, device: Device, kv: KVFormat, windows: int | None = None) -> float:
    """Nats a token on the bundled model's held-out text, by the protocol of its README."""
    text = (model.path / "heldout.txt").read_text(encoding="utf-8")
    ids = model.encode(text)
    length, total, count = model.max_model_len, 0.0, 0
    for begin in list(range(0, len(ids) - 1, length))[:windows]:
        window = ids[begin : begin + length + 1]
        with stepping(model, device, texts=1, longest=length, kv=kv) as stepper:
            text_ids = stepper.add(window[:-1])
            while text_ids.left:
                stepper.step([(text_ids, min(256, text_ids.left))])
        logits = torch.stack(text_ids.logits).double()
        total += float(functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum"))
        count += len(window) - 1
    return total / count


def output_error(kv: KVFormat, shape: Shape = SMALL, context: int = 2048) -> float:
    """Root mean square error of attention over random numbers, relative to the output's own."""
    results = []
    for each in (kv, "float32"):
        torch.manual_seed(0)
        batch = filled(shape, each, 1, context, 1)  # type: ignore[arg-type]
        batch = replace(batch, query_start=torch.tensor([0, 1]).int())
        q = torch.randn(1, shape.heads, shape.head_dim)
        out = torch.empty_like(q)
        params = AttentionParams(shape.head_dim**-0.5)
        if each in TIMED:
            attention.run(attention.plan(batch), 0, q, out, params)
        else:
            reference.run(reference.plan(batch), 0, q, out, params)
        results.append(out)
    got, want = results
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt())


# --- the page --------------------------------------------------------------------------------


def shown(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def sizes() -> Iterator[str]:
    yield from head("bytes a token", *FORMATS)
    for shape in (SMALL, LARGE):
        what = f"{shape.name}: {shape.layers} layers, {shape.kv_heads} KV heads of {shape.head_dim}"
        yield row(what, *(f"{token_bytes(shape, kv):,.0f}" for kv in FORMATS))
    whole = token_bytes(LARGE, "float32")
    yield row("tokens in the same memory", *(f"{whole / token_bytes(LARGE, kv):.2f}x"
                                             for kv in FORMATS))  # fmt: skip


def speeds(
    title: str, measured: list[tuple[str, dict[KVFormat, float]]], unit: float, name: str
) -> Iterator[str]:
    yield from head(f"{title} ({name}, and times as fast as float32)", *FORMATS)
    for what, seconds in measured:
        cells = (f"{shown(seconds[kv] * unit)} ({seconds['float32'] / seconds[kv]:.2f}x)"
                 if kv in seconds else "" for kv in FORMATS)  # fmt: skip
        yield row(what, *cells)


def qualities() -> Iterator[str]:
    losses = {}
    for kv in FORMATS:
        device = device_for(kv)
        losses[kv] = heldout_loss(load_model("tiny", device), device, kv)
        device.close()
    perplexity = {kv: math.exp(loss) for kv, loss in losses.items()}
    yield from head("quality", *FORMATS)
    yield row("held-out perplexity of tiny", *(f"{perplexity[kv]:.4f}" for kv in FORMATS))
    rises = ((perplexity[kv] / perplexity["float32"] - 1) * 100 for kv in FORMATS)
    yield row("its rise", *(f"{rise:+.3f} %" for rise in rises))
    errors = (output_error(kv) for kv in FORMATS)
    yield row("error of attention's output", *(f"{error:.1e}" for error in errors))


def tables() -> Iterator[str]:
    yield machine()
    yield ""
    yield from sizes()
    yield ""
    decodes = [
        (f"{shape.heads}/{shape.kv_heads} heads of {shape.head_dim}, {n} x {context}",
         decode_seconds(shape, n, context))
        for shape, n, context in DECODES
    ]  # fmt: skip
    yield from speeds("decode attention, sequences x context", decodes, 1e6, "us a layer")
    yield ""
    prefills = [
        (f"{shape.heads}/{shape.kv_heads} heads of {shape.head_dim}, {new} after {before}",
         prefill_seconds(shape, new, before))
        for shape, new, before in PREFILLS
    ]  # fmt: skip
    yield from speeds("prefill attention", prefills, 1e3, "ms a layer")
    yield ""
    yield from qualities()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("page", type=Path)
    page: Path = parser.parse_args().page
    rewrite(page, "python -m tests.bench.formats", tables())


if __name__ == "__main__":
    main()
