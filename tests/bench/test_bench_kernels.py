"""The CPU kernels beside torch, as fractions of what the machine can do.

    pytest tests/bench/test_bench_kernels.py -m extra --benchmark-enable --benchmark-group-by=group

"of read bandwidth" counts each stored key, value or weight once; "of arithmetic peak" counts the
multiply-adds that are needed. Both limits are measured in the same run; the best round is set
beside the limit's best. Cached data would make decoding look faster than memory: layers, and
copies of a weight, take turns.
"""

import mmap
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import ModuleType

import kvrt_kernels
import pytest
import torch
from kvrt_kernels import append, attention, limits, linear, norm, packed, panels, reference
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor
from torch.nn import functional

from kvrt.spi import AttentionBatch, AttentionParams, Bandwidth, KVLayout, Matrix, Rotation
from kvrt.testing import matrices

pytestmark = pytest.mark.extra

HEADS, KV_HEADS, HEAD_DIM, PAGE_SIZE, LAYERS = 32, 8, 128, 16, 4
PARAMS = AttentionParams(scale=HEAD_DIM**-0.5)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COLD_BYTES = 512 << 20


@pytest.fixture(scope="module")
def machine() -> Bandwidth:
    return limits.measure(passes=15)


def huge(count: int, dtype: torch.dtype) -> Tensor:
    """Random numbers in 2 MiB pages, as the CPU backend's memory has them."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory often has no huge pages
    memory = mmap.mmap(-1, count * dtype.itemsize, flags=private)
    with suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    numbers = torch.frombuffer(memory, dtype=dtype)
    pattern = torch.randn(1 << 20).to(dtype)
    for begin in range(0, count, 1 << 20):
        numbers[begin : begin + (1 << 20)] = pattern[: count - begin]
    return numbers


def paged(dtype: str, queries: list[int], contexts: list[int], layers: int) -> AttentionBatch:
    """Sequences whose pages lie in random order."""
    counts = [-(-n // PAGE_SIZE) for n in contexts]
    layout = KVLayout.packed(
        {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype],
        layers=layers,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        page_size=PAGE_SIZE,
    )
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).int()
    table = torch.zeros(len(counts), max(counts), dtype=torch.int32)
    for s, pages in enumerate(order.split(counts)):
        table[s, : len(pages)] = pages
    return AttentionBatch(
        kv=huge(sum(counts) * layout.page_stride, DTYPES[dtype]),
        layout=layout,
        page_table=table,
        query_start=torch.tensor([0, *queries]).cumsum(0).int(),
        context_len=torch.tensor(contexts, dtype=torch.int32),
    )


def measure(
    benchmark: BenchmarkFixture, rounds: int, work: Callable[[int], object], **needed: float
) -> None:
    """Time `work(i)`, and note what part of each limit its best round reached.

    Args:
        needed: for each limit, the seconds that it alone would take.
    """
    turns = iter(range(1 << 30))
    benchmark.pedantic(lambda: work(next(turns)), rounds=rounds, warmup_rounds=3)
    if benchmark.stats:
        for name, seconds in needed.items():
            benchmark.extra_info[name] = f"{seconds / benchmark.stats.stats.min:.2f}"


# --- attention -------------------------------------------------------------------------------


def attend(
    benchmark: BenchmarkFixture, by: ModuleType, batch: AttentionBatch, rounds: int, **needed: float
) -> None:
    q = torch.randn(int(batch.query_start[-1]), HEADS, HEAD_DIM)
    out = torch.empty_like(q)
    plan = by.plan(batch)
    layers = batch.layout.layers
    measure(benchmark, rounds, lambda i: by.run(plan, i % layers, q, out, PARAMS), **needed)


@pytest.mark.benchmark(group="kernels: decode attention, 8 x 2048 tokens, 32/8 heads of 128")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by", [attention, reference], ids=["kvrt", "torch gather"])
def test_decode(benchmark, machine, by, dtype):
    batch = paged(dtype, [1] * 8, [2048] * 8, LAYERS)
    nbytes = 8 * 2048 * 2 * KV_HEADS * HEAD_DIM * DTYPES[dtype].itemsize
    limit = nbytes / machine.read_bytes_per_s
    attend(benchmark, by, batch, 40 if by is attention else 3, of_read_bandwidth=limit)


PREFILLS = {"2048": (2048, 0), "512": (512, 0), "512 after 2048": (512, 2048)}


def prefill_seconds(machine: Bandwidth, new: int, before: int) -> float:
    return 4 * HEAD_DIM * HEADS * new * (before + (new + 1) / 2) / machine.flops_per_s


@pytest.mark.benchmark(group="kernels: prefill attention, 32/8 heads of 128")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", PREFILLS)
def test_prefill(benchmark, machine, tokens, dtype):
    new, before = PREFILLS[tokens]
    batch = paged(dtype, [new], [before + new], 1)
    attend(benchmark, attention, batch, 7, of_arithmetic_peak=prefill_seconds(machine, new, before))


@pytest.mark.benchmark(group="kernels: prefill attention, 32/8 heads of 128")
@pytest.mark.parametrize("tokens", PREFILLS)
def test_prefill_torch_contiguous_fp32(benchmark, machine, tokens):
    new, before = PREFILLS[tokens]
    q = torch.randn(1, HEADS, new, HEAD_DIM)
    k, v = torch.randn(2, 1, HEADS, before + new, HEAD_DIM)
    mask = torch.ones(new, before + new, dtype=torch.bool).tril(before) if before else None
    measure(
        benchmark,
        7,
        lambda _: functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None
        ),
        of_arithmetic_peak=prefill_seconds(machine, new, before),
    )


# --- matrix products -------------------------------------------------------------------------

SHAPES = {"576x576": (576, 576), "49152x576": (49152, 576), "14336x4096": (14336, 4096)}


@pytest.mark.parametrize("by", ["kvrt", "torch"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear(benchmark, machine, shape, rows, dtype, by):
    benchmark.group = f"kernels: linear {shape}"
    (out_features, in_features), kind = SHAPES[shape], DTYPES[dtype]
    nbytes = out_features * in_features * kind.itemsize
    copies = max(1, COLD_BYTES // nbytes)
    weights = huge(copies * out_features * in_features, kind).view(copies, out_features, -1)
    needed = {
        "of_read_bandwidth": nbytes / machine.read_bytes_per_s,
        "of_arithmetic_peak": 2 * rows * out_features * in_features / machine.flops_per_s,
    }
    rounds = max(3, min(300, int(0.3 / sum(needed.values()))))
    if by == "kvrt":
        x = torch.randn(rows, in_features)
        measure(benchmark, rounds, lambda i: linear.linear(x, weights[i % copies]), **needed)
    else:
        x = torch.randn(rows, in_features).to(kind)
        work = functional.linear
        measure(benchmark, max(3, rounds // 4), lambda i: work(x, weights[i % copies]), **needed)


CODES = ["q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "int4 by 128", "iq4_nl"]
KEPT = ["bf16", *CODES, *(f"{name}, exact" for name in ("q8_0", "q4_k"))]


@pytest.mark.parametrize("rows", [1, 4, 16, 64, 256])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("isa", kvrt_kernels.isas())
def test_linear_by_instruction_set(benchmark, machine, request, isa, kept, rows):
    """Weights of bfloat16 and of codes, on each instruction set that runs here."""
    out_features, in_features = SHAPES["14336x4096"]
    benchmark.group = f"kernels: linear 14336x4096, {rows} rows"
    request.addfinalizer(partial(kvrt_kernels.set_isa, kvrt_kernels.isa()))
    kvrt_kernels.set_isa(isa)
    name, exact = kept.removesuffix(", exact"), kept.endswith("exact")
    x, format = torch.randn(rows, in_features), matrices.FORMATS.get(name)
    if format is None:
        nbytes = 2 * out_features * in_features
        weights = huge(4 * nbytes // 2, torch.bfloat16).view(4, out_features, -1)
        work = lambda i: linear.linear(x, weights[i % 4])  # noqa: E731
    else:
        nbytes = panels.nbytes(format, out_features, in_features)
        data = huge(8 * nbytes, torch.uint8).view(8, -1)
        stacked = [Matrix(format, one, out_features, in_features) for one in data]
        work = lambda i: packed.linear(x, (stacked[i % 8],), exact=exact)  # noqa: E731
    measure(benchmark, 7, work, of_read_bandwidth=nbytes / machine.read_bytes_per_s)


# --- the small ones --------------------------------------------------------------------------


@pytest.mark.benchmark(group="kernels: RMS norm of 16 x 4096")
@pytest.mark.parametrize("by", [norm, reference], ids=["kvrt", "torch"])
def test_rms_norm(benchmark, by):
    x, weight = torch.randn(16, 4096), torch.randn(4096)
    benchmark(lambda: by.rms_norm(x, weight, 1e-5))


@pytest.mark.benchmark(group="kernels: rotate and append 8 tokens, 32/8 heads of 128")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by", ["kvrt", "torch"])
def test_rotate_append(benchmark, by, dtype):
    batch = paged(dtype, [1] * 8, [64] * 8, 1)
    plan, operators = (
        (attention.plan(batch), append) if by == "kvrt" else (reference.plan(batch), reference)
    )
    fused = torch.randn(8, HEADS + 2 * KV_HEADS, HEAD_DIM)
    q, k, v = fused.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    angle = torch.randn(8, HEAD_DIM // 2)
    rotation = Rotation(angle.cos(), angle.sin())
    benchmark(lambda: operators.rotate_append(plan, 0, q, k, v, rotation, None))
