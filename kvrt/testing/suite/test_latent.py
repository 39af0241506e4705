"""The optional operators of multi-head latent attention, alone and around attention."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvrt.spi import AttentionParams, Capability, DenseOps, Device, DType, LatentOps, Rotation
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, Case, PagedKV, mismatch, randoms
from kvrt.wrappers.rules import TORCH_DTYPE

SHAPES = [(1, 16, 24), (3, 20, 64), (5, 128, 512), (16, 300, 33)]
"""Heads, and what goes into their products and comes out."""


@pytest.fixture
def latents(device: Device) -> LatentOps:
    found = device.extension(LatentOps)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer LatentOps")
    return found


def part_of(device: Device, dtype: DType, *shape: int, seed: int) -> tuple[Tensor, Tensor]:
    """Heads that are parts of longer ones, which do not follow each other, and the longer ones."""
    tokens, heads, elements = shape
    whole = randoms(device, dtype, tokens, heads + 1, elements + 16, seed=seed)
    return whole[:, 1:, 8 : elements + 8], whole


def matrices(device: Device, stored: DType, heads: int, rows: int, width: int) -> Tensor:
    values = randoms(device, "float32", heads, rows, width, seed=2) / math.sqrt(width)
    return values.to(TORCH_DTYPE[stored])


def rotation_of(device: Device, tokens: int, dims: int) -> Rotation:
    angles = randoms(device, "float32", tokens, dims // 2, seed=7) * 3
    return Rotation(angles.cos(), angles.sin())


@pytest.mark.parametrize(("heads", "width", "rows"), SHAPES)
def test_a_head_is_multiplied_with_a_matrix_of_its_own(
    device: Device, latents: LatentOps, compute: DType, stored: DType, heads: int, width: int,
    rows: int,
) -> None:  # fmt: skip
    weight = matrices(device, stored, heads, rows, width)
    for tokens in (1, 5, 40, 100):
        x, _ = part_of(device, compute, tokens, heads, width, seed=1)
        out, whole = part_of(device, compute, tokens, heads, rows, seed=3)
        before = whole.clone()
        latents.by_head(x, weight, out)
        device.synchronize()
        factors = [x, *([x.bfloat16()] if weight.dtype is torch.bfloat16 else [])]
        problems = [
            mismatch(
                out,
                torch.einsum("thi,hoi->tho", factor.cpu().double(), weight.cpu().double()),
                TOLERANCE[compute],
            )
            for factor in factors
        ]
        assert not all(problems), f"{tokens} tokens: {problems[0]}"
        before[:, 1:, 8 : rows + 8] = out
        assert torch.equal(whole, before), "what is beside it was written"


@pytest.mark.usefixtures("batch_invariant")
def test_a_head_has_the_bits_of_a_product_alone_beside_any_others(
    device: Device, latents: LatentOps, dense: DenseOps, compute: DType, stored: DType
) -> None:
    weight = matrices(device, stored, 6, 72, 64)
    x, _ = part_of(device, compute, 131, 6, 64, seed=1)
    together, _ = part_of(device, compute, 131, 6, 72, seed=3)
    latents.by_head(x, weight, together)
    for start, stop in ((0, 1), (3, 5), (16, 40), (40, 131), (130, 131)):
        alone, _ = part_of(device, compute, stop - start, 6, 72, seed=3)
        latents.by_head(x[start:stop], weight, alone)
        assert torch.equal(alone, together[start:stop])
        for head in range(6):
            product = dense.linear(x[start:stop, head], weight[head])
            assert torch.equal(alone[:, head], product)


@pytest.mark.parametrize("dims", [64, 32, 0])
def test_heads_are_rotated_where_they_are_or_to_another_place(
    device: Device, latents: LatentOps, compute: DType, dims: int
) -> None:
    for tokens in (1, 7, 60):
        rotation = rotation_of(device, tokens, dims) if dims else None
        x, whole = part_of(device, compute, tokens, 5, 64, seed=1)
        want = x.cpu().double() if rotation is None else reference.rotate(x, rotation)
        given = whole.clone()
        out, around = part_of(device, compute, tokens, 5, 64, seed=3)
        before = around.clone()
        latents.rotate(x, rotation, out)
        device.synchronize()
        assert not mismatch(out, want, TOLERANCE[compute])
        assert torch.equal(whole, given), "x was changed"
        before[:, 1:, 8:72] = out
        assert torch.equal(around, before), "what is beside it was written"
        latents.rotate(x, rotation, x)
        device.synchronize()
        assert torch.equal(x, out)
        given[:, 1:, 8:72] = x
        assert torch.equal(whole, given), "what is beside it was written"


def test_around_attention_they_read_what_keys_and_values_of_their_own_would_say(
    device: Device, latents: LatentOps, case: Case, stored: DType
) -> None:
    """The absorbed form against the other: of each token a latent, of each head keys and values."""
    rank, rotated, plain, value, heads = 48, 16, 24, 20, 6
    sizes = device.info.head_dims
    if Capability.VALUE_WIDTHS not in device.info.capabilities:
        pytest.skip("the device does not declare VALUE_WIDTHS")
    if sizes and not {rank, rank + rotated} <= set(sizes):
        pytest.skip(f"the device does not declare heads of {rank + rotated} and {rank}")
    case = replace(case, heads=heads, kv_heads=1, head_dim=64, value_dim=48, shared=True)
    case = replace(case, contexts=(7, 33, 20), queries=(7, 33, 20))
    tokens, compute = 60, case.compute
    key_up = matrices(device, stored, heads, rank, plain)
    value_up = matrices(device, stored, heads, value, rank)
    key = randoms(device, compute, tokens, 1, 64, seed=4)
    raw = randoms(device, compute, tokens, heads, plain + rotated, seed=5)
    query, read = (randoms(device, compute, tokens, heads, n, seed=6) for n in (64, rank))
    got = randoms(device, compute, tokens, heads, value, seed=8)
    rotation, params = rotation_of(device, tokens, rotated), AttentionParams(0.2)
    plain_key = key.clone()
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        plan = device.attention.plan(batch)
        latents.rotate(key[..., rank:], rotation, key[..., rank:])
        latents.rotate(raw[..., plain:], rotation, query[..., rank:])
        latents.by_head(raw[..., :plain], key_up, query[..., :rank])
        device.attention.append(plan, 0, key, key[..., :rank])
        device.attention.run(plan, 0, query, read, params)
        latents.by_head(read, value_up, got)
        device.synchronize()
    latent = plain_key[:, 0, :rank].cpu().double()
    ends = reference.rotate(plain_key[..., rank:], rotation).expand(-1, heads, -1)
    beginnings = torch.einsum("tr,hrp->thp", latent, key_up.cpu().double())
    keys = torch.cat((beginnings, ends), -1)
    values = torch.einsum("tr,hvr->thv", latent, value_up.cpu().double())
    of_queries = reference.rotate(raw[..., plain:], rotation)
    queries = torch.cat((raw[..., :plain].cpu().double(), of_queries), -1)
    start = 0
    for length in case.contexts:
        own = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", queries[own], keys[own]) * params.scale
        hidden = torch.ones(length, length).triu(1).bool()
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        want = torch.einsum("hqk,khv->qhv", weights, values[own])
        coarsest: DType = "bfloat16" if stored == "bfloat16" else case.kv  # type: ignore[assignment]
        tolerance = max(case.tolerance, TOLERANCE[compute], TOLERANCE[coarsest])
        assert not mismatch(got[own], want, 4 * tolerance)
        start += length
