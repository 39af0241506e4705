"""Where the KV memory on a device stands."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Where a cache stands.

    Args:
        page_bytes: bytes of a page, of each group one.
        used_pages: pages that sequences hold, of all groups, shared ones counted once.
        cached_pages: pages that no sequence holds, of all groups, kept for those that begin with
            the same tokens.
        cached_bytes: what these take.
        free_pages: pages, of each group, that can be handed out within the limit.
        retired_pages: pages that wait for the end of a step.
        mapped_bytes: physical memory in the span.
        pooled_bytes: physical memory created and not mapped. The cache holds both.
        spare_bytes: the part of both that no page needs: kept for the next ones, or to be given
            back.
        limit_bytes: the limit on what it holds.
        asked_bytes: the limit that was set; more than `limit_bytes` after the device had less,
            until that much is tried again.
        peak_mapped_bytes: the most that was mapped so far.
        maps: chunks mapped so far.
        unmaps: chunks unmapped so far.
        copies: shared pages copied so far because a sequence wrote to one.
    """

    page_bytes: int
    used_pages: int
    cached_pages: int
    cached_bytes: int
    free_pages: int
    retired_pages: int
    mapped_bytes: int
    pooled_bytes: int
    spare_bytes: int
    limit_bytes: int
    asked_bytes: int
    peak_mapped_bytes: int
    maps: int
    unmaps: int
    copies: int
