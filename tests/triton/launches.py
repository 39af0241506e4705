"""What makes the launches of a case, on tensors that nothing reads."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch
from kvrt_kernels.triton import TritonAttention, TritonMatrices, TritonOps
from kvrt_kernels.triton.branches import TritonBranches
from kvrt_kernels.triton.copy import copy_pages
from kvrt_kernels.triton.experts import TritonExperts
from kvrt_kernels.triton.latent import TritonLatents
from kvrt_kernels.triton.recurrence import TritonRecurrence

from kvrt.spi import (
    AttentionBatch,
    AttentionParams,
    DeltaRule,
    Experts,
    HeadNorm,
    KVLayout,
    Matrix,
    PlainActivation,
    Rotation,
    Router,
    StateBatch,
    StateLayout,
    StateSpaceRule,
)
from kvrt.testing.matrices import FORMATS
from tests.triton.cases import ATTENTION, DENSE, EXPERTS, PRODUCTS, RECURRENT, Case
from tests.triton.compiled import Resources, compiling

Launch = Callable[[str, Case], None]


def compile_case(arch: str, case: Case) -> list[Resources]:
    """Compile what the case launches."""
    launch = next(part.launch for part in PARTS.values() if case in part.cases)
    with compiling(arch) as compiled:
        launch(arch, case)
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
    branches, ones = TritonBranches(), torch.empty(4096)
    branches.layer_norm(x, ones, ones, 1e-6)
    branches.add_branch(x, weight[:2], ones, 1e-6, 1.0)
    for activation in get_args(PlainActivation):
        branches.activate(x, activation)
    branches.scale_rows(x, ones[:2].to(x.dtype))
    heads, angles = x.view(2, 64, 64), Rotation(*torch.empty(2, 2, 16))
    for to in (heads, torch.empty_like(heads)):
        TritonLatents().rotate(heads, angles, to)


def packed(arch: str, case: Case) -> None:
    products, format = TritonMatrices(arch), FORMATS[case.weights]
    data = torch.empty(products.nbytes(format, 64, 4096), dtype=torch.uint8)
    matrix = Matrix(format, data, 64, 4096)
    tokens = 1 if case.what == "few tokens" else 64
    x = torch.empty(tokens, 4096, dtype=getattr(torch, case.dtype))
    products.linear(x, (matrix,))
    if case.what == "few tokens":
        products.rows(matrix, torch.zeros(tokens, dtype=torch.int64), x)


def experts(arch: str, case: Case) -> None:
    count, width, hidden = 8, 1024, 2048
    ops, dtype = TritonExperts(arch), getattr(torch, case.dtype)
    tokens = 4 if "few" in case.what else 512
    x, out = torch.empty(2, tokens, hidden, dtype=dtype)
    logits, weights = torch.empty(tokens, count), torch.empty(tokens, 2)
    chosen = torch.empty(tokens, 2, dtype=torch.int32)
    up, down = 2 * width, hidden
    one = Experts(
        count, width, torch.empty(count * up, hidden, dtype=dtype),
        torch.empty(count * down, width, dtype=dtype),
    )  # fmt: skip
    if case.weights:
        one = replace(
            one,
            gate_up=_matrices(arch, case, count, up, hidden),
            down=_matrices(arch, case, count, down, width),
            gate_up_bias=torch.empty(count, up),
            down_bias=torch.empty(count, down),
            activation="clamped",
        )
    else:
        ops.route(logits, Router("softmax", 2), None, chosen, weights)
        grouped = Router("sigmoid", 2, renormalise=True, groups=4, groups_chosen=2)
        ops.route(logits, grouped, torch.empty(count), chosen, weights)
        ops.route(logits, Router("sparsemixer", 2), None, chosen, weights)
    ops.mix(x, one, chosen, weights, out, out)


def _matrices(arch: str, case: Case, count: int, rows: int, width: int) -> tuple[Matrix, ...]:
    """As they lie in a model's weights."""
    format = FORMATS[case.weights]
    nbytes = TritonMatrices(arch).nbytes(format, rows, width)
    memory = torch.empty(count, -(-nbytes // 128) * 128, dtype=torch.uint8)
    return tuple(Matrix(format, each[:nbytes], rows, width) for each in memory)


def recurrent(arch: str, case: Case) -> None:
    ops, dtype, tokens, heads = TritonRecurrence("cpu"), getattr(torch, case.dtype), 20, 4
    key, value = case.head_dim, 128
    decays = key if case.special else 1
    if case.what == "convolve":
        for bias in (None, torch.empty(512)):
            x, out = torch.empty(2, tokens, 512, dtype=dtype)
            plan = ops.plan(states(StateLayout(case.dtype, 2, 512, 16), tokens))
            ops.convolve(plan, 1, x, torch.empty(512, 4), bias, "silu", out)
        return
    width = 2 * key + heads * (value + decays)
    own = ops.plan(states(StateLayout("float32", 2, width, 16), tokens))
    ends = StateLayout("float32", 2, heads * key * value, 16, of_pages=True)
    borders = ops.plan(states(ends, tokens))
    x = torch.empty(tokens, 4 * key + heads * value, dtype=dtype)
    out, log = torch.empty(tokens, heads * value, dtype=dtype), torch.empty(heads)
    gates = torch.empty(tokens, heads * (1 + decays), dtype=dtype)
    if case.what == "delta":
        rule = DeltaRule(2, heads, key, value, log, torch.empty(heads * decays), decays)
        ops.delta(own, borders, 1, x, gates, rule, out)
    else:
        space = StateSpaceRule(2, heads, key, value, log, log, log)
        ops.scan(own, borders, 1, x, gates[:, :heads], space, out)


def states(layout: StateLayout, tokens: int) -> StateBatch:
    return StateBatch(
        kv=torch.empty(64, dtype=getattr(torch, layout.format)),
        layout=layout,
        page_table=torch.zeros((1, 500), dtype=torch.int32),
        query_start=torch.tensor([0, tokens], dtype=torch.int32),
        context_len=torch.tensor([8000], dtype=torch.int32),
    )


@dataclass(frozen=True, slots=True)
class Part:
    """Cases whose kernels have a table of their own.

    Args:
        launch: makes the launches of one.
        modules: what decides about them, of `kvrt_kernels.triton`.
    """

    cases: list[Case]
    launch: Launch
    modules: tuple[str, ...]


PRODUCT = ("configs", "matrices", "packing", "product", "weights")
PARTS: Mapping[str, Part] = {
    "attention": Part(
        ATTENTION,
        attention,
        ("append", "attention", "configs", "decode", "kept", "prefill", "tile", "work"),
    ),
    "around products": Part(
        DENSE, dense, ("branches", "configs", "copy", "gate", "latent", "norm")
    ),
    "products with packed weights": Part(PRODUCTS, packed, PRODUCT),
    "experts": Part(EXPERTS, experts, (*PRODUCT, "experts", "gate", "routed", "router")),
    "recurrent layers": Part(RECURRENT, recurrent, ("configs", "convolve", "recurrence", "states")),
}
