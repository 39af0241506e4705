"""Ops are carried out on a device, all of them or none."""

from collections.abc import Iterator, Sequence

import pytest
import torch

from kvrt.errors import DeviceError, IntegrityError, OutOfMemory
from kvrt.executor.apply import Attempt
from kvrt.executor.backing import Backing
from kvrt.executor.interface import Applied, Failed
from kvrt.executor.pool import ChunkPool
from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.ops import Copy, Map, Move, Op, Scrub, Unmap
from kvrt.registry import open_device
from kvrt.spi import Device, KVFormat, KVLayout
from kvrt.testing.chaos import Chaos

from .shapes import CHUNK, SIZE, layout, shape

NO_MEMORY = OutOfMemory("no more")
BROKEN = DeviceError("broken", call="map", code="EIO")


def apply(
    ops: Sequence[Op], backings: Sequence[Backing], *, poison: bool = False
) -> Applied | Failed:
    attempt = Attempt.of(ops, backings, poison=poison)
    return attempt if isinstance(attempt, Failed) else attempt.settle()


def opened_on(device: Device) -> Backing:
    return Backing(device, shape("one chunk"), layout("one chunk"), ChunkPool(device))


def opened(device: Device) -> Backing:
    """Chunks 0 and 1 are mapped; page p of 64 KiB is chunk p, and holds p + 1 in every byte."""
    backing = opened_on(device)
    for index in range(2):
        backing.map(index)
        backing.page(index).fill_(index + 1)
    return backing


def give_back(backing: Backing) -> None:
    backing.release()
    backing.pool.drain()


@pytest.fixture
def backing(null_device: Device) -> Iterator[Backing]:
    backing = opened(null_device)
    yield backing
    give_back(backing)


def content(backing: Backing) -> dict[int, int]:
    """The byte that fills each mapped page."""
    found = {}
    for index in sorted(backing.mapped):
        values = backing.page(index).unique()
        assert len(values) == 1, f"page {index} is torn: {values}"
        found[index] = int(values)
    return found


def test_ops_are_carried_out_in_order_and_counted(backing: Backing) -> None:
    ops = (Map(2), Copy(0, 2), Unmap(1), Map(3), Copy(2, 3), Scrub(0))
    assert apply(ops, [backing]) == Applied(maps=2, unmaps=1, copies=2)
    assert content(backing) == {0: 255, 2: 1, 3: 1}
    assert backing.page(0).view(torch.float32).isnan().all()


@pytest.mark.parametrize("format", ["bfloat16", "int8", "int4"])
def test_a_token_moves_with_all_that_belongs_to_it_and_nothing_else(
    format: KVFormat, null_device: Device
) -> None:
    """Every byte of a page that can be told to be a slot's: all layers and heads, and scales."""
    layout = KVLayout.packed(format, layers=8, kv_heads=2, head_dim=40, page_size=SIZE)
    geometry = Geometry(layout.page_bytes, SIZE, CHUNK, pages=64)
    backing = Backing(null_device, geometry, layout, ChunkPool(null_device))
    for index in range(len(geometry.chunks_of(0)) + len(geometry.chunks_of(1))):
        backing.map(index)
    for page in (0, 1):
        backing.page(page).fill_(page + 1)
    apply((Move(1, 3, 0, 2),), [backing])
    for slot in range(geometry.page_size):
        for piece in backing.token(0, slot):
            assert (piece.view(torch.uint8) == (2 if slot == 2 else 1)).all()
    moved = int((backing.page(0) == 2).sum())
    blocks = 2 * layout.layers * layout.kv_heads
    keys, kept = layout.keys, layout.quantization
    scales = 0 if kept is None else keys.groups * kept.scale_bytes
    assert moved == blocks * (keys.slot_stride * layout.item_bytes + scales)
    assert (backing.page(1) == 2).all()
    give_back(backing)


def test_a_moved_token_is_moved_back_if_an_op_after_it_fails(backing: Backing) -> None:
    """The chunk it comes from goes, so it must move before all has succeeded."""
    before = backing.page(0).clone()
    ops: tuple[Op, ...] = (Move(1, 3, 0, 2), Unmap(1), Map(1), Map(1))
    with pytest.raises(IntegrityError, match="mapped already"):
        apply(ops, [backing])
    assert torch.equal(backing.page(0), before)


def test_a_mapped_chunk_is_scrubbed_if_poison_is_on(backing: Backing) -> None:
    assert apply((Unmap(1), Map(2)), [backing], poison=True) == Applied(1, 1, 0)
    assert content(backing) == {0: 1, 2: 255}


def test_an_unmapped_chunk_is_recycled(backing: Backing, null_device: Device) -> None:
    apply((Unmap(1), Map(2), Unmap(2), Map(3)), [backing])
    assert null_device.memory.info().chunks == 2 * backing.geometry.chunk_bytes
    assert len(backing.pool) == 0


def test_a_copy_reads_a_page_before_its_chunk_goes(backing: Backing) -> None:
    assert apply((Copy(1, 0), Unmap(1), Map(5), Copy(0, 5)), [backing]) == Applied(1, 1, 2)
    assert content(backing) == {0: 2, 5: 2}


OPS: tuple[Op, ...] = (
    Map(2), Copy(0, 2), Unmap(1), Map(3), Map(4), Copy(2, 0), Unmap(2), Map(5), Scrub(3),
)  # fmt: skip


@pytest.mark.promise("P3")
@pytest.mark.parametrize("poison", [False, True])
@pytest.mark.parametrize("error", [NO_MEMORY, BROKEN], ids=["no memory", "broken"])
@pytest.mark.parametrize(
    ("call", "number"),
    [("memory.create", 1), ("memory.create", 2), ("memory.map", 1), ("memory.map", 2),
     ("memory.map", 3), ("memory.map", 4), ("memory.unmap", 1), ("memory.unmap", 2),
     ("copier.within", 1), ("fence", 1)],
)  # fmt: skip
def test_whatever_fails_everything_is_as_it_was(
    null_device: Device, call: str, number: int, error: Exception, poison: bool
) -> None:
    prepared = 2 if call in ("memory.create", "memory.map") else 0
    chaos = Chaos(null_device, fail={(call, prepared + number): error})
    backing = opened(chaos)
    if isinstance(error, OutOfMemory):
        assert apply(OPS, [backing], poison=poison) == Failed(error)
    else:
        with pytest.raises(DeviceError) as caught:
            apply(OPS, [backing], poison=poison)
        assert caught.value is error
    assert content(backing) == {0: 1, 1: 2}
    held = (len(backing.pool) + len(backing.mapped)) * backing.geometry.chunk_bytes
    assert null_device.memory.info().chunks == held, "a chunk was lost"
    give_back(backing)
    assert null_device.memory.info().chunks == 0


def test_ops_of_several_groups_meet_each_its_own(backing: Backing, null_device: Device) -> None:
    other = Backing(null_device, shape("one chunk"), layout("one chunk"), backing.pool)
    ops = (Map(0, 1), Scrub(0, 1), Unmap(1, 0), Map(4, 1), Copy(0, 4, 1), Map(2, 0), Copy(0, 2, 0))
    assert apply(ops, [backing, other]) == Applied(maps=3, unmaps=1, copies=2)
    assert (content(backing), content(other)) == ({0: 1, 2: 1}, {0: 255, 4: 255})
    other.release()


@pytest.mark.parametrize("failing", range(1, 5))
def test_ops_of_several_groups_are_undone_each_in_its_own(
    null_device: Device, failing: int
) -> None:
    """The groups trade chunks: what one gives up, the other maps."""
    chaos = Chaos(null_device, fail={("memory.map", 3 + failing): NO_MEMORY})
    first = opened(chaos)
    second = Backing(chaos, shape("one chunk"), layout("one chunk"), first.pool)
    second.map(0)
    second.page(0).fill_(7)
    ops = (Unmap(1, 0), Map(1, 1), Copy(0, 1, 1), Map(2, 0), Unmap(0, 1), Map(5, 0), Map(6, 1))
    assert apply(ops, [first, second], poison=True) == Failed(NO_MEMORY)
    assert (content(first), content(second)) == ({0: 1, 1: 2}, {0: 7})
    first.release()
    give_back(second)
    assert null_device.memory.info().chunks == 0


@pytest.mark.promise("P3")
@pytest.mark.parametrize("failing", range(1, 4))
@pytest.mark.parametrize("poison", [False, True])
def test_what_one_worker_did_is_undone_if_another_cannot(
    null_device: Device, failing: int, poison: bool
) -> None:
    """Two workers are given the same ops; each holds its undo until both have said yes."""
    there = open_device("null")
    chaos = Chaos(there, fail={("memory.map", 2 + failing): NO_MEMORY})
    here, other = opened(null_device), opened(chaos)
    ops: tuple[Op, ...] = (Map(2), Copy(1, 0), Map(3), Unmap(3), Copy(0, 2), Scrub(1), Map(4))

    def attempt(backing: Backing) -> Attempt | Failed:
        return Attempt.of(ops, [backing], poison=poison)

    first = attempt(here)
    assert isinstance(first, Attempt)
    assert attempt(other) == Failed(NO_MEMORY)
    first.undo()
    assert content(here) == content(other) == {0: 1, 1: 2}
    both = [attempt(here), attempt(other)]
    assert [each.settle() for each in both if isinstance(each, Attempt)] == [Applied(3, 1, 2)] * 2
    for backing in (here, other):
        filled = content(backing)
        assert (filled[0], filled[1], filled[2]) == (2, 255, 2)
        give_back(backing)
    there.close()


def test_an_op_that_makes_no_sense_is_refused_before_the_device_sees_it(backing: Backing) -> None:
    with pytest.raises(IntegrityError, match="chunk 1 is mapped already"):
        apply((Map(2), Map(1)), [backing])
    with pytest.raises(IntegrityError, match="chunk 9 is not mapped"):
        apply((Map(2), Unmap(9)), [backing])
    assert content(backing) == {0: 1, 1: 2}


def test_the_span_is_given_back_if_it_cannot_be_a_tensor(null_device: Device) -> None:
    chaos = Chaos(null_device, fail={("memory.tensor", 1): BROKEN})
    with pytest.raises(DeviceError):
        Backing(chaos, shape(), layout(), ChunkPool(chaos))
    assert chaos.calls["memory.release"] == 1


def test_release_goes_on_where_it_failed(null_device: Device) -> None:
    chaos = Chaos(null_device, fail={("memory.unmap", 2): BROKEN, ("memory.destroy", 2): BROKEN})
    backing = opened_on(chaos)
    for index in range(3):
        backing.map(index)
    for _ in range(2):
        with pytest.raises(DeviceError):
            give_back(backing)
    give_back(backing)
    give_back(backing)
    assert null_device.memory.info().chunks == 0


def test_the_pool_creates_ahead_and_gives_back(null_device: Device) -> None:
    backing = opened_on(null_device)
    backing.pool.fill(3)
    assert len(backing.pool) == 3
    assert null_device.memory.info().chunks == 3 * backing.geometry.chunk_bytes
    backing.map(0)
    assert (len(backing.pool), len(backing.mapped)) == (2, 1)
    backing.pool.drain(1)
    backing.pool.fill(1)
    assert len(backing.pool) + len(backing.mapped) == 2
    give_back(backing)
    assert null_device.memory.info().chunks == 0
