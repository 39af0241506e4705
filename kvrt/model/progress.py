"""How far a download is."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called during a download with the bytes that are there and the bytes expected in total."""
