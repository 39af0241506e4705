"""How far a download is, or the quantising of weights."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called again and again with the bytes that are done and the bytes expected in total."""
