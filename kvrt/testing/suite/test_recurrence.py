"""The optional recurrent layers against what defines them."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from kvrt.spi import (
    Capability,
    DeltaRule,
    Device,
    DType,
    Recurrence,
    StateActivation,
    StateLayout,
    StateSpaceRule,
)
from kvrt.testing import recurrence as reference
from kvrt.testing.paged import TOLERANCE, PagedKV, mismatch, randoms

LENGTHS = (1, 5, 16, 33, 50)
CHUNKS = (64, 1, 23)
LAYERS, LAYER = 3, 1


@pytest.fixture
def recurrence(device: Device) -> Recurrence:
    found = device.extension(Recurrence)  # type: ignore[type-abstract]
    if found is None:
        pytest.skip("the device does not offer Recurrence")
    return found


def steps(chunk: int) -> Iterator[tuple[list[int], list[int]]]:
    """How far each sequence is after a step, and how many tokens it brings: `chunk` at most."""
    for end in range(chunk, max(LENGTHS) + chunk, chunk):
        contexts = [min(length, end) for length in LENGTHS]
        before = [min(length, end - chunk) for length in LENGTHS]
        yield contexts, [now - then for now, then in zip(contexts, before, strict=True)]


def of_step(texts: Sequence[Tensor], contexts: Sequence[int], counts: Sequence[int]) -> Tensor:
    """The rows that the sequences bring, one after the other."""
    parts = zip(texts, contexts, counts, strict=True)
    return torch.cat([text[end - count : end] for text, end, count in parts])


def told_apart(outs: Sequence[tuple[Tensor, list[int]]]) -> list[Tensor]:
    """What each sequence was given, of what the steps were."""
    pieces = [out.cpu().split_with_sizes(counts) for out, counts in outs]
    return [torch.cat(own) for own in zip(*pieces, strict=True)]


@pytest.mark.parametrize("kernel", [2, 4, 19])
@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("width", [5, 200])
def test_convolution(
    device: Device,
    recurrence: Recurrence,
    compute: DType,
    kernel: int,
    activation: StateActivation,
    width: int,
) -> None:
    weight = randoms(device, "float32", width, kernel, seed=1)
    bias = randoms(device, "float32", width, seed=2) if kernel % 2 else None
    texts = [randoms(device, compute, n, width, seed=n) for n in LENGTHS]
    layout = StateLayout(compute, LAYERS, width, 16)
    found = []
    for chunk in CHUNKS:
        outs = []
        with PagedKV(device, layout, 20) as pages:
            tables = [pages.take(length) for length in LENGTHS]
            for contexts, counts in steps(chunk):
                x = of_step(texts, contexts, counts)
                out = torch.full_like(x, torch.nan)
                plan = recurrence.plan(pages.states(tables, contexts, counts))
                recurrence.convolve(plan, LAYER, x, weight, bias, activation, out)
                device.synchronize()
                outs.append((out, counts))
        found.append(told_apart(outs))
    for at, text in enumerate(texts):
        want = reference.convolved(text, weight, bias, activation)
        assert not mismatch(found[0][at], want, 4 * TOLERANCE[compute])
        if Capability.BATCH_INVARIANT in device.info.capabilities:
            assert all(torch.equal(found[0][at], other[at]) for other in found)


Rule = DeltaRule | StateSpaceRule


def check_states(
    device: Device,
    recurrence: Recurrence,
    compute: DType,
    rule: Rule,
    made: int,
    gates: int,
    values: int,
    row: int,
    state: int,
) -> None:
    """In chunks of any size, a rule gives what it is defined to give, and leaves its states.

    Args:
        made, gates, values: what is made of a token, says what is kept of it, and is given to it.
        row, state: what is kept of a token, and at a page's end.
    """
    of_delta = isinstance(rule, DeltaRule)
    call: Callable[..., None] = recurrence.delta if of_delta else recurrence.scan
    define: Callable[..., tuple[Tensor, Tensor]] = reference.delta if of_delta else reference.scan
    inputs = [randoms(device, compute, n, made, seed=n) for n in LENGTHS]
    gated = [randoms(device, compute, n, gates, seed=n + 100) for n in LENGTHS]
    rows = StateLayout("float32", LAYERS, row, 16)
    ends = StateLayout("float32", LAYERS, state, 16, of_pages=True)
    wanted = [define(*pair, rule) for pair in zip(inputs, gated, strict=True)]
    found = []
    for chunk in CHUNKS:
        outs = []
        with ExitStack() as stack:
            tokens, borders = (stack.enter_context(PagedKV(device, of, 20)) for of in (rows, ends))
            tables = [[each.take(length) for length in LENGTHS] for each in (tokens, borders)]
            for contexts, counts in steps(chunk):
                x, own = (of_step(texts, contexts, counts) for texts in (inputs, gated))
                out = torch.full_like(x[:, :values], torch.nan)
                first, then = (
                    recurrence.plan(each.states(table, contexts, counts))
                    for each, table in zip((tokens, borders), tables, strict=True)
                )
                call(first, then, LAYER, x, own, rule, out)
                device.synchronize()
                outs.append((out, counts))
            for length, table, (_, states) in zip(LENGTHS, tables[1], wanted, strict=True):
                for at, page in itertools.islice(enumerate(table), length // 16):
                    start = page * ends.page_stride + LAYER * ends.layer_stride
                    kept = borders.tensor[start : start + ends.width].cpu()
                    want = states[16 * at + 15].flatten()
                    assert not mismatch(kept, want, 4 * TOLERANCE[compute])
        found.append(told_apart(outs))
    for at, (want, _) in enumerate(wanted):
        assert not mismatch(found[0][at], want, 4 * TOLERANCE[compute])
        if Capability.BATCH_INVARIANT in device.info.capabilities:
            assert all(torch.equal(found[0][at], other[at]) for other in found)


@pytest.mark.parametrize(("by_number", "tiled"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("key_heads", "value_heads", "key_dim", "value_dim"),
    [(2, 4, 16, 24), (1, 3, 5, 7), (2, 2, 128, 128)],
)
def test_the_gated_delta_rule(
    device: Device,
    recurrence: Recurrence,
    compute: DType,
    key_heads: int,
    value_heads: int,
    key_dim: int,
    value_dim: int,
    by_number: bool,
    tiled: bool,
) -> None:
    """With a decay of each head, and of each of a key's numbers; and with keys in turns."""
    decays = key_dim if by_number else 1
    log = randoms(device, "float32", value_heads, seed=1)
    bias = randoms(device, "float32", value_heads * decays, seed=2)
    strength = 2.0 if by_number else 1.0
    rule = DeltaRule(key_heads, value_heads, key_dim, value_dim, log, bias, decays, strength, tiled)
    keys, values, gone = key_heads * key_dim, value_heads * value_dim, value_heads * decays
    check_states(
        device,
        recurrence,
        compute,
        rule,
        made=2 * keys + values,
        gates=value_heads + gone,
        values=values,
        row=keys + values + gone,
        state=values * key_dim,
    )


@pytest.mark.parametrize("rate", [0.0, 5.0])
@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.5, 0.9)])
@pytest.mark.parametrize(
    ("groups", "heads", "state_dim", "head_dim"),
    [(2, 4, 16, 24), (1, 3, 5, 7), (1, 4, 128, 64)],
)
def test_state_spaces(
    device: Device,
    recurrence: Recurrence,
    compute: DType,
    groups: int,
    heads: int,
    state_dim: int,
    head_dim: int,
    limits: tuple[float, float],
    rate: float,
) -> None:
    """Also where what some tokens leave is nearly nothing, and others nearly all."""
    log, bias, skip = (randoms(device, "float32", heads, seed=seed) for seed in (1, 2, 3))
    rule = StateSpaceRule(groups, heads, state_dim, head_dim, log + rate, bias - rate, skip, limits)
    keys, values = groups * state_dim, heads * head_dim
    check_states(
        device,
        recurrence,
        compute,
        rule,
        made=values + 2 * keys,
        gates=heads,
        values=values,
        row=keys + values + heads,
        state=values * state_dim,
    )
