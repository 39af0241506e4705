"""Bounds on what a chat template does: how long it computes, and how much text and lists it makes.

A template comes with a model and is a program. Jinja's sandbox keeps it from touching anything, not
from `'a' * 10 ** 9` or four nested loops. So all that can take long or grow goes past a `Meter`:
what would be too large is refused before it is made, the sum of all that was made has a limit, and
so has the processor time of the thread, which does not run while others have the processor.
"""

import re
import string
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jinja2.exceptions import SecurityError

SECONDS = 0.25
SECONDS_OF_INPUT = 1e-5
SIZE = 1 << 20
SIZE_OF_INPUT = 100
"""Processor time, and characters of text made, for a rendering, and more for each character it is
given. A template of the hub takes about a millisecond and makes a few times its input."""

ITEM = 8
"""What an item of a list counts, in characters."""

WIDTH = 100_000
"""The largest number that may say how wide or long something is to be."""

BITS = 1 << 13
"""The longest whole number."""

PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+))?")


class Excess(SecurityError):
    """A template does more than it may."""


class Meter:
    """What one rendering may still do.

    Args:
        given: the size of what the template is given; see `size_of`.
    """

    def __init__(self, given: int) -> None:
        self._left = SIZE + SIZE_OF_INPUT * given
        self._end = time.thread_time() + SECONDS + SECONDS_OF_INPUT * given

    def spend(self, size: int) -> None:
        """Count text, before or after it is made; and look at the time.

        Raises:
            Excess: it is too much, or too late.
        """
        self._left -= size
        if self._left < 0:
            raise Excess("it makes too much text")
        if time.thread_time() > self._end:
            raise Excess("it computes for too long")

    def hold(self, value: Any) -> Any:
        """Count a value that was made; returns it."""
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, list | tuple | dict):
            self.size_of(value)
            self.spend(ITEM * len(value))
        else:
            self.spend(0)
        return value

    def size_of(self, value: Any) -> int:
        """How large a value is as text, with what is in it as often as it is there."""
        return size_of(value, self._left)


_current = threading.local()


def meter() -> Meter:
    """That of the rendering in this thread.

    Raises:
        Excess: a template is being compiled, which computes nothing.
    """
    found: Meter | None = getattr(_current, "meter", None)
    if found is None:
        raise Excess("it computes before it is rendered")
    return found


@contextmanager
def metered(given: Any) -> Iterator[None]:
    """Bound what a template does in this thread that is given `given`."""
    _current.meter = Meter(size_of(given, 1 << 62))
    try:
        yield
    finally:
        del _current.meter


def size_of(value: Any, most: int) -> int:
    """Characters of text in a value, and `ITEM` for each item.

    Raises:
        Excess: it is more than `most`. So no list can hold another so often that to print it, or
            to compare it, takes for ever.
    """
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, dict):
            total += ITEM * len(item)
            stack += item
            stack += item.values()
        elif isinstance(item, list | tuple):
            total += ITEM * len(item)
            stack += item
        if total > most:
            raise Excess("it makes too much text")
    return total


# --- what grows ---------------------------------------------------------------------------------


def check_width(*values: Any) -> None:
    """Refuse numbers that would make something very wide."""
    if any(isinstance(value, int) and abs(value) > WIDTH for value in values):
        raise Excess("it makes something too wide")


def multiply(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > BITS:
            raise Excess("it computes with too large numbers")
        return left * right
    for text, times in ((left, right), (right, left)):
        if isinstance(text, str | bytes | list | tuple) and isinstance(times, int):
            meter().spend(max(0, times) * meter().size_of(text))
    return left * right


def power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > BITS:
        raise Excess("it computes with too large numbers")
    return left**right


def add(left: Any, right: Any) -> Any:
    return meter().hold(left + right)


def fill(left: Any, right: Any) -> Any:
    """``left % right``, of numbers or of a text to fill."""
    if isinstance(left, str | bytes):
        _check_percent(left, right)
    return left % right


def _check_percent(text: str | bytes, values: Any) -> None:
    fields = PERCENT.findall(text if isinstance(text, str) else text.decode(errors="replace"))
    widths = [width for field in fields for width in field if width]
    if any(width == "*" or len(width) > 4 for width in widths):
        raise Excess("it makes something too wide")
    filled = len(fields) * meter().size_of(values)
    meter().spend(len(text) + sum(map(int, widths)) + filled)


def check_format(text: str, values: Any) -> None:
    """Look at ``text.format(...)`` before it is done."""
    specs = [spec for _, _, spec, _ in string.Formatter().parse(text) if spec is not None]
    widths = [width for spec in specs for width in re.findall(r"\d+", spec)]
    if any("{" in spec for spec in specs) or any(len(width) > 4 for width in widths):
        raise Excess("it makes something too wide")
    filled = len(specs) * meter().size_of(values)
    meter().spend(len(text) + sum(map(int, widths)) + filled)


def joined(separator: Any, parts: Any) -> list[Any]:
    """The parts of a text to be joined, as a list, after its size was looked at."""
    listed = list(parts)
    meter().spend(meter().size_of(listed) + len(listed) * meter().size_of(separator))
    return listed


def check_replace(text: Any, old: Any, new: Any, *more: Any) -> None:
    """Look at ``text.replace(old, new)`` before it is done."""
    count = text.count(old) if isinstance(text, bytes) else str(text).count(str(old))
    meter().spend(meter().size_of(text) + count * meter().size_of(new))


def check_indent(text: Any, width: Any = 4, *more: Any) -> None:
    """Look at the ``indent`` filter before it is applied."""
    wide = len(width) if isinstance(width, str) else int(width)
    meter().spend((str(text).count("\n") + 1) * wide)


def check_call(function: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Look at a call before it is done; returns the arguments to do it with."""
    owner: Any = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if isinstance(owner, int) and name == "to_bytes":
        raise Excess("it makes something too wide")
    if not isinstance(owner, str | bytes):
        return args
    meter().spend(len(owner) // 100)
    check_width(*args)
    if name == "translate":
        raise Excess("it translates text letter by letter")
    if name == "expandtabs":
        meter().spend(len(owner) * max([8, *(value for value in args if isinstance(value, int))]))
    elif name == "replace":
        check_replace(owner, *args)
    elif name == "join":
        return (joined(owner, *args),)
    return args
