"""Values of another width than keys, and values that are the beginning of the keys."""

from dataclasses import replace

import pytest
import torch

from kvrt.spi import AttentionBatch, Capability, Device, DType, KVFormat
from kvrt.testing import reference
from kvrt.testing.paged import Case, PagedKV, fill_past, mismatch, randoms, run_layers

WIDTHS = [(64, 32, False), (32, 64, False), (64, 48, True), (48, 48, True), (576, 512, True)]
"""Of a key and of a value, and whether the value is the beginning of the key; the last are those of
DeepSeek's latent attention."""


@pytest.fixture(params=WIDTHS, ids=str)
def wide(request: pytest.FixtureRequest, device: Device, case: Case) -> Case:
    if Capability.VALUE_WIDTHS not in device.info.capabilities:
        pytest.skip("the device does not declare VALUE_WIDTHS")
    head_dim, value_dim, shared = request.param
    sizes = device.info.head_dims
    if sizes and not {head_dim, value_dim} <= set(sizes):
        pytest.skip(f"the device does not declare heads of {head_dim} and {value_dim}")
    return replace(case, head_dim=head_dim, value_dim=value_dim, shared=shared)


def test_values_have_a_width_of_their_own(
    device: Device, wide: Case, compute: DType, kv: KVFormat
) -> None:
    case = replace(wide, compute=compute, kv=kv)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        fill_past(batch)
        got, want = run_layers(device, batch, case)
        # The larger a head, the coarser the whole numbers that q may be taken as.
        assert not mismatch(got, want, case.tolerance * max(1, case.head_dim / 64))


@pytest.mark.parametrize("queries", [(1,), (40,)])
def test_long_contexts_of_such_values(device: Device, wide: Case, queries: tuple[int, ...]) -> None:
    case = replace(wide, contexts=(1300,), queries=queries, layers=1, window=700, sinks=5)
    with PagedKV(device, case.layout, case.pages) as pages:
        batch = pages.batch([pages.take(1300)], case.contexts, case.queries)
        fill_past(batch)
        assert not mismatch(*run_layers(device, batch, case), case.tolerance)


def test_such_values_are_stored_in_their_own_places(
    device: Device, wide: Case, compute: DType, kv: KVFormat
) -> None:
    """Where they are the beginning of the keys, v is not looked at."""
    case = replace(wide, compute=compute, kv=kv)
    with PagedKV(device, case.layout, case.pages) as pages:
        tables = [pages.take(length) for length in case.contexts]
        batch = pages.batch(tables, case.contexts, case.queries)
        k, v = (
            randoms(device, compute, sum(case.queries), case.kv_heads, dim, seed=dim)
            for dim in (case.head_dim, case.layout.value_dim)
        )
        device.attention.append(device.attention.plan(batch), 1, k, v)
        device.synchronize()
        stored, untouched = kept(batch, 1), kept(batch, 0)
        reference.append(batch, 1, k, v)
        for got, want in zip(stored, kept(batch, 1), strict=True):
            assert torch.equal(got, want)
        assert all(numbers.isnan().all() for numbers in untouched), "another layer was written"


def kept(batch: AttentionBatch, layer: int) -> list[torch.Tensor]:
    """The new tokens' keys and values, of each sequence."""
    return [
        reference.read(batch, s, layer, kv, reference.new_slots(batch, s))
        for s in range(len(batch.context_len))
        for kv in (0, 1)
    ]
