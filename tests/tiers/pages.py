"""Pages whose bytes follow from their names, so that any wrong byte is seen; files that fail."""

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from kvrt.kv.tiers.blockfile import BLOCK, BlockFile, Bytes
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.names import StoredName, chain, fingerprint, root_key
from kvrt.kv.tiers.pagefile import PageFile

PAGE_SIZE = 4
FINGERPRINT = fingerprint(b"weights", "float32", "2x2x4x8")
ROOT = root_key(FINGERPRINT)
PAGE_BYTES = 2 * BLOCK
FORM = PageFormat(FINGERPRINT, (PAGE_BYTES,), PAGE_SIZE)
ODD = PageFormat(FINGERPRINT, (5000,), PAGE_SIZE)  # no multiple of a block
SEVERAL = PageFormat(FINGERPRINT, (PAGE_BYTES, 5 * BLOCK, 1000), PAGE_SIZE)


def names(count: int, seed: int = 0, groups: int = 1) -> list[StoredName]:
    """The pages of one sequence, those of all groups of layers one after the other."""
    tokens = np.random.default_rng(seed).integers(0, 50_000, count * PAGE_SIZE).tolist()
    return [
        StoredName(*n) for n in itertools.product(chain(ROOT, tokens, PAGE_SIZE), range(groups))
    ]


@cache
def body(name: StoredName, form: PageFormat = FORM) -> Bytes:
    """The page that has this name; most of it is zeros, so that zstd has something to do."""
    page, group = name
    seed = [*page.key, *page.parent, *(token & 0xFFFFFFFF for token in page.tokens), group]
    data = np.zeros(form.sizes[group], np.uint8)
    some = form.sizes[group] // 4
    data[-some:] = np.random.default_rng(seed).integers(0, 256, some, np.uint8)
    data.flags.writeable = False
    return data


def blank(form: PageFormat = FORM, group: int = 0) -> Bytes:
    return np.full(form.sizes[group], 0xDE, np.uint8)


def read(file: PageFile, name: StoredName) -> bool:
    """Whether the page is there; if it is, it has the right bytes."""
    into = blank(file.form, name.group)
    found = file.read(name, into)
    if found:
        assert (into == body(name, file.form)).all(), "a wrong page"
    return found


@contextmanager
def opened(folder: Path, form: PageFormat = FORM, **options: object) -> Iterator[PageFile]:
    file = PageFile.open(folder, form, **options)  # type: ignore[arg-type]
    try:
        yield file
        file.check_integrity()
    finally:
        file.close()


def cached(path: Path, *, writable: bool, direct: bool) -> BlockFile:
    """Opens a file whose bytes stay in the page cache: quicker, where the disk is not the point."""
    return BlockFile(path, writable=writable, direct=False)


class Faults:
    """Opens files that fail at the n-th call, once or from then on.

    Args:
        at: which call fails, counted over all files from 0; None: none.
        error: an errno.
        torn: a write that fails has written half of it.
        lasting: all calls after it fail, too.
    """

    def __init__(
        self,
        at: int | None = None,
        error: int = errno.EIO,
        *,
        torn: bool = False,
        lasting: bool = False,
    ) -> None:
        self.at, self.error, self.torn, self.lasting = at, error, torn, lasting
        self.calls = 0
        self.failed = 0

    def __call__(self, path: Path, *, writable: bool, direct: bool) -> BlockFile:
        return FaultyFile(path, writable=writable, direct=direct, faults=self)

    def strike(self) -> bool:
        call, self.calls = self.calls, self.calls + 1
        hit = self.at is not None and (call == self.at or (self.lasting and call > self.at))
        self.failed += hit
        return hit


class FaultyFile(BlockFile):
    def __init__(self, path: Path, *, writable: bool, direct: bool, faults: Faults) -> None:
        self._faults = faults
        super().__init__(path, writable=writable, direct=direct)

    def _or_fail(self, before: Callable[[], object] = lambda: None) -> None:
        if self._faults.strike():
            before()
            raise OSError(self._faults.error, os.strerror(self._faults.error))

    def read(self, into: Bytes, at: int) -> None:
        self._or_fail()
        super().read(into, at)

    def write(self, data: Bytes, at: int) -> None:
        write = super().write
        self._or_fail(lambda: write(data[: len(data) // 2 * self._faults.torn], at))
        write(data, at)

    def allocate(self, start: int, end: int) -> None:
        self._or_fail()
        super().allocate(start, end)

    def truncate(self, size: int) -> None:
        self._or_fail()
        super().truncate(size)

    def sync(self) -> None:
        self._or_fail()
        super().sync()
