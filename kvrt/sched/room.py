"""How many pages sequences will need."""

from kvrt.kv.pages.table import PageTable
from kvrt.kv.seq import Seq

LOOKAHEAD_TOKENS = 64
"""Admission leaves every running sequence the pages for so many more tokens, so that a newcomer
is not paid for by a preemption a moment later."""


def bytes_to_come(table: PageTable, seq: Seq, at_once: int) -> int:
    """Bytes of the pages that `seq` does not hold yet, and will need for its tokens and the
    look-ahead.

    Args:
        at_once: tokens that a step computes, at most.
    """
    known = len(seq.tokens)
    ahead = min(known + LOOKAHEAD_TOKENS, seq.max_len)
    step = max(1, min(known - table.length(seq.id), at_once))
    total = 0
    for lane, row in zip(table.lanes, table.rows_of(seq.id), strict=True):
        geometry = lane.geometry
        needed = lane.group.most(ahead, step)
        if seq.width > 1:  # siblings share full pages of the prompt, and need their own after that
            own = geometry.pages_for(ahead) - known // geometry.page_size
            needed += (seq.width - 1) * min(needed, own)
        if needed > (held := len(lane.held(row))):
            total += (needed - held) * geometry.page_bytes
    return total
