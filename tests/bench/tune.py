"""Time tiles of the Triton kernels on this machine's GPU.

    python -m tests.bench.tune ARCH [--quick]       e.g. sm_90

prints, for each entry of `kvrt_kernels.triton.configs`, the fastest candidate as a line of that
file, beside the entry's own time. Candidates that do not fit are left out. Nothing is changed: who
changes an entry runs ``python -m tests.triton.resources docs/kernels.md``, which also says whether
it spills. Written without a GPU at hand, and not yet run on one: docs/kernels.md has what the tiles
reach as they are.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import triton
from kvrt_kernels.triton import TritonAttention, TritonMatrices
from kvrt_kernels.triton.configs import Tile, config
from triton.runtime.errors import OutOfResources, PTXASError

from kvrt.spi import AttentionBatch, AttentionParams, DType, KVLayout
from kvrt.testing.matrices import FORMATS, random_rows

DTYPE: dict[int, DType] = {16: "bfloat16", 32: "float32"}
HEADS, KV_HEADS, PAGE_SIZE = 32, 8, 16
SHAPES = {"decode": ((8192,) * 32, 1), "prefill": ((8192,), 4096)}
"""Contexts, and the query tokens of each."""
WEIGHTS = FORMATS["q4_k"]
ROWS, WIDTH, MANY = 14336, 4096, 2048
"""Of a matrix of them, and how many tokens are many."""


def candidates(kernel: str, entry: Tile, quick: bool) -> Iterator[Tile]:
    """The entry itself, then its neighbours."""
    yield entry
    rows = [entry.block_m] if entry.block_m == 16 or quick else [32, 64, 128]
    tokens = [entry.block_n] if quick else [16, 32, 64, 128]
    for m, n, warps, stages in itertools.product(rows, tokens, (2, 4, 8), (1, 2, 3, 4)):
        for peeled in {entry.peeled, kernel == "prefill"}:
            tile = replace(entry, block_m=m, block_n=n, warps=warps, stages=stages, peeled=peeled)
            if tile != entry:
                yield tile


def batch(kernel: str, bits: int, head_dim: int, device: str) -> AttentionBatch:
    contexts, queries = SHAPES[kernel]
    pages = [-(-length // PAGE_SIZE) for length in contexts]
    layout = KVLayout.packed(
        DTYPE[bits],
        layers=1,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        page_size=PAGE_SIZE,
    )
    kind = getattr(torch, DTYPE[bits])
    return AttentionBatch(
        kv=torch.randn(sum(pages) * layout.page_stride, device=device, dtype=kind),
        layout=layout,
        page_table=torch.randperm(sum(pages)).to(torch.int32).view(len(contexts), -1),
        query_start=(torch.arange(len(contexts) + 1) * queries).to(torch.int32),
        context_len=torch.tensor(contexts, dtype=torch.int32),
    )


def attention_call(
    attention: TritonAttention, kernel: str, key: tuple[int, int], device: str
) -> Callable[[], object]:
    step = batch(kernel, *key, device)
    tokens = int(step.query_start[-1])
    q = torch.randn(tokens, HEADS, step.layout.head_dim, device=device, dtype=step.kv.dtype)
    out, plan = torch.empty_like(q), attention.plan(step)
    params = AttentionParams(scale=step.layout.head_dim**-0.5)
    return lambda: attention.run(plan, 0, q, out, params)


def product_call(
    products: TritonMatrices, key: tuple[int, bool], device: str
) -> Callable[[], object]:
    bits, many = key
    plain = random_rows(WEIGHTS, 256, WIDTH, seed=1).repeat(ROWS // 256, 1)
    data = torch.empty(products.nbytes(WEIGHTS, ROWS, WIDTH), dtype=torch.uint8, device=device)
    weight = (products.pack(WEIGHTS, plain, WIDTH, data),)
    kind = getattr(torch, DTYPE[bits])
    x = torch.randn(MANY if many else 1, WIDTH, device=device, dtype=kind)
    return lambda: products.linear(x, weight)


def milliseconds(
    of: TritonAttention | TritonMatrices,
    kernel: str,
    key: tuple[int, int],
    tile: Tile,
    call: Callable[[], object],
) -> float:
    """The median time of a call; infinite for a tile that cannot be used."""
    base = of.config
    of.config = replace(base, **{kernel: {**getattr(base, kernel), key: tile}})
    try:
        time: float = triton.testing.do_bench(call, quantiles=[0.5])
    except (OutOfResources, PTXASError):
        return float("inf")
    finally:
        of.config = base
    return time


def main(arch: str, quick: bool) -> None:
    device = "cuda"  # torch's name for AMD's GPUs as well
    count = torch.cuda.get_device_properties(device).multi_processor_count
    attention, products = TritonAttention(arch, device, count), TritonMatrices(arch)
    print(f"# {torch.cuda.get_device_name(device)}, {arch}, triton {triton.__version__}")
    for kernel in (*SHAPES, "products"):
        for key, entry in getattr(config(arch), kernel).items():
            of: TritonAttention | TritonMatrices = attention
            if kernel == "products":
                of, call = products, product_call(products, key, device)
            else:
                call = attention_call(attention, kernel, key, device)
            times = {
                tile: milliseconds(of, kernel, key, tile, call)
                for tile in candidates(kernel, entry, quick)
            }
            best = min(times, key=times.__getitem__)
            print(f"{kernel} {key}: {best},  # {times[best]:.3f} ms, was {times[entry]:.3f} ms")


if __name__ == "__main__":
    main(sys.argv[1], "--quick" in sys.argv[2:])
