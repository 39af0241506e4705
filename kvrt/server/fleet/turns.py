"""How long a thread has the interpreter while others wait for it.

A step of an engine takes the interpreter again after each operator, a dozen times and more. While
another thread runs Python, which loading does a lot of, each of these waits is as long as Python's
switch interval, 5 ms. Turns are short only while a model comes, since they cost a server's streams
some of their rate: 0.86 and 0.91 of the embedded one were measured, in place of 1.06 and 1.07.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SHORT_S = 0.0005

_gate = threading.Lock()
_count = 0
_usual = 0.0


@contextmanager
def short_turns() -> Iterator[None]:
    """For as long as anybody wants them."""
    global _count, _usual
    with _gate:
        if not _count:
            _usual = sys.getswitchinterval()
            sys.setswitchinterval(SHORT_S)
        _count += 1
    try:
        yield
    finally:
        with _gate:
            _count -= 1
            if not _count:
                sys.setswitchinterval(_usual)
