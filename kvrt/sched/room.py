"""How many pages sequences will need."""

from collections.abc import Sequence

from kvrt.kv.pages.group import chunks_alone
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


class Hope:
    """Of more memory than there is, where others of a machine may give some back.

    Args:
        table: its limit is what there is.
        at_once: tokens that a step computes, at most.
        later: chunks that there may be; None: no more than there are.
    """

    def __init__(self, table: PageTable, at_once: int, later: int | None) -> None:
        self._table = table
        self._at_once = at_once
        self._later = later

    def of(self, seqs: Sequence[Seq]) -> bool:
        """Whether there may be room, for each of them alone, that is not there yet."""
        later = self._later
        return later is not None and later > self._table.limit and all(
            self._alone(len(seq.tokens) + 1) <= later for seq in seqs
        )  # fmt: skip

    def waits(self, seq: Seq) -> bool:
        """Whether a sequence without pages is better not begun with: what it has by now would not
        have room alone, or what it had when that was found out."""
        if not self.of([seq]):
            return False
        assert self._later is not None, "there is none to hope for"
        ahead = min(len(seq.tokens) + LOOKAHEAD_TOKENS, seq.max_len)
        return self._table.limit < min(max(seq.needs, self._alone(ahead)), self._later)

    def _alone(self, length: int) -> int:
        return chunks_alone(self._table.groups, length, min(length, self._at_once))
