"""What is only cached goes as far as the limit needs it, and no further."""

from collections.abc import Iterable

from kvrt.kv.index.tenants import TenantsInOrder
from kvrt.kv.pages.lanes import SeqId
from kvrt.kv.pages.packing import can_pack
from kvrt.kv.pages.table import Change, PageTable


def keep_to_limit(
    table: PageTable, cached: TenantsInOrder, still: Iterable[SeqId] = ()
) -> tuple[Change, bool]:
    """Give cached pages up until those that are left have room in the limit, if they are packed.

    Args:
        cached: those to give up first before others.
        still: sequences whose pages stay where they are.

    Returns:
        The change; and whether that suffices, so that `kvrt.kv.pages.packing.pack` does the rest.
    """
    still, change = tuple(still), Change(table)
    while (over := change.table.chunks_over_limit) and not can_pack(change.table, over, still):
        evicted = cached.take(change.table, max(1, change.table.bytes_beyond_limit))
        if not any(evicted):
            return change, False
        change = change.then(change.table.forget(evicted))
    return change, True
