"""Recurrent layers over pages, against what defines them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from kvrt.spi import DeltaRule, Device, DType, Recurrence, StateLayout, StateSpaceRule
from kvrt.testing import recurrence as reference
from kvrt.testing.paged import TOLERANCE, PagedKV, mismatch, randoms

LENGTHS, PAGE, LAYERS, LAYER = (2, 5), 2, 2, 1
CUTS = (5, 3)
"""Tokens that a sequence brings in a step, at most: all at once, or until within a page."""


@pytest.fixture(scope="module")
def ops(device: Device) -> Recurrence:
    found = device.extension(Recurrence)  # type: ignore[type-abstract]
    assert found is not None
    return found


def steps(cut: int) -> Iterator[tuple[list[int], list[int]]]:
    """How far each sequence is after a step, and how many tokens it brought."""
    for end in range(cut, max(LENGTHS) + cut, cut):
        contexts = [min(length, end) for length in LENGTHS]
        yield contexts, [now - min(now, end - cut) for now in contexts]


def rows(texts: list[Tensor], contexts: list[int], counts: list[int]) -> Tensor:
    parts = zip(texts, contexts, counts, strict=True)
    return torch.cat([text[end - count : end] for text, end, count in parts])


def of_each(outs: list[tuple[Tensor, list[int]]]) -> list[Tensor]:
    """What each sequence was given, in all steps."""
    return [
        torch.cat(own) for own in zip(*(out.split(counts) for out, counts in outs), strict=True)
    ]


@pytest.mark.parametrize(
    ("dtype", "kernel", "silu"), [("float32", 2, True), ("bfloat16", 4, False)]
)
def test_convolutions_reach_back_over_pages_and_steps(
    device: Device, ops: Recurrence, dtype: DType, kernel: int, silu: bool
) -> None:
    """70 channels are more than a program has, and 4 numbers more than a page."""
    weight = randoms(device, "float32", 70, kernel, seed=1)
    bias = randoms(device, "float32", 70, seed=2) if silu else None
    texts = [randoms(device, dtype, length, 75, seed=length)[:, 5:] for length in LENGTHS]
    found = []
    for cut in CUTS:
        outs = []
        with PagedKV(device, StateLayout(dtype, LAYERS, 70, PAGE), 20) as pages:
            tables = [pages.take(length) for length in LENGTHS]
            for contexts, counts in steps(cut):
                x = rows(texts, contexts, counts)
                out = torch.full_like(x, torch.nan)
                plan = ops.plan(pages.states(tables, contexts, counts))
                activation = "silu" if silu else "none"
                ops.convolve(plan, LAYER, x, weight, bias, activation, out)  # type: ignore[arg-type]
                outs.append((out, counts))
        found.append(of_each(outs))
    for at, text in enumerate(texts):
        want = reference.convolved(text, weight, bias, "silu" if silu else "none")
        assert not mismatch(found[0][at], want, 4 * TOLERANCE[dtype])
        assert all(torch.equal(found[0][at], other[at]) for other in found)


@pytest.mark.parametrize("by_number", [False, True])
def test_the_gated_delta_rule_has_the_same_bits_however_a_text_is_cut(
    device: Device, ops: Recurrence, by_number: bool
) -> None:
    """With a decay of a head, 37 columns, which are more than a program has; and with a decay of
    each of a key's numbers, and keys in turns."""
    key_heads, heads, value = (2, 4, 3) if by_number else (1, 2, 37)
    decays, strength = (5, 2.0) if by_number else (1, 1.0)
    keys, values, gone = 5 * key_heads, heads * value, heads * decays
    log = randoms(device, "float32", heads, seed=1)
    bias = randoms(device, "float32", gone, seed=2)
    rule = DeltaRule(key_heads, heads, 5, value, log, bias, decays, strength, tiled=by_number)
    check(
        device,
        ops,
        "float32",
        rule,
        made=2 * keys + values,
        gates=heads + gone,
        values=values,
        row=keys + values + gone,
        state=5 * values,
    )


@pytest.mark.parametrize("rate", [0.0, 6.0])
def test_state_spaces_have_the_same_bits_however_a_text_is_cut(
    device: Device, ops: Recurrence, rate: float
) -> None:
    """Also where what some tokens leave is nearly nothing, and others nearly all."""
    log, bias, skip = (randoms(device, "float32", 4, seed=seed) for seed in (1, 2, 3))
    rule = StateSpaceRule(2, 4, 5, 7, log + rate, bias - rate, skip, (0.0, 0.9))
    check(
        device,
        ops,
        "bfloat16" if rate else "float32",
        rule,
        made=4 * 7 + 2 * 10,
        gates=4,
        values=4 * 7,
        row=10 + 4 * 7 + 4,
        state=4 * 5 * 7,
    )


def check(
    device: Device,
    ops: Recurrence,
    dtype: DType,
    rule: DeltaRule | StateSpaceRule,
    made: int,
    gates: int,
    values: int,
    row: int,
    state: int,
) -> None:
    """What tokens are given, and the states at the ends of pages.

    Args:
        made, gates, values: what is made of a token, says what is kept of it, and is given to it.
        row, state: what is kept of a token, and at a page's end.
    """
    of_delta = isinstance(rule, DeltaRule)
    call: Callable[..., None] = ops.delta if of_delta else ops.scan
    define: Callable[..., tuple[Tensor, Tensor]] = reference.delta if of_delta else reference.scan
    inputs = [randoms(device, dtype, n, made, seed=n) for n in LENGTHS]
    gated = [randoms(device, dtype, n, gates, seed=n + 100) for n in LENGTHS]
    ends = StateLayout("float32", LAYERS, state, PAGE, of_pages=True)
    kinds = (StateLayout("float32", LAYERS, row, PAGE), ends)
    found, left = [], []
    for cut in CUTS:
        outs = []
        with ExitStack() as stack:
            both = [stack.enter_context(PagedKV(device, kind, 20)) for kind in kinds]
            tables = [[each.take(length) for length in LENGTHS] for each in both]
            for contexts, counts in steps(cut):
                x, own = (rows(texts, contexts, counts) for texts in (inputs, gated))
                out = torch.full((len(x), values), torch.nan, dtype=x.dtype)
                plans = (
                    ops.plan(each.states(table, contexts, counts))
                    for each, table in zip(both, tables, strict=True)
                )
                call(*plans, LAYER, x, own, rule, out)
                outs.append((out, counts))
            starts = [page * ends.page_stride + LAYER * state for page in tables[1][1][:2]]
            left.append([both[1].tensor[start : start + state].clone() for start in starts])
        found.append(of_each(outs))
    for at, pair in enumerate(zip(inputs, gated, strict=True)):
        want, states = define(*pair, rule)
        assert not mismatch(found[0][at], want, 4 * TOLERANCE[dtype])
        assert all(torch.equal(found[0][at], other[at]) for other in found)
    for page in range(2):
        want = states[PAGE * page + PAGE - 1].flatten()
        assert not mismatch(left[0][page], want, 4 * TOLERANCE[dtype])
        assert all(torch.equal(left[0][page], other[page]) for other in left)


def test_a_step_without_tokens_is_no_launch(device: Device, ops: Recurrence) -> None:
    with PagedKV(device, StateLayout("float32", 1, 8, PAGE), 2) as pages:
        table = pages.take(PAGE)
        plan = ops.plan(pages.states([table], [PAGE], [0]))
        nothing = torch.empty(0, 8)
        ops.convolve(plan, 0, nothing, torch.empty(8, 2), None, "none", nothing.clone())
