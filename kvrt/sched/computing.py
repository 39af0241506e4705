"""Which pages are computed in a step, so that others wait for them and do not compute them too."""

from collections.abc import Sequence

from kvrt.kv.index.reuse import Reuse
from kvrt.kv.seq import Seq
from kvrt.sched.pages import PlannedPages


class Computing:
    """The pages that sequences of the batch compute next, and others may wait for.

    Args:
        seqs: that were in the batch before; `add` those that are admitted.
    """

    def __init__(self, reuse: Reuse, seqs: Sequence[Seq], pages: PlannedPages) -> None:
        self._reuse = reuse
        self._seqs = [*seqs]
        self._look(pages)

    def _look(self, pages: PlannedPages) -> None:
        self._dropped = pages.dropped
        self._next: dict[int, set[bytes]] = {}  # their keys, by how many come before
        for seq in self._seqs:
            self._note(seq, pages)

    def add(self, seq: Seq, pages: PlannedPages) -> None:
        self._seqs.append(seq)
        self._note(seq, pages)

    def _note(self, seq: Seq, pages: PlannedPages) -> None:
        if names := self._reuse.computing(seq):
            there = self._reuse.found(names, pages.dropped)
            if there < len(names):
                self._next.setdefault(there, set()).add(names[there].key)

    def awaited(self, seq: Seq, pages: PlannedPages) -> bool:
        """Whether `seq` needs one of them next: it has all pages before that in common with the
        sequence that computes it, as the key says."""
        if pages.dropped != self._dropped:
            self._look(pages)  # less is there than before
        names = seq.names
        return seq.matches and any(
            there < len(names) and names[there].key in keys for there, keys in self._next.items()
        )
