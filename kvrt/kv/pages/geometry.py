"""How large a page is, and which chunks lie under it."""

from dataclasses import dataclass
from functools import cached_property

from kvrt.errors import ConfigError

_MAX_PAGES = 2**31 - 1
"""Page tables hand page numbers to kernels as int32."""


@dataclass(frozen=True)
class Geometry:
    """The shape of the KV memory: pages, one after the other, over chunks.

        span     0                  1                  2          chunks of chunk_bytes
                 |------------------|------------------|----
        pages    |  0   |  1   |  2   |  3   |  4   |  5   |      page p begins at p * page_bytes
                  null              ^ straddles       ^

    There are no gaps, so that one stride reaches every page and no byte is wasted. A page may lie
    across two chunks, or be larger than several; it can be used when all of its chunks are mapped.
    A page *belongs* to the chunk it begins in. Page 0, the null page, is never handed out: what a
    kernel must write for padding goes there.

    Args:
        page_bytes: bytes of one page.
        page_size: tokens in a page.
        chunk_bytes: bytes of one chunk, `spi.DeviceInfo.granularity`.
        pages: pages in the span, the null page included.

    Raises:
        ConfigError: a value is not positive, or `pages` is less than two or more than an int32 can
            number.
    """

    page_bytes: int
    page_size: int
    chunk_bytes: int
    pages: int

    def __post_init__(self) -> None:
        for name in ("page_bytes", "page_size", "chunk_bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a positive whole number")
        if not isinstance(self.pages, int) or not 2 <= self.pages <= _MAX_PAGES:
            raise ConfigError(
                f"pages is {self.pages!r}; it must be from 2 (the null page and one to use)"
                f" to {_MAX_PAGES}"
            )

    @cached_property
    def chunks(self) -> int:
        """Chunks in the span."""
        return -(-self.pages * self.page_bytes // self.chunk_bytes)

    @property
    def span_bytes(self) -> int:
        """Addresses to reserve: all pages, rounded up to whole chunks."""
        return self.chunks * self.chunk_bytes

    @property
    def min_chunks(self) -> int:
        """Chunks under the null page and one more: with less, nothing can be stored."""
        return self.chunks_of(1).stop

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-tokens // self.page_size)

    def pages_in(self, chunks: int) -> int:
        """Pages, the null page included, that fit in the first so many chunks of the span."""
        return min(self.pages, chunks * self.chunk_bytes // self.page_bytes)

    def chunks_of(self, page: int) -> range:
        """The chunks under a page."""
        start = page * self.page_bytes
        return range(
            start // self.chunk_bytes, (start + self.page_bytes - 1) // self.chunk_bytes + 1
        )

    def pages_of(self, chunk: int) -> range:
        """All pages that have a byte in the chunk."""
        first = chunk * self.chunk_bytes // self.page_bytes
        return range(first, self.own_pages(chunk).stop)

    def own_pages(self, chunk: int) -> range:
        """The pages that begin in the chunk; none, if pages are large."""
        start = chunk * self.chunk_bytes
        first = min(self.pages, -(-start // self.page_bytes))
        return range(first, min(self.pages, -(-(start + self.chunk_bytes) // self.page_bytes)))
