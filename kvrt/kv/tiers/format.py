"""The bytes of a page file's index.

    kvrt-pages.index
        0        superblock, 4096 bytes
                   0  magic "\\x89kvrtpg\\n"      8  version u32     12  record bytes u32
                  16  page bytes u64            24  page size u32  28  further groups u32
                  32  fingerprint, 32 bytes     64  page bytes u64 of each further group, zero ...
                4088  XXH3-64 of all before it
        4096     record 0
                   0  XXH3-64 of the rest of the record, seeded by the fingerprint
                   8  turn u64: counts up with each record written; the order of age
                  16  offset u64, 24 length u64, 32 XXH3-64 of the body
                  40  codec u16: 0 as it is, 1 zstd       42  group of layers u16
                  44  tenant u32, see `names`
                  48  key, 32 bytes             80  parent, 32 bytes
                 112  token ids, int32 [page size]; zeros up to a multiple of 8
        ...      record 1; a record of zeros is free

    kvrt-pages.data
        bodies, each at its record's offset, which is a multiple of 4096

All numbers are little-endian. A record is believed only if its own checksum is right, and its body
only if that is: so whatever was written last and not completely is not there.
"""

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xxhash

from kvrt.errors import ConfigError, StoreError
from kvrt.kv.tiers.blockfile import BLOCK
from kvrt.kv.tiers.names import KEY_BYTES, PageName, StoredName

VERSION = 2
MAGIC = b"\x89kvrtpg\n"
RAW, ZSTD = 0, 1
_HEAD = struct.Struct("<8sIIQII32s")
_SUM = struct.Struct("<Q")
_FIXED = 112
_MOST_GROUPS = 1 + (BLOCK - _SUM.size - _HEAD.size) // 8


@dataclass(frozen=True)
class PageFormat:
    """What all pages of a file have in common.

    Args:
        fingerprint: 32 bytes, see `names.fingerprint`.
        sizes: of each group of layers, bytes of a page's keys and values.
        page_size: tokens of a page, of any group.

    Raises:
        ConfigError: one of these is not possible.
    """

    fingerprint: bytes
    sizes: tuple[int, ...]
    page_size: int

    def __post_init__(self) -> None:
        if len(self.fingerprint) != KEY_BYTES:
            raise ConfigError(f"fingerprint has {len(self.fingerprint)} bytes; it must have 32")
        if not 0 < len(self.sizes) <= _MOST_GROUPS:
            raise ConfigError(f"pages of {len(self.sizes)} groups of layers are not possible")
        for size in self.sizes:
            if size < 1 or self.page_size < 1:
                raise ConfigError(
                    f"a page of {self.page_size} tokens in {size} bytes is not possible"
                )

    @cached_property
    def record_bytes(self) -> int:
        return -(-(_FIXED + 4 * self.page_size) // 8) * 8

    @cached_property
    def page_stride(self) -> int:
        """Bytes of whole blocks that hold any page."""
        return max(map(_whole_blocks, self.sizes))

    @cached_property
    def least_stride(self) -> int:
        """Bytes of whole blocks that the smallest page takes."""
        return min(map(_whole_blocks, self.sizes))

    @cached_property
    def grains(self) -> tuple[int, ...]:
        """What compressed bodies of each group are rounded up to: 1/16 of a page, so that one that
        goes often leaves a hole that fits another.
        """
        return tuple(_whole_blocks(-(-size // 16)) for size in self.sizes)

    @cached_property
    def seed(self) -> int:
        """Of records' checksums: a record copied from another model's file is not believed."""
        return int.from_bytes(self.fingerprint[:8], "little")

    @cached_property
    def record(self) -> np.dtype[np.void]:
        fields = {
            "sum": ("<u8", 0),
            "turn": ("<u8", 8),
            "offset": ("<u8", 16),
            "length": ("<u8", 24),
            "body": ("<u8", 32),
            "codec": ("<u2", 40),
            "group": ("<u2", 42),
            "tenant": ("<u4", 44),
            "key": ("V32", 48),
            "parent": ("V32", 80),
            "tokens": (("<i4", (self.page_size,)), _FIXED),
        }
        return np.dtype(
            {
                "names": list(fields),
                "formats": [kind for kind, _ in fields.values()],
                "offsets": [at for _, at in fields.values()],
                "itemsize": self.record_bytes,
            }
        )


@dataclass(slots=True, eq=False)
class Record:
    """Where a page's body is.

    Args:
        name: of the page, and whose it is.
        row: which record of the index.
        turn: its place in the order of age.
        offset: of the body in the data file, a multiple of 4096.
        length: bytes of the body.
        body: checksum of the body.
        codec: `RAW` or `ZSTD`.
        blocks: of 4096 bytes, set aside for it; see `blocks_for`.
        readers: threads that read the body now.
        gone: it cannot be found any more.
    """

    name: StoredName
    row: int
    turn: int
    offset: int
    length: int
    body: int
    codec: int
    blocks: int
    readers: int = 0
    gone: bool = False


def blocks_for(length: int, codec: int, form: PageFormat, group: int) -> int:
    """Blocks to set aside for a body."""
    grain = form.grains[group] if codec == ZSTD else BLOCK
    return -(-length // grain) * grain // BLOCK


def checksum(data: memoryview | bytes) -> int:
    """XXH3-64, the checksum of bodies."""
    return int(xxhash.xxh3_64_intdigest(data))


def superblock(form: PageFormat) -> bytes:
    first, *others = form.sizes
    counts = (form.page_size, len(others))
    head = _HEAD.pack(MAGIC, VERSION, form.record_bytes, first, *counts, form.fingerprint)
    head += struct.pack(f"<{len(others)}Q", *others)
    head = head.ljust(BLOCK - _SUM.size, b"\0")
    return head + _SUM.pack(checksum(head))


def check_superblock(raw: bytes, form: PageFormat, path: object) -> None:
    """Is this the index of such pages?

    Raises:
        StoreError: ``foreign``, ``version`` or ``damaged``, with what was found.
    """
    fix = "use another folder, or delete this one if nothing in it is needed"
    if len(raw) < BLOCK and MAGIC.startswith(raw[: len(MAGIC)]):
        raise StoreError(f"{path} is cut off within its header", reason="damaged", fix=fix)
    if raw[: len(MAGIC)] != MAGIC:
        raise StoreError(f"{path} was not written by kvrt", reason="foreign", fix=fix)
    _, version, record_bytes, first, page_size, others, fingerprint = _HEAD.unpack_from(raw)
    if len(raw) < BLOCK:
        raise StoreError(f"{path} is cut off within its header", reason="damaged", fix=fix)
    if version != VERSION:
        raise StoreError(
            f"{path} has format version {version}; this kvrt reads version {VERSION}",
            reason="version",
            fix=fix,
        )
    head, (found,) = raw[: BLOCK - _SUM.size], _SUM.unpack(raw[BLOCK - _SUM.size : BLOCK])
    if found != checksum(head):
        raise StoreError(f"{path} has a damaged header", reason="damaged", fix=fix)
    others = min(others, _MOST_GROUPS - 1)
    sizes = (first, *struct.unpack_from(f"<{others}Q", raw, _HEAD.size))
    if fingerprint != form.fingerprint:
        groups = "" if len(sizes) == len(form.sizes) else (
            f": {len(sizes)} groups of layers keep memory alike there, and {len(form.sizes)} here"
        )  # fmt: skip
        raise StoreError(
            f"{path} has pages of another model or KV format{groups}", reason="foreign", fix=fix
        )
    if (record_bytes, sizes, page_size) != (form.record_bytes, form.sizes, form.page_size):
        raise StoreError(
            f"{path} has pages of {page_size} tokens in {_listed(sizes)} bytes, not of"
            f" {form.page_size} in {_listed(form.sizes)}",
            reason="foreign",
            fix=fix,
        )


def pack(record: Record, form: PageFormat) -> bytes:
    row = np.zeros(1, form.record)
    row["turn"], row["offset"], row["length"] = record.turn, record.offset, record.length
    row["body"], row["codec"] = record.body, record.codec
    page, row["group"] = record.name
    row["key"], row["parent"] = np.void(page.key), np.void(page.parent)
    row["tokens"], row["tenant"] = page.tokens, page.tenant
    raw = row.tobytes()
    return _SUM.pack(_record_sum(raw, form)) + raw[_SUM.size :]


@dataclass(frozen=True, slots=True)
class Scan:
    """What an index says.

    Args:
        records: those that can be believed, the oldest first.
        damaged: rows of the others.
    """

    records: list[Record]
    damaged: list[int]


def scan(raw: bytes | memoryview, form: PageFormat, data_bytes: int) -> Scan:
    """Read what follows the superblock.

    A record that is damaged, whose body is not within the `data_bytes` of the data file, or shares
    blocks with another body, is left out.
    """
    size = form.record_bytes
    table = np.frombuffer(raw, form.record, len(raw) // size)
    used = np.flatnonzero(table["sum"])
    sums = [_record_sum(raw[row * size : (row + 1) * size], form) for row in used.tolist()]
    rows = used[table["sum"][used] == np.array(sums, "<u8")]

    fields = ("offset", "length", "codec", "group")
    offset, length, codec, group = (table[field][rows] for field in fields)
    known = np.minimum(group, len(form.sizes) - 1)
    size, grains = np.array(form.sizes, "<u8")[known], np.array(form.grains, "<u8")[known]
    grain = np.where(codec == ZSTD, grains, BLOCK).astype("<u8")
    nbytes = (length + grain - np.uint64(1)) // grain * grain
    fits = (group == known) & (length > 0) & (length <= size) & (offset % BLOCK == 0)
    fits &= (codec == ZSTD) | ((codec == RAW) & (length == size))
    fits &= (offset < data_bytes) & (offset + nbytes <= data_bytes)
    at = np.flatnonzero(fits)
    at = at[_alone(offset[at], nbytes[at])]
    at = at[np.argsort(table["turn"][rows[at]], kind="stable")]
    rows, blocks = rows[at], nbytes[at] // np.uint64(BLOCK)

    # By columns: to pick rows of a structured array costs more than all the rest.
    tokens = map(tuple, table["tokens"][rows].tolist())
    key, parent, tenant = (table[field][rows].tolist() for field in ("key", "parent", "tenant"))
    pages = map(PageName, key, parent, tokens, tenant)
    names = map(StoredName, pages, table["group"][rows].tolist())
    rest = (table[field][rows].tolist() for field in ("turn", "offset", "length", "body", "codec"))
    records = list(map(Record, names, rows.tolist(), *rest, blocks.tolist()))
    return Scan(records, np.setdiff1d(used, rows).tolist())


def _whole_blocks(nbytes: int) -> int:
    return -(-nbytes // BLOCK) * BLOCK


def _listed(sizes: tuple[int, ...]) -> str:
    return " and ".join(map(str, sizes))


def _alone(offset: np.ndarray, nbytes: np.ndarray) -> np.ndarray:
    """Which of these bodies share no byte with another one."""
    order = np.argsort(offset, kind="stable")
    end = np.maximum.accumulate((offset + nbytes)[order])
    shared = offset[order][1:] < end[:-1]
    alone = np.ones(len(order), bool)
    alone[1:] &= ~shared
    alone[:-1] &= ~shared
    return np.sort(order[alone])


def _record_sum(raw: bytes | memoryview, form: PageFormat) -> int:
    return int(xxhash.xxh3_64_intdigest(raw[_SUM.size :], form.seed))
