"""Pages of several sizes, small beside a chunk or larger than several, and tables of them."""

import re

from kvrt.kv.pages.geometry import Geometry
from kvrt.kv.pages.group import Group
from kvrt.kv.pages.integrity import check_table
from kvrt.kv.pages.lanes import Shortage
from kvrt.kv.pages.table import Change, PageTable
from kvrt.spi import KVLayout

KIB = 1024
CHUNK = 64 * KIB

SIZE = 4
"""Tokens in a page of `shape`."""

LAYERS = {"many in a chunk": 1, "straddling": 5, "one chunk": 8, "larger": 20, "two chunks": 16}
"""Layers that make a page of 8, 40, 64, 160 and 128 KiB."""


KINDS = [
    *sorted(LAYERS),
    "straddling+many in a chunk",
    "larger+many in a chunk+straddling",
    "straddling 9 0",
    "many in a chunk+many in a chunk 9 0",
    "straddling+many in a chunk 1 0+one chunk 11 5",
]
"""Of one group of layers, and of several; some with a window, and first positions kept as well."""


def kind_and_window(kind: str) -> tuple[str, tuple[int, int]]:
    """Of one group."""
    found = re.fullmatch(r"(\D+?) (\d+) (\d+)", kind)
    return (found[1], (int(found[2]), int(found[3]))) if found else (kind, (0, 0))


def chunks_for(kind: str, pages: int, *, chunk_bytes: int = CHUNK) -> int:
    """Chunks under the null page and so many more of each group."""
    kinds = [kind_and_window(each)[0] for each in kind.split("+")]
    shapes = [shape(each, chunk_bytes=chunk_bytes) for each in kinds]
    return sum(each.chunks_of(pages).stop for each in shapes)


def layout(name: str = "straddling", *, chunk_bytes: int = CHUNK) -> KVLayout:
    """Of a page; it scales with the chunk."""
    return KVLayout.packed(
        "float32", layers=LAYERS[name], kv_heads=2, head_dim=128 * (chunk_bytes // CHUNK),
        page_size=SIZE,
    )  # fmt: skip


def shape(name: str = "straddling", *, chunks: int = 24, chunk_bytes: int = CHUNK) -> Geometry:
    """A geometry over about so many chunks."""
    page_bytes = layout(name, chunk_bytes=chunk_bytes).page_bytes
    return Geometry(page_bytes, SIZE, chunk_bytes, pages=chunks * chunk_bytes // page_bytes)


def empty(kind: str = "many in a chunk", limit: int = 8) -> PageTable:
    return PageTable.empty([Group(shape(kind))], limit).table


def done(change: Change | Shortage) -> PageTable:
    """The next table, checked."""
    assert isinstance(change, Change)
    check_table(change.table)
    return change.table
