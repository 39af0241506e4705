"""A page file that is not what was written is a miss: never another page, never a crash."""

import dataclasses
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvrt.errors import StoreError
from kvrt.kv.tiers import space
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.files import DATA, INDEX
from kvrt.kv.tiers.format import VERSION, checksum, pack, scan, superblock
from kvrt.kv.tiers.names import fingerprint
from kvrt.kv.tiers.pagefile import PageFile
from kvrt.kv.tiers.space import SLACK

from .pages import FORM, PAGE_BYTES, PAGE_SIZE, body, cached, names, opened, read

NAMES = names(10)
ALL = set(range(len(NAMES)))
VARIANTS = 2000
ROW = FORM.record_bytes

Files = dict[str, bytearray]
Damage = Callable[[Files, random.Random, int], set[int]]
"""Breaks the files; given the number of the variant, too. Returns the pages that must be missed."""


@pytest.fixture(scope="module", params=[None, 3], ids=["plain", "zstd"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Page n is in row n, and the bodies are in the order of the names."""
    folder = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(space, "STEP", len(NAMES) * FORM.page_stride)  # nothing behind the bodies
        with opened(folder, compress=request.param) as file:
            for name in NAMES:
                assert file.write(name, body(name))
    return {name: bytearray((folder / name).read_bytes()) for name in (INDEX, DATA)}


def place(files: Files, page: int) -> tuple[int, int]:
    """Offset and length of a page's body, from its record."""
    return struct.unpack_from("<2Q", files[INDEX], BLOCK + page * ROW + 16)


def superblock_byte(files: Files, rng: random.Random, variant: int) -> set[int]:
    at = variant % BLOCK if variant % 2 else variant % 64  # all fields, and some of the zeros
    files[INDEX][at] ^= 1 << rng.randrange(8)
    return ALL


def record_byte(files: Files, rng: random.Random, variant: int) -> set[int]:
    page = rng.randrange(len(NAMES))
    files[INDEX][BLOCK + page * ROW + variant % ROW] ^= 1 << rng.randrange(8)
    return {page}


def body_byte(files: Files, rng: random.Random, variant: int) -> set[int]:
    page = rng.randrange(len(NAMES))
    offset, length = place(files, page)
    files[DATA][offset + rng.randrange(length)] ^= 1 << rng.randrange(8)
    return {page}


def body_lost(files: Files, rng: random.Random, variant: int) -> set[int]:
    """A block that was never written, as after a loss of power."""
    page = rng.randrange(len(NAMES))
    offset, length = place(files, page)
    files[DATA][offset : offset + length] = bytes(length)
    return {page}


def bodies_exchanged(files: Files, rng: random.Random, variant: int) -> set[int]:
    one, other = rng.sample(range(len(NAMES)), 2)
    (a, length), (b, another) = place(files, one), place(files, other)
    size, data = min(length, another), files[DATA]
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    return {one, other}


def record_repeated(files: Files, rng: random.Random, variant: int) -> set[int]:
    """In the place of another, or a new place; two that have one body are both not believed."""
    one, other = rng.sample(range(len(NAMES) + 1), 2)
    rows = [BLOCK + n * ROW for n in (one, other)]
    files[INDEX][rows[1] : rows[1] + ROW] = files[INDEX][rows[0] : rows[0] + ROW]
    return {one, other} & ALL


def record_erased(files: Files, rng: random.Random, variant: int) -> set[int]:
    page = rng.randrange(len(NAMES))
    files[INDEX][BLOCK + page * ROW : BLOCK + (page + 1) * ROW] = bytes(ROW)
    return {page}


def index_cut(files: Files, rng: random.Random, variant: int) -> set[int]:
    length = rng.randrange(BLOCK + len(NAMES) * ROW)
    del files[INDEX][length:]
    return {n for n in ALL if BLOCK + (n + 1) * ROW > length}


def data_cut(files: Files, rng: random.Random, variant: int) -> set[int]:
    length = rng.randrange(len(files[DATA]))
    lost = {n for n in ALL if sum(place(files, n)) > length}
    del files[DATA][length:]
    return lost


def data_shifted(files: Files, rng: random.Random, variant: int) -> set[int]:
    files[DATA][:0] = rng.randbytes(rng.choice([1, BLOCK, 2 * BLOCK]))
    return ALL


def noise(files: Files, rng: random.Random, variant: int) -> set[int]:
    which = rng.choice([INDEX, DATA])
    files[which][:] = rng.randbytes(rng.choice([0, 1, 100, BLOCK, len(files[which])]))
    return ALL


def noise_at_the_end(files: Files, rng: random.Random, variant: int) -> set[int]:
    files[rng.choice([INDEX, DATA])].extend(rng.randbytes(rng.choice([1, 100, BLOCK, 3 * BLOCK])))
    return set()


def index_too_long(files: Files, rng: random.Random, variant: int) -> set[int]:
    """By zeros, noise, or copies of what is there: more rows than there can be bodies."""
    index = files[INDEX]
    size = rng.randrange(SLACK, 4 * SLACK)
    rows = bytes(index[BLOCK:])
    index += [bytes(size), rng.randbytes(size), rows * (size // len(rows))][variant % 3]
    return ALL if variant % 3 == 2 else set()


def of_another_version(files: Files, rng: random.Random, variant: int) -> set[int]:
    version = rng.choice([0, VERSION - 1, VERSION + 1, VERSION + 256, 2**32 - 1])
    files[INDEX][8:12] = struct.pack("<I", version)
    _seal(files)
    return ALL


def of_another_kind(files: Files, rng: random.Random, variant: int) -> set[int]:
    """Whole, but of another model or layout; its records would be believed by themselves."""
    other = [
        dataclasses.replace(FORM, fingerprint=fingerprint(rng.randbytes(4), "float32", "")),
        dataclasses.replace(FORM, sizes=(PAGE_BYTES + rng.choice([-BLOCK, 1, BLOCK]),)),
        dataclasses.replace(FORM, sizes=(PAGE_BYTES, rng.choice([1, BLOCK, PAGE_BYTES]))),
        dataclasses.replace(FORM, page_size=PAGE_SIZE + rng.choice([-1, 1, 4])),
    ][variant % 4]
    files[INDEX][:BLOCK] = superblock(other)
    return ALL


def records_of_another_model(files: Files, rng: random.Random, variant: int) -> set[int]:
    """The header is ours, what follows was written for another model."""
    other = dataclasses.replace(FORM, fingerprint=fingerprint(rng.randbytes(4), "float32", ""))
    for record in scan(bytes(files[INDEX][BLOCK:]), FORM, len(files[DATA])).records:
        at = BLOCK + record.row * ROW
        files[INDEX][at : at + ROW] = pack(record, other)
    return ALL


def body_shared(files: Files, rng: random.Random, variant: int) -> set[int]:
    """Two records, each whole, claim the same blocks: only one of them can be right, if any."""
    records = scan(bytes(files[INDEX][BLOCK:]), FORM, len(files[DATA])).records
    one, other = rng.sample(records, 2)
    one.offset = other.offset
    at = BLOCK + one.row * ROW
    files[INDEX][at : at + ROW] = pack(one, FORM)
    return {one.row, other.row}


def _seal(files: Files) -> None:
    """Make the superblock's checksum right again."""
    head = bytes(files[INDEX][: BLOCK - 8])
    files[INDEX][BLOCK - 8 : BLOCK] = struct.pack("<Q", checksum(head))


def of_another_program(files: Files, rng: random.Random, variant: int) -> set[int]:
    files[INDEX][:] = b"SQLite format 3\0" + rng.randbytes(BLOCK)
    return ALL


def header_cut(files: Files, rng: random.Random, variant: int) -> set[int]:
    del files[INDEX][rng.randrange(BLOCK) :]
    return ALL


def header_flipped(files: Files, rng: random.Random, variant: int) -> set[int]:
    files[INDEX][rng.randrange(12, BLOCK)] ^= 1 << rng.randrange(8)
    return ALL


KINDS: list[Damage] = [
    superblock_byte,
    record_byte,
    body_byte,
    body_lost,
    bodies_exchanged,
    record_repeated,
    record_erased,
    index_cut,
    data_cut,
    data_shifted,
    noise,
    noise_at_the_end,
    index_too_long,
    of_another_version,
    of_another_kind,
    records_of_another_model,
    body_shared,
    of_another_program,
    header_cut,
]


@pytest.mark.promise("P21")
def test_two_thousand_damaged_variants_are_missed(good: Files, tmp_path: Path) -> None:
    whole = 0
    for variant in range(VARIANTS // 2):
        kind = KINDS[variant % len(KINDS)]
        files = {name: bytearray(raw) for name, raw in good.items()}
        lost = kind(files, random.Random(variant), variant // len(KINDS))
        folder = tmp_path / "damaged"
        folder.mkdir()
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
        what = f"variant {variant}, {kind.__name__}"
        try:
            found = look(folder, mend=variant % 2 == 0)
        except StoreError:
            found = set()
            for name, raw in files.items():
                assert (folder / name).read_bytes() == raw, f"{what}: changed what is not ours"
        assert not found & lost, f"{what}: {found & lost} were found"
        whole += len(found)
        shutil.rmtree(folder)
    assert whole > 3 * VARIANTS / 2, "damage spreads: pages beside it are lost, too"


def look(folder: Path, *, mend: bool) -> set[int]:
    """The pages that are there, with the right bytes; then write those that are not."""
    with opened(folder, writable=mend, open_file=cached) as file:
        found = {n for n, name in enumerate(NAMES) if read(file, name)}
        if mend:
            for name in NAMES:
                assert file.write(name, body(name))
                assert read(file, name)
    if mend:
        with opened(folder, open_file=cached) as file:
            assert all(read(file, name) for name in NAMES), "what was written anew is lost"
            assert not file.damaged
    return found


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (of_another_version, "version"),
        (of_another_kind, "foreign"),
        (of_another_program, "foreign"),
        (header_cut, "damaged"),
        (header_flipped, "damaged"),
    ],
)
def test_what_is_wrong_is_said(good: Files, tmp_path: Path, kind: Damage, reason: str) -> None:
    files = {name: bytearray(raw) for name, raw in good.items()}
    kind(files, random.Random(1), 0)
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        PageFile.open(tmp_path, FORM)
    assert caught.value.reason == reason
    assert str(tmp_path) in str(caught.value)


def test_damage_is_counted_and_mended(good: Files, tmp_path: Path) -> None:
    files = {name: bytearray(raw) for name, raw in good.items()}
    files[INDEX][BLOCK + 3 * ROW + 50] ^= 1
    files[DATA][place(files, 5)[0]] ^= 1
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with opened(tmp_path) as file:
        assert file.damaged == 1
        assert not read(file, NAMES[5])
        assert file.damaged == 2
        assert len(file) == len(NAMES) - 2
    with opened(tmp_path) as file:
        assert file.damaged == 0
