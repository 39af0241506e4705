"""Rows taken piece by piece, by all processors."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def by_pieces(rows: int, step: int, take: Callable[[slice], None]) -> None:
    """Call `take` for pieces of at most `step` rows, several at once, and wait for all of them.

    A piece should be small enough for a processor's caches, and so that torch wakes no other
    threads for it.
    """
    step = max(1, step)
    pieces = [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
    if len(pieces) <= 1:
        for piece in pieces:
            take(piece)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(take, pieces):
            pass
