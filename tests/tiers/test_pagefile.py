"""A page file equals a dictionary, over restarts, within its budget."""

import errno
import fcntl
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvrt.errors import ConfigError, IntegrityError, StoreError
from kvrt.kv.tiers import codec, space
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.codec import Codec
from kvrt.kv.tiers.files import DATA, INDEX
from kvrt.kv.tiers.format import PageFormat
from kvrt.kv.tiers.pagefile import PageFile

from .pages import (
    FINGERPRINT,
    FORM,
    ODD,
    PAGE_BYTES,
    PAGE_SIZE,
    SEVERAL,
    Faults,
    blank,
    body,
    names,
    opened,
    read,
)

NAMES = names(24)


class FileMachine(RuleBasedStateMachine):
    """The model is the list of names that must be there, the least recently used first.

    Compressed pages, and those of several groups of layers, may be evicted a little earlier, as
    they must find a gap of their size; of them it is only known that the oldest went.
    """

    @initialize(
        form=st.sampled_from([FORM, ODD, SEVERAL]),
        pages=st.integers(1, 9),
        compress=st.sampled_from([None, None, 1]),
        step=st.integers(1, 4),
    )
    def begin(self, form: PageFormat, pages: int, compress: int | None, step: int) -> None:
        space.STEP = step * form.page_stride
        self.folder = Path(tempfile.mkdtemp())
        self.form, self.compress = form, compress
        self.gaps = bool(compress) or len(form.sizes) > 1
        rng = random.Random(0)
        groups = range(len(form.sizes))
        self.names = [name._replace(group=rng.choice(groups)) for name in NAMES]
        self.there: list[int] = []
        self.written: list[int] = []  # in the order of writing
        self.resize(pages)
        self.open()

    def resize(self, pages: int) -> None:
        rows = 2 if self.compress else 1
        rows *= -(-self.form.page_stride // self.form.least_stride)
        self.pages = pages
        self.budget = 2 * BLOCK + pages * (self.form.page_stride + rows * self.form.record_bytes)

    def open(self) -> None:
        self.file = PageFile.open(
            self.folder, self.form, budget=self.budget, compress=self.compress
        )

    @rule(n=st.integers(0, len(NAMES) - 1))
    def write(self, n: int) -> None:
        assert self.file.write(self.names[n], body(self.names[n], self.form))
        if n in self.there:
            self.there.remove(n)
        else:
            self.written = [m for m in self.written if m != n] + [n]
        self.there.append(n)
        if self.gaps:
            kept = sum(self.names[m] in self.file for m in self.there)
            assert kept
            self.there = self.there[-kept:]
        if len(self.form.sizes) == 1:
            self.there = self.there[-self.pages * (2 if self.compress else 1) :]

    @rule(n=st.integers(0, len(NAMES) - 1))
    def read(self, n: int) -> None:
        assert read(self.file, self.names[n]) == (n in self.there)
        if n in self.there:
            self.there.remove(n)
            self.there.append(n)

    @rule(n=st.integers(0, len(NAMES) - 1))
    def remove(self, n: int) -> None:
        assert self.file.remove(self.names[n]) == (n in self.there)
        if n in self.there:
            self.there.remove(n)

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.open()
        self.there.sort(key=self.written.index)

    @rule(pages=st.integers(1, 9))
    def reopen_with_another_budget(self, pages: int) -> None:
        self.file.close()
        self.resize(pages)
        self.open()
        assert {self.names[n] for n in self.there} >= set(self.file.names())
        self.there = [n for n in self.written if self.names[n] in self.file]

    @precondition(lambda self: self.there)
    @rule()
    def read_by_another(self) -> None:
        """Who only reads sees what is there, and changes nothing."""
        with opened(self.folder, self.form, writable=False) as other:
            assert all(read(other, self.names[n]) for n in self.there)
            assert not other.write(self.names[0], body(self.names[0], self.form)) or 0 in self.there

    @invariant()
    def equal(self) -> None:
        self.file.check_integrity()
        assert self.file.names() == [self.names[n] for n in self.there]
        assert len(self.file) == len(self.there)
        assert self.file.used_bytes <= self.file.held_bytes <= self.budget
        on_disk = sum(os.stat(self.folder / name).st_size for name in (INDEX, DATA))
        assert on_disk == self.file.held_bytes
        assert not self.file.damaged

    def teardown(self) -> None:
        if hasattr(self, "file"):
            for n, name in enumerate(self.names):
                assert read(self.file, name) == (n in self.there)
            self.file.close()
            shutil.rmtree(self.folder)


def test_any_order_of_operations_equals_a_dictionary() -> None:
    run_state_machine_as_test(
        FileMachine, settings=settings(max_examples=60, stateful_step_count=30)
    )


def test_a_page_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    faults = Faults()
    with opened(tmp_path, open_file=faults) as file:
        for name in NAMES:
            file.write(name, body(name))
    with opened(tmp_path, open_file=faults) as file:
        before = faults.calls
        assert all(file.write(name, body(name)) for name in NAMES)
        assert faults.calls == before


def test_ten_thousand_records_are_read_in_a_fifth_of_a_second(tmp_path: Path) -> None:
    form = PageFormat(FINGERPRINT, (BLOCK,), PAGE_SIZE)
    page = blank(form)
    with opened(tmp_path, form) as file:
        for name in names(10_000):
            file.write(name, page)

    def seconds() -> float:
        start = time.process_time()
        file = PageFile.open(tmp_path, form)
        elapsed = time.process_time() - start
        assert len(file) == 10_000
        file.close()
        return elapsed

    assert min(seconds() for _ in range(20)) < 0.2


def test_a_compressed_page_takes_less_room(tmp_path: Path) -> None:
    sizes = {}
    for level in (None, 3):
        with opened(tmp_path / str(level), compress=level) as file:
            for name in NAMES:
                file.write(name, body(name))
            sizes[level] = file.used_bytes
        with opened(tmp_path / str(level)) as file:  # what is compressed says so itself
            assert all(read(file, name) for name in NAMES)
    assert sizes[3] < 0.7 * sizes[None]


def test_a_page_that_compression_would_make_larger_is_stored_as_it_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, PAGE_BYTES, np.uint8)
    with opened(tmp_path, compress=19) as file:
        assert file.write(NAMES[0], noise)
        into = blank()
        assert file.read(NAMES[0], into)
        assert (into == noise).all()
        assert file.used_bytes == PAGE_BYTES


def test_compression_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path, compress=1) as file:
        file.write(NAMES[0], body(NAMES[0]))
    monkeypatch.setattr(codec, "_zstandard", lambda: None)
    with pytest.raises(ConfigError, match="zstandard") as asked:
        PageFile.open(tmp_path / "new", FORM, compress=1)
    assert "kvrt[zstd]" in asked.value.fix
    with pytest.raises(StoreError, match="compressed pages") as found:
        PageFile.open(tmp_path, FORM)
    assert found.value.reason == "codec"
    with opened(tmp_path / "plain") as file:  # who does not compress does not need it
        assert file.write(NAMES[0], body(NAMES[0]))


def test_a_body_that_does_not_make_one_page_is_none() -> None:
    codec = Codec(1)
    _, whole = codec.compress(body(NAMES[0]))
    assert codec.decompress(whole, blank())
    for broken in (whole[:-1], whole[1:], codec.compress(np.zeros(100, np.uint8))[1]):
        assert not codec.decompress(broken, blank())
    assert not codec.decompress(codec.compress(np.zeros(9000, np.uint8))[1], blank())


@pytest.mark.parametrize("level", [23, -101])
def test_a_level_that_zstd_does_not_have_is_refused(tmp_path: Path, level: int) -> None:
    with pytest.raises(ConfigError, match=f"no level {level}"):
        PageFile.open(tmp_path, FORM, compress=level)


def test_a_budget_of_less_than_a_page_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="less than one page"):
        PageFile.open(tmp_path, FORM, budget=PAGE_BYTES)


@pytest.mark.parametrize("refusing", ["the flag", "the first read"])
def test_where_the_file_system_cannot_bypass_the_page_cache_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    set_flags, read_file = fcntl.fcntl, os.preadv

    def is_direct(file: int) -> bool:
        return bool(set_flags(file, fcntl.F_GETFL) & os.O_DIRECT)

    def fcntl_refusing(file: int, command: int, value: int = 0) -> int:
        if refusing == "the flag" and value & os.O_DIRECT:
            raise OSError(errno.EINVAL, "")
        return set_flags(file, command, value)

    def preadv_refusing(file: int, buffers: list[memoryview], at: int) -> int:
        if refusing == "the first read" and is_direct(file):
            raise OSError(errno.EINVAL, "")
        return read_file(file, buffers, at)

    monkeypatch.setattr(fcntl, "fcntl", fcntl_refusing)
    monkeypatch.setattr(os, "preadv", preadv_refusing)
    with opened(tmp_path, ODD) as file:
        assert not file.direct
        assert file.write(NAMES[0], body(NAMES[0], ODD))
        assert read(file, NAMES[0])


def test_the_system_may_read_and_write_less_at_once_than_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_file, write_file = os.preadv, os.pwritev

    def preadv(file: int, buffers: list[memoryview], at: int) -> int:
        return read_file(file, [buffers[0][:BLOCK]], at)

    def pwritev(file: int, buffers: list[memoryview], at: int) -> int:
        return write_file(file, [buffers[0][:BLOCK]], at)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pwritev", pwritev)
    for form in (FORM, ODD):
        folder = tmp_path / str(form.sizes[0])
        with opened(folder, form) as file:
            assert file.write(NAMES[0], body(NAMES[0], form))
        with opened(folder, form) as file:  # with buffers of its own
            assert read(file, NAMES[0])


def test_a_reader_keeps_the_page_that_is_removed_under_it(tmp_path: Path) -> None:
    """The place of a page is not used again while somebody reads it."""
    file = PageFile.open(tmp_path, FORM, budget=2 * BLOCK + PAGE_BYTES + FORM.record_bytes)
    first, second = NAMES[:2]
    assert file.write(first, body(first))
    real = file._files.data.read

    def slow(into: np.ndarray, at: int) -> None:
        assert file.remove(first)
        assert not file.write(second, body(second)), "there was no room but under the reader"
        real(into, at)

    file._files.data.read = slow  # type: ignore[method-assign]
    assert read(file, first)
    file._files.data.read = real  # type: ignore[method-assign]
    assert first not in file
    assert file.write(second, body(second))
    assert read(file, second)
    file.check_integrity()
    file.close()


PLACES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "a row is lost": ("lost, or used twice", lambda space: space._rows.pop()),
    "a row is used twice": ("lost, or used twice", lambda space: space._rows.append(0)),
    "a block is lost": ("a block is lost", lambda space: space._blocks.take(1)),
    "a block is free and used": ("free already", lambda space: space._blocks.add(0, 1)),
}


@pytest.mark.parametrize("wrong", PLACES)
def test_the_check_finds_what_is_broken(tmp_path: Path, wrong: str) -> None:
    file = PageFile.open(tmp_path, FORM)
    assert file.write(NAMES[0], body(NAMES[0]))
    file.check_integrity()
    message, do_break = PLACES[wrong]
    do_break(file._space)
    with pytest.raises(IntegrityError, match=message):
        file.check_integrity()
    file.close()
