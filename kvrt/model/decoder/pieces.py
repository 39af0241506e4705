"""What torch is asked for within a step on the CPU, in pieces that it computes alone."""

from collections.abc import Iterator

ALONE = 1 << 15
"""Elements from which on torch shares an operation out to threads of its own. They would then wait
awake for 20 ms, on processors that the device's kernels need."""


def pieces(rows: int, width: int, torch_device: str) -> Iterator[slice]:
    """All rows of `width` elements each; on the CPU so many at a time that torch is alone."""
    step = max(1, ALONE // width - 1) if torch_device == "cpu" else max(1, rows)
    for first in range(0, rows, step):
        yield slice(first, first + step)
