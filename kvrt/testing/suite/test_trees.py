"""New tokens that branch (`AttentionBatch.parents`), against plain arithmetic."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kvrt.spi import (
    AttentionBatch,
    Capability,
    DenseOps,
    Device,
    DType,
    HeadNorm,
    KVFormat,
    Rotation,
)
from kvrt.testing import reference
from kvrt.testing.paged import TOLERANCE, Case, PagedKV, fill_past, mismatch, randoms, run_layers

LINE = (-1, 0, 1, 2)
FORK = (-1, 0, 1, 0, 3)
BUSH = (-1, -1, 0, 0, 1, 2, 2, 4, -1, 8)


@pytest.fixture(autouse=True)
def trees(device: Device) -> None:
    if Capability.TREES not in device.info.capabilities:
        pytest.skip("the device does not declare TREES")


@pytest.fixture
def case(device: Device) -> Case:
    """Three trees after contexts of odd lengths, the first of nothing; and two plain sequences."""
    return Case(
        contexts=(5, 47, 73, 21, 40),
        queries=(len(FORK), len(BUSH), len(FORK), 21, 1),
        compute=device.info.compute_dtypes[0],
        kv=device.info.kv_formats[0],
    )


def line(length: int) -> Sequence[int]:
    return range(-1, length - 1)


def branching(batch: AttentionBatch, *trees: Sequence[int]) -> AttentionBatch:
    """The batch with a tree for each sequence."""
    return replace(batch, parents=torch.tensor([row for tree in trees for row in tree]).int())


def assert_agrees(device: Device, case: Case, *trees: Sequence[int]) -> None:
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = branching(pages.batch(tables, case.contexts, case.queries), *trees)
        fill_past(batch)
        problem = mismatch(*run_layers(device, batch, case), case.tolerance)
        assert not problem, f"{case}, {trees}: {problem}"


@pytest.fixture
def mixed(case: Case) -> tuple[Sequence[int], ...]:
    return (FORK, BUSH, FORK, line(21), line(1))


def test_a_token_sees_its_ancestors_and_no_other_branch(
    device: Device, case: Case, mixed: tuple[Sequence[int], ...], compute: DType, kv: DType
) -> None:
    assert_agrees(device, replace(case, compute=compute, kv=kv), *mixed)


@pytest.mark.parametrize("page_size", [1, 7, 16, 128])
def test_branches_across_pages(
    device: Device, case: Case, mixed: tuple[Sequence[int], ...], page_size: int
) -> None:
    assert_agrees(device, replace(case, page_size=page_size), *mixed)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 8, 40])
def test_the_window_counts_positions_and_not_rows(
    device: Device, case: Case, mixed: tuple[Sequence[int], ...], window: int
) -> None:
    assert_agrees(device, replace(case, window=window), *mixed)


def test_window_softcap_and_scale_together(
    device: Device, case: Case, mixed: tuple[Sequence[int], ...]
) -> None:
    assert_agrees(device, replace(case, window=5, softcap=3.0, scale=0.3), *mixed)


@pytest.mark.parametrize(("rows", "past"), [(2, 63), (17, 0), (40, 250), (90, 1)])
def test_any_tree_after_any_context(device: Device, case: Case, rows: int, past: int) -> None:
    choose = random.Random(rows)
    tree = [choose.randrange(-1, row) for row in range(rows)]
    one = replace(case, contexts=(past + rows,), queries=(rows,), layers=1)
    assert_agrees(device, one, tree)


def test_branches_after_a_context_that_is_split(device: Device, case: Case) -> None:
    """Long enough for it, and the branches lie on both sides of a border of 512."""
    for past in (507, 1500):
        long = replace(case, contexts=(past + len(BUSH),), queries=(len(BUSH),), layers=1)
        assert_agrees(device, long, BUSH)


@pytest.mark.usefixtures("batch_invariant")
def test_a_branch_has_the_bits_of_the_same_tokens_in_line(
    device: Device, case: Case, compute: DType, kv: DType
) -> None:
    """So an accepted draft leaves what a model without drafts would have computed."""
    for window in (0, 3):
        for past in (0, 58, 505):
            one = replace(case, compute=compute, kv=kv, window=window, layers=1)
            q = randoms(device, compute, len(BUSH), one.heads, one.head_dim, seed=1)
            k, v = (
                randoms(device, compute, len(BUSH), one.kv_heads, one.head_dim, seed=seed)
                for seed in (2, 3)
            )
            tree = step(device, one, past, (q, k, v), BUSH)
            for leaf in range(len(BUSH)):
                path = [leaf]
                while BUSH[path[0]] >= 0:
                    path.insert(0, BUSH[path[0]])
                alone = step(device, one, past, (q[path], k[path], v[path]), None)
                assert torch.equal(tree[path], alone), f"row {leaf} after {past} tokens"


def step(
    device: Device,
    case: Case,
    past: int,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tree: Sequence[int] | None,
) -> torch.Tensor:
    """What rows after `past` tokens attend to, in line or as a tree."""
    rows = len(qkv[0])
    with PagedKV(device, case.layout, -(-(past + rows) // case.page_size)) as pages:
        batch = pages.batch([pages.take(past + rows)], [past + rows], [rows])
        fill_past(batch)
        if tree is not None:
            batch = branching(batch, tree)
        plan, out = device.attention.plan(batch), torch.full_like(qkv[0], math.nan)
        device.attention.append(plan, 0, qkv[1], qkv[2])
        device.attention.run(plan, 0, qkv[0], out, case.params)
        device.synchronize()
        return out.cpu()


def test_a_row_is_rotated_by_its_own_angles_and_stored_by_its_row(
    device: Device,
    dense: DenseOps,
    case: Case,
    mixed: tuple[Sequence[int], ...],
    compute: DType,
    kv: KVFormat,
) -> None:
    case = replace(case, compute=compute, kv=kv)
    angle = 6.3 * torch.rand(sum(case.queries), 32, generator=torch.Generator().manual_seed(7))
    place = device.info.torch_device
    rotation = Rotation(cos=angle.cos().to(place), sin=angle.sin().to(place))
    scales = [1 + 0.2 * randoms(device, "float32", 64, seed=seed) for seed in (5, 6)]
    norm = HeadNorm(q=scales[0], k=scales[1], eps=1e-6)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = branching(pages.batch(tables, case.contexts, case.queries), *mixed)
        fill_past(batch)
        tokens = int(batch.query_start[-1])
        q, k, v = (
            randoms(device, compute, tokens, heads, 64, seed=seed)
            for seed, heads in enumerate((case.heads, case.kv_heads, case.kv_heads))
        )
        want_q, want_k = reference.normed_and_rotated(q.clone(), k.clone(), rotation, norm)
        dense.rotate_append(device.attention.plan(batch), 1, q, k, v, rotation, norm)
        device.synchronize()
        assert not mismatch(q, want_q, TOLERANCE[compute])
        assert not mismatch(k, want_k, TOLERANCE[compute])
        for s in range(len(case.contexts)):
            rows, slots = reference.rows(batch, s), reference.new_slots(batch, s)
            for side, x in enumerate((k, v)):
                stored = reference.read(batch, s, 1, side, slots)
                reference.write(batch, s, 1, side, slots, x[rows])
                expected = reference.read(batch, s, 1, side, slots)
                assert torch.equal(stored, expected), f"{'values' if side else 'keys'} of {s}"
