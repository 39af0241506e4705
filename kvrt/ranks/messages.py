"""What rank 0 sends the others before each step: ops, and the step itself, as values.

A step is arrays of int32, and those of pages are by far the largest: a row for each sequence. Most
of a row is what it was in the step before, so only numbers that have changed are sent, and each
rank keeps what it had. Numbers are of the sender's byte order, which all ranks share.
"""

import hashlib
import json
import struct
from collections.abc import Collection, Sequence

import numpy as np

from kvrt.executor.interface import Ints, Step
from kvrt.kv.pages.ops import Copy, Map, Move, Op, Scrub, Unmap

KINDS: tuple[type[Op], ...] = (Map, Unmap, Copy, Move, Scrub)
FIELDS = [tuple(kind.__dataclass_fields__) for kind in KINDS]
WIDEST = max(map(len, FIELDS))

ABSENT = -1
"""In place of the length of an array: there is none."""


def ops_to_bytes(ops: Sequence[Op]) -> bytes:
    """int32 rows: which of `KINDS`, then its fields."""
    rows = np.zeros((len(ops), 1 + WIDEST), np.int32)
    for row, op in zip(rows, ops, strict=True):
        kind = KINDS.index(type(op))
        row[0] = kind
        row[1 : 1 + len(FIELDS[kind])] = [getattr(op, name) for name in FIELDS[kind]]
    return rows.tobytes()


def ops_from_bytes(body: bytes) -> list[Op]:
    rows = np.frombuffer(body, np.int32).reshape(-1, 1 + WIDEST).tolist()
    return [KINDS[kind](*fields[: len(FIELDS[kind])]) for kind, *fields in rows]


class StepWriter:
    """Writes steps for those that have had all steps before."""

    def __init__(self) -> None:
        self.pages: tuple[Ints, ...] = ()
        """Of the last step, as all ranks have them."""

    def write(self, step: Step) -> bytes:
        """The body of a message."""
        before = self.pages or tuple(np.zeros((0, 0), np.int32) for _ in step.pages)
        parts = [struct.pack("<B", len(step.pages))]
        parts += [_changes(old, new) for old, new in zip(before, step.pages, strict=True)]
        self.pages = tuple(pages.copy() for pages in step.pages)
        for array in (
            step.query_start, step.context_len, step.parents, step.tokens, step.wanted,
            step.adapters,
        ):  # fmt: skip
            parts.append(_flat(array))
        return b"".join(parts)


class StepReader:
    """Reads what a `StepWriter` has written, message after message."""

    def __init__(self) -> None:
        self.pages: tuple[Ints, ...] = ()
        """Of the last step."""

    def read(self, body: bytes) -> Step:
        (count,), at = struct.unpack_from("<B", body), 1
        before = self.pages or tuple(np.zeros((0, 0), np.int32) for _ in range(count))
        pages: list[Ints] = []
        for old in before:
            new, at = _changed(old, body, at)
            pages.append(new)
        self.pages = tuple(pages)
        arrays: list[Ints | None] = []
        while at < len(body):
            array, at = _flat_from(body, at)
            arrays.append(array)
        query_start, context_len, parents, tokens, wanted, adapters = arrays
        assert query_start is not None
        assert context_len is not None
        assert tokens is not None
        assert wanted is not None
        # A pass may not keep them: they are changed in place, as `Step.pages` may be.
        return Step(self.pages, query_start, context_len, parents, tokens, wanted, adapters)


def _changes(old: Ints, new: Ints) -> bytes:
    """The shape, and which of the numbers are others than in the same place before."""
    grown = _resized(old, *new.shape)
    places = np.flatnonzero(grown != new).astype(np.int32)
    values = np.ascontiguousarray(new).reshape(-1)[places]
    shape = np.array([*new.shape, len(places)], np.int32)
    return shape.tobytes() + places.tobytes() + values.astype(np.int32).tobytes()


def _changed(old: Ints, body: bytes, at: int) -> tuple[Ints, int]:
    rows, columns, count = np.frombuffer(body, np.int32, 3, at).tolist()
    at += 12
    places = np.frombuffer(body, np.int32, count, at)
    values = np.frombuffer(body, np.int32, count, at + 4 * count)
    new = np.ascontiguousarray(_resized(old, rows, columns))
    new.reshape(-1)[places] = values
    return new, at + 8 * count


def _resized(old: Ints, rows: int, columns: int) -> Ints:
    """A copy with so many rows and columns: 0 where there were none."""
    new = np.zeros((rows, columns), np.int32)
    kept = old[:rows, :columns]
    new[: kept.shape[0], : kept.shape[1]] = kept
    return new


def _flat(array: Ints | None) -> bytes:
    if array is None:
        return struct.pack("<i", ABSENT)
    return struct.pack("<i", len(array)) + np.ascontiguousarray(array, np.int32).tobytes()


def _flat_from(body: bytes, at: int) -> tuple[Ints | None, int]:
    (length,) = struct.unpack_from("<i", body, at)
    at += 4
    if length == ABSENT:
        return None, at
    return np.frombuffer(body, np.int32, length, at).copy(), at + 4 * length


def digest_of(mapped: Sequence[Collection[int]], pages: Sequence[Ints]) -> str:
    """SHA-256 over what ranks must agree on: which chunks of each group are mapped, and the last
    step's rows of the page table."""
    digest = hashlib.sha256(json.dumps([sorted(chunks) for chunks in mapped]).encode())
    for array in pages:
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
