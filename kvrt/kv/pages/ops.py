"""What a change of the page table asks of a device: small frozen values, in order.

Each is about the chunks or pages of one group of layers, which have a span of their own.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Map:
    """Put a chunk of physical memory into the span at ``chunk_index * chunk_bytes``."""

    chunk_index: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Unmap:
    """Take the chunk out again. None of its pages is in use; what they held is lost."""

    chunk_index: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy the bytes of page `src_page` to page `dst_page`."""

    src_page: int
    dst_page: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Move:
    """Copy one token's keys and values, of all layers, to another slot. The old ones are left."""

    src_page: int
    src_slot: int
    dst_page: int
    dst_slot: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Scrub:
    """Overwrite a page that nobody holds any more, so that nobody can read what it held."""

    page: int
    group: int = 0


Op = Map | Unmap | Copy | Move | Scrub
