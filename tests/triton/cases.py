"""The launches that every architecture's kernels are compiled for."""

from dataclasses import dataclass, replace

import torch
from kvrt_kernels.triton import TritonAttention, TritonMatrices, TritonOps
from kvrt_kernels.triton.configs import formats_on
from kvrt_kernels.triton.copy import copy_pages

from kvrt.spi import (
    QUANTIZATIONS,
    AttentionBatch,
    AttentionParams,
    DType,
    HeadNorm,
    KVFormat,
    KVLayout,
    Matrix,
    Rotation,
)
from kvrt.testing.matrices import FORMATS
from tests.triton.compiled import Resources, compiling


@dataclass(frozen=True, slots=True)
class Case:
    """One launch, or one and the launches that belong to it.

    Args:
        what: ``decode``, ``prefill``, ``append``, ``dense``, or a product of ``few tokens`` or
            ``many tokens`` with packed weights.
        head_dim: size of a head.
        dtype: of activations, pages and weights.
        special: with a window, sinks and, without branches, a soft-cap; or with every option there
            is.
        branches: of a step with branches.
        kv: of pages, if it is not `dtype`.
        causal: a token sees those before it only.
        value_dim: size of a value; 0: as of a key.
        shared: values are the beginning of the keys.
        weights: their format.
    """

    what: str
    head_dim: int = 128
    dtype: DType = "bfloat16"
    special: bool = False
    branches: bool = False
    kv: KVFormat | None = None
    causal: bool = True
    value_dim: int = 0
    shared: bool = False
    weights: str = ""

    def __str__(self) -> str:
        options = " special" * self.special + " branches" * self.branches
        options += " whole" * (not self.causal) + f" values {self.value_dim}" * bool(self.value_dim)
        return f"{self.what} {self.numbers} {self.head_dim}{options}{' shared' * self.shared}"

    @property
    def numbers(self) -> str:
        kept = self.kv or self.weights
        return f"{self.dtype} on {kept}" if kept else self.dtype

    def runs_on(self, arch: str) -> bool:
        """Whether a device of that architecture keeps such pages."""
        return self.kv is None or self.kv in formats_on(arch, ())


CODES = tuple(QUANTIZATIONS)
PACKED = ("q4_1", "q8_0", "q5_k", "q6_k", "int4 by 64", "fp8 by 128", "mxfp4")
"""All kinds of codes, scales and offsets, and each number of pieces that share a scale."""

COMMON = [
    Case("decode"),
    Case("prefill"),
    Case("append", special=True),
    Case("decode", branches=True),
    Case("dense"),
    Case("decode", kv="int8"),
    Case("prefill", kv="fp8"),
    Case("append", special=True, kv="int4"),
    Case("few tokens", weights="q4_1"),
    Case("many tokens", weights="q8_0"),
]
"""What most models need."""

LATENT: tuple[tuple[DType, KVFormat | None], ...] = (
    ("bfloat16", None),
    ("bfloat16", "int8"),
    ("float32", None),
)

ALL = [
    Case(what, head_dim, dtype, special, branches)
    for what in ("decode", "prefill")
    for head_dim in (64, 80, 128, 256)
    for dtype in ("bfloat16", "float32")
    for special in (False, True)
    for branches in (False, True)
] + [
    *(Case("decode", dtype="float16", special=special) for special in (False, True)),
    *(Case("prefill", dtype="float16", special=special) for special in (False, True)),
    *(Case("append", dim, special=special) for dim in (64, 80, 128, 256) for special in (0, 1)),
    Case("append", dtype="float32", special=True),
    *(
        Case(what, head_dim, kv=kv)
        for what in ("decode", "prefill", "append")
        for head_dim in (64, 80, 128, 256)
        for kv in CODES
    ),
    *(Case(what, dtype="float32", kv=kv) for what in ("decode", "prefill") for kv in CODES),
    *(Case(what, special=True, kv=kv) for what in ("decode", "prefill", "append") for kv in CODES),
    *(Case(what, causal=False) for what in ("decode", "prefill")),
    *(
        Case(what, value_dim=64, shared=shared)
        for what in ("decode", "prefill")
        for shared in (False, True)
    ),
    *(Case("prefill", 64, kv=kv, value_dim=32) for kv in ("int8", "fp8")),
    Case("append", value_dim=64),
    Case("append", value_dim=64, shared=True),
    *(
        Case(what, 576, dtype, kv=kv, value_dim=512, shared=True)
        for what in ("decode", "prefill")
        for dtype, kv in LATENT
    ),
    Case("append", 576, value_dim=512, shared=True),
    Case("dense"),
    Case("dense", dtype="float32"),
    *(Case(what, weights=weights) for what in ("few tokens", "many tokens") for weights in PACKED),
    *(Case(what, dtype="float32", weights="q4_1") for what in ("few tokens", "many tokens")),
]
"""Every entry of every table of tiles, with and without masks for sizes that are no power of 2."""


def compile_case(arch: str, case: Case) -> list[Resources]:
    """Compile what the case launches."""
    with compiling(arch) as compiled:
        if case.weights:
            packed(arch, case)
        elif case.what == "dense":
            dense(arch, case)
        else:
            attention(arch, case)
    return compiled


def attention(arch: str, case: Case) -> None:
    kv_heads, heads, queries = 8, 32, 512 if case.what == "prefill" else 1
    batch = step(case, kv_heads, queries)
    dtype = getattr(torch, case.dtype)
    device = TritonAttention(arch, "cpu", multiprocessors=64)
    if case.branches:
        parents = torch.arange(-1, queries - 1, dtype=torch.int32)
        batch = replace(batch, parents=parents)
    plan = device.plan(batch)
    values = case.value_dim or case.head_dim
    q, k = (torch.empty(queries, n, case.head_dim, dtype=dtype) for n in (heads, kv_heads))
    out, v = (torch.empty(queries, n, values, dtype=dtype) for n in (heads, kv_heads))
    if case.what != "append":
        params = AttentionParams(scale=0.1, causal=case.causal)
        if case.special:
            logits = torch.empty(heads)
            cap = 0.0 if case.branches else 30.0
            params = AttentionParams(0.1, 1000, cap, sinks=4, sink_logits=logits)
        device.run(plan, 1, q, out, params)
    elif case.special:
        angles = Rotation(*torch.empty(2, queries, case.head_dim // 2))
        norm = HeadNorm(*torch.empty(2, case.head_dim), eps=1e-6)
        TritonOps().rotate_append(plan, 1, q, k, v, angles, norm)
    else:
        device.append(plan, 1, k, v)


def step(case: Case, kv_heads: int, queries: int) -> AttentionBatch:
    """One sequence of 8,000 tokens, in pages that nothing reads."""
    page_size = 16
    layout = KVLayout.packed(
        case.kv or case.dtype,
        layers=2,
        kv_heads=kv_heads,
        head_dim=case.head_dim,
        page_size=page_size,
        value_dim=case.value_dim,
        shared=case.shared,
    )
    return AttentionBatch(
        kv=torch.empty(64, dtype=getattr(torch, layout.storage)),
        layout=layout,
        page_table=torch.zeros((1, 500), dtype=torch.int32),
        query_start=torch.tensor([0, queries], dtype=torch.int32),
        context_len=torch.tensor([8000], dtype=torch.int32),
    )


def dense(arch: str, case: Case) -> None:
    ops = TritonOps()
    x = torch.empty(2, 4096, dtype=getattr(torch, case.dtype))
    weight = torch.empty(2 * 4096, 4096, dtype=x.dtype)
    ops.rms_norm(x, torch.empty(4096), 1e-6)
    for activation in ("silu", "gelu_tanh"):
        for bias in (None, torch.empty(2 * 4096)):
            ops.gated_linear(x, weight, activation, bias)
    copy_pages(torch.empty(64, dtype=x.dtype), 2**16, torch.zeros(2, 1, dtype=torch.int32))


def packed(arch: str, case: Case) -> None:
    products, format = TritonMatrices(arch), FORMATS[case.weights]
    data = torch.empty(products.nbytes(format, 64, 4096), dtype=torch.uint8)
    matrix = Matrix(format, data, 64, 4096)
    tokens = 1 if case.what == "few tokens" else 64
    x = torch.empty(tokens, 4096, dtype=getattr(torch, case.dtype))
    products.linear(x, (matrix,))
    if case.what == "few tokens":
        products.rows(matrix, torch.zeros(tokens, dtype=torch.int64), x)
