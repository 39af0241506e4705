"""The batch's page table is written where it changed, and is always right."""

import random

import numpy as np

from kvrt.kv.pages.group import Group
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.pages.rows import PageRows
from kvrt.kv.pages.table import PageTable

from .shapes import shape


def right(rows: PageRows, table: PageTable, seqs: list[int]) -> bool:
    array = rows.select(table, seqs)
    assert array.dtype == np.int32
    assert array.flags.c_contiguous
    assert len(array) == len(seqs)
    return all(
        tuple(array[i, : len(table.pages(seq))]) == table.pages(seq) for i, seq in enumerate(seqs)
    )


def test_rows_follow_the_table_through_any_change() -> None:
    rng = random.Random(5)
    geometry = shape("many in a chunk", chunks=400)
    table = PageTable.empty([Group(geometry)], geometry.chunks).table
    rows = PageRows()
    for number in range(600):
        seqs = sorted(table.sequences)
        choice = rng.random()
        if len(seqs) < 3 or choice < 0.1:
            change = table.grow({number: rng.randint(0, 400)})
        elif choice < 0.7:
            change = table.grow({seq: rng.randint(0, 5) for seq in seqs})
        elif choice < 0.8:
            change = table.fork(rng.choice(seqs), number)
        elif choice < 0.9:
            seq = rng.choice(seqs)
            change = table.truncate(seq, rng.randint(0, table.length(seq)))
        else:
            seq = rng.choice(seqs)
            change = table.free(seq)
            if rng.random() < 0.5:  # preempted and admitted again: same name, other pages
                change = change.table.grow({seq: rng.randint(1, 300)})
        if isinstance(change, Shortage):
            change = table.free(seqs[0])
        table = change.table
        batch = sorted(table.sequences)
        if rng.random() < 0.3:
            rng.shuffle(batch)
            batch = batch[: rng.randint(0, len(batch))]
        assert right(rows, table, batch)


def test_an_empty_batch_is_an_empty_array() -> None:
    table = PageTable.empty([Group(shape())], 4).table
    assert PageRows().select(table, []).shape[0] == 0


def test_a_decode_step_writes_into_the_array_it_has() -> None:
    table = PageTable.empty([Group(shape("many in a chunk"))], 24).table
    rows = PageRows()
    arrays = set()
    for _ in range(40):
        grown = table.grow({"a": 1, "b": 1})
        assert not isinstance(grown, Shortage)
        table = grown.table
        arrays.add(id(rows.select(table, ["a", "b"])))
    assert len(arrays) == 1
