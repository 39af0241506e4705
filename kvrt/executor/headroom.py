"""Room for a step on machines that promise more memory than they have.

Linux gives addresses to all who ask, and ends a process once the last of the memory is touched. So
a large step is refused here, before it begins, where an accelerator's driver would refuse it.
"""

from collections.abc import Callable

from kvrt.errors import OutOfMemory
from kvrt.units import format_bytes

SMALL_BYTES = 32 << 20
"""Steps that take no more are not looked at: what backends keep in reserve is more, and to ask the
system takes as long as a layer of a small model."""


class Headroom:
    """Memory for the steps of a model, or of one that drafts.

    Args:
        free: bytes that the system can still give, its reserve left out.
        token_bytes: that a step computes in, of each token.
        row_bytes: of each row of logits, what chooses among them included.
    """

    def __init__(self, free: Callable[[], int], token_bytes: int, row_bytes: int) -> None:
        self._free = free
        self._token_bytes = token_bytes
        self._row_bytes = row_bytes
        self._kept = 0

    def require(self, tokens: int, rows: int) -> None:
        """A step of so many tokens is to begin, with logits of so many rows.

        Raises:
            OutOfMemory: it would take more than there is.
        """
        own = tokens * self._token_bytes
        more = own - self._kept + rows * self._row_bytes  # what the last one had is there still
        if more > SMALL_BYTES and more > (free := self._free()):
            raise OutOfMemory(
                f"a step of {tokens} tokens may take {format_bytes(more)} to compute in, and"
                f" {format_bytes(free)} are free",
                needed=more,
                free=free,
            )
        self._kept = own
