"""How a window's text is cut into segments, and where the next window begins: as OpenAI's code has
it, and transformers.

    <|0.00|> text <|2.40|><|2.40|> text <|5.00|>        all was heard: the next window is behind it
    <|0.00|> text <|2.40|><|2.40|> text that is c       cut in the middle: the next begins at 2.40
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

SECONDS = 0.02
"""From one time to the next."""

FRAMES = 2
"""Of features, in that."""


class Part(NamedTuple):
    """A segment of a window.

    Args:
        start, end: how many times 20 ms after the window's begin.
        tokens: its times included.
        first: which of the window's tokens its first is.
    """

    start: float
    end: float
    tokens: list[int]
    first: int


def cut(tokens: Sequence[int], first_time: int, frames: int) -> tuple[list[Part], int]:
    """The segments of a window, and how many frames later the next window begins.

    Args:
        tokens: without the one that ends them.
        first_time: the token for the time 0.
        frames: of features, in the window.
    """
    is_time = [token >= first_time for token in tokens]
    ends = [at + 1 for at, both in enumerate(pairwise(is_time)) if all(both)]
    if not ends:
        times = [token - first_time for token in tokens if token >= first_time]
        end = times[-1] if times and times[-1] else frames // FRAMES
        return [Part(0, end, list(tokens), 0)], frames
    whole = is_time[-2:] == [False, True]
    if whole:
        ends.append(len(tokens))
    else:
        ends[-1] += 1  # with the time that the next window begins at
    parts, begin = list[Part](), 0
    for end in ends:
        own = list(tokens[begin:end])
        closing = own[-1] if whole or end < ends[-1] else own[-2]
        parts.append(Part(own[0] - first_time, closing - first_time, own, begin))
        begin = end
    if whole:
        return parts, frames
    return parts, (tokens[begin - 2] - first_time) * FRAMES or frames
