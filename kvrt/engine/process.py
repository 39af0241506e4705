"""Which process something belongs to: a forked child has its memory, and none of its threads."""

import os

from kvrt.errors import KvrtError


class Process:
    """The process that runs now, to be compared with the one that runs later."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def here(self) -> bool:
        """Whether it is still the same."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Raise `KvrtError` in a child: no thread of this process would ever answer it."""
        if not self.here:
            raise KvrtError(
                "this runtime was made before a fork", fix="make one in the child, or use spawn"
            )
