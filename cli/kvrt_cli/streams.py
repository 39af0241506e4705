"""The standard streams of the process, as whoever started it left them: some may be closed."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO


def fill_closed() -> bool:
    """Put a stream to nowhere where standard output or error is closed.

    Python has None for them then. Their descriptors, and that of standard input, are filled too:
    the next file that is opened would take the place, and what a library prints would be written
    into it.

    Returns:
        True if standard output was closed, so that no answer can be given.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    without_output = sys.stdout is None
    if without_output:
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    return without_output


def replace_what_cannot_be_encoded() -> None:
    """Print a question mark for a character that the encoding of a stream lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def discard(*streams: TextIO) -> None:
    """Point streams that cannot be written at nothing, so that their flush at exit cannot fail."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with suppress(io.UnsupportedOperation):  # no file at all, as under a test
            os.dup2(nothing, stream.fileno())
    os.close(nothing)
