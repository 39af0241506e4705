"""The prompt of `kvrt run`: words of the command line, standard input, or both."""

import codecs
import os
import select
import stat
import sys
from collections.abc import Sequence

from kvrt.errors import RequestError
from kvrt_cli.terminal import Terminal

DASH = "-"
PATIENCE_S = 1.0
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
"""Encodings by the byte-order mark a file begins with; that of UTF-32 begins with UTF-16's."""


def read_prompt(words: Sequence[str], terminal: Terminal) -> str | None:
    """What the user asks: standard input first, then the words, with a newline between.

    Standard input is read if it is a pipe or a file, or if one of the words is ``-``.

    Returns:
        The prompt; None if there are no words and standard input is a terminal or nothing
        (``/dev/null``, or closed).

    Raises:
        RequestError: the prompt is empty, or not the text its encoding says,
            or asked of an input that is closed.
    """
    said = " ".join(word for word in words if word != DASH)
    if DASH in words or _is_redirected():
        data, encoding = without_mark(read_stdin(terminal))
        piped = decode(data, "standard input", encoding)
    elif words:
        piped = ""
    else:
        return None
    between = "\n" if piped and said and not piped.endswith("\n") else ""
    prompt = piped + between + said
    if not prompt:
        raise RequestError("the prompt is empty", param="prompt", fix="give some text")
    return valid_text(prompt, "the prompt")


def read_stdin(terminal: Terminal) -> bytes:
    """All of standard input.

    Raises:
        RequestError: it is closed.
    """
    if sys.stdin is None:
        raise RequestError(
            "standard input is closed", param="prompt", fix="</dev/null is one that is empty"
        )
    if _is_silent_pipe():
        terminal.note("reading standard input until it ends; </dev/null gives none")
    return sys.stdin.buffer.read()


def without_mark(data: bytes) -> tuple[bytes, str]:
    """The bytes after the byte-order mark, and the encoding it says; without one, UTF-8."""
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return data.removeprefix(mark), encoding
    return data, "utf-8"


def decode(data: bytes, what: str, encoding: str = "utf-8") -> str:
    """Bytes as text.

    Raises:
        RequestError: they do not mean any; the message has the offset of the first bad byte.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        bad = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise RequestError(
            f"{what} is not {encoding.upper()}: {bad}",
            param="prompt",
            fix="convert it first, e.g. with iconv -f LATIN1 -t UTF-8",
        ) from None


def valid_text(text: str, what: str) -> str:
    """What the command line or the terminal gave, as the UTF-8 that it is.

    Python hides bytes that the locale's encoding lacks, all beyond ASCII if that is ``C``, in lone
    surrogates.

    Raises:
        RequestError: it is not UTF-8.
    """
    return decode(os.fsencode(text), what) if _has_surrogates(text) else text


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _is_redirected() -> bool:
    if sys.stdin is None or sys.stdin.isatty():
        return False
    try:
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError):  # not a file at all, as under a test
        return True


def _is_silent_pipe() -> bool:
    """True if nothing came for a while, so that the user should know what is waited for."""
    try:
        return not select.select([sys.stdin.fileno()], [], [], PATIENCE_S)[0]
    except (OSError, ValueError):
        return False


def given_texts(terminal: Terminal, texts: Sequence[str]) -> list[str]:
    """Texts of the command line, or, where there are none, the lines of standard input.

    Raises:
        click.UsageError: one is not valid Unicode.
    """
    if texts:
        return [valid_text(text, "a text") for text in texts]
    data, encoding = without_mark(read_stdin(terminal))
    return decode(data, "standard input", encoding).splitlines()
