"""Reading JSON that came from somewhere else: bounded, typed, and blamed on the right field."""

import itertools
import json
import math
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvrt.errors import ModelError
from kvrt.model.files.foreign import PEEK, told_by_first_bytes

LIMIT = 1 << 20
"""Bytes of JSON that are parsed: six times what a model of 400 billion parameters needs for its
list of tensors. A megabyte of hostile JSON becomes less than 64 MB of Python objects."""

INFINITY = {"__float__": "Infinity"}
"""As transformers writes it."""


def open_regular(path: Path, *, expected: bytes = b"") -> int:
    """A file descriptor of a regular file, for reading.

    Args:
        expected: first bytes that make it no stranger here.

    Raises:
        ModelError: there is no such file, it cannot be read, or it is a pipe, a device or a folder
            (opening those could block, or never end); or its first bytes say that it is something
            else, as a Git LFS pointer.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ModelError(
            f"{path}: no such file", fix="check that the model's folder is complete"
        ) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ModelError(f"{path}: is not a regular file")
    first = os.pread(fd, PEEK, 0)
    known = expected and first.startswith(expected)
    if not known and (stranger := told_by_first_bytes(path, first)):
        os.close(fd)
        raise stranger
    return fd


def read_text(path: Path, limit: int = LIMIT) -> str:
    """The text of a UTF-8 file of at most `limit` bytes.

    Raises:
        ModelError: the file is missing, not a regular file, too large, or not UTF-8.
    """
    with open(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ModelError(f"{path}: is larger than the {limit:,} bytes that are accepted")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: is not UTF-8 at byte {error.start}") from None


def read_object(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: as `read_text`, or the text is not one JSON object.
    """
    return parse_object(read_text(path, limit), str(path))


def parse_object(text: str, source: str, *, unique_keys: bool = False) -> dict[str, Any]:
    """The JSON object in `text`; `source` names it in errors.

    Args:
        unique_keys: refuse an object that has a key twice, which JSON itself leaves open.
    """
    hook = _without_repeats if unique_keys else None
    try:
        value = json.loads(text, parse_int=_parse_int, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ModelError(
            f"{source}: is not valid JSON: {reason}", fix="download or copy the file again"
        ) from None
    if not isinstance(value, dict):
        raise ModelError(f"{source}: holds a JSON {type(value).__name__}, not an object")
    return value


def _parse_int(text: str) -> int | float:
    # Python refuses to parse more than 4300 digits. As a float the value stays out of every range,
    # and the error can name its field.
    return int(text) if len(text) <= 40 else float(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {shown(key)} appears twice")
        result[key] = value
    return result


def shown(value: object) -> str:
    """A value as an error message quotes it: on one line, and short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def few(things: Collection[object]) -> str:
    """The first three of some things, each as `shown`, and how many more there are."""
    first = ", ".join(shown(thing) for thing in itertools.islice(things, 3))
    return first + (f" and {len(things) - 3} more" if len(things) > 3 else "")


class Fields:
    """The fields of one JSON object, each read with its type and range checked.

    A reader without a default raises `ModelError` if the field is missing; every reader does if the
    value is not what it should be, null included: ask `has` first where null says something.

    Args:
        source: the file, for errors.
        values: the object.
        prefix: where in the file the object is, e.g. ``rope_scaling.``
        missing: what to do where a field is missing.
    """

    def __init__(
        self,
        source: str,
        values: Mapping[str, Any],
        prefix: str = "",
        *,
        missing: str = "use the config.json the model came with",
    ) -> None:
        self._source = source
        self._values = values
        self._prefix = prefix
        self._missing = missing

    def __contains__(self, name: str) -> bool:
        """Whether the field is there, null or not."""
        return name in self._values

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def error(self, name: str, reason: str, *, fix: str = "") -> ModelError:
        """The error to raise about a field, with a reason that completes "config.json: field"."""
        return ModelError(f"{self._source}: {self._prefix}{name} {reason}", fix=fix)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._unfit(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self._get(name, default)
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        if not fits or not math.isfinite(value) or not low <= value <= high:
            raise self._unfit(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._unfit(name, value, "true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._unfit(name, value, "a string")
        return value

    def items(self, name: str, kind: type, default: Sequence[Any] | None = None) -> list[Any]:
        """A list whose items are all of type `kind`."""
        value = self._get(name, default)
        # bool is a subclass of int, and true is not a number in JSON.
        if not isinstance(value, list | tuple) or any(type(item) is not kind for item in value):
            raise self._unfit(name, value, f"a list of {kind.__name__}")
        return list(value)

    def numbers(self, name: str, low: float, high: float) -> list[float]:
        """A list of numbers; infinity may be one."""
        value = self._get(name, None)
        expected = f"a list of numbers from {low:g} to {high:g}"
        if not isinstance(value, list):
            raise self._unfit(name, value, expected)
        value = [math.inf if item == INFINITY else item for item in value]
        for item in value:
            fits = isinstance(item, int | float) and not isinstance(item, bool)
            if not fits or not low <= item <= high:
                raise self._unfit(name, value, expected)
        return [float(item) for item in value]

    def holds_object(self, name: str) -> bool:
        """Whether the field is a JSON object, so that `section` can read it."""
        return isinstance(self._values.get(name), dict)

    def holds_list(self, name: str) -> bool:
        """Whether the field is a list, so that `items` can read it."""
        return isinstance(self._values.get(name), list)

    def holds_text(self, name: str) -> bool:
        """Whether the field is a string."""
        return isinstance(self._values.get(name), str)

    def section(self, name: str) -> "Fields":
        value = self._get(name, None)
        if not isinstance(value, dict):
            raise self._unfit(name, value, "an object")
        return Fields(self._source, value, f"{self._prefix}{name}.")

    def names(self) -> list[str]:
        return list(self._values)

    def values(self) -> Mapping[str, Any]:
        """All of them, unchecked."""
        return self._values

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None and name not in self._values:
            raise self.error(name, "is missing", fix=self._missing)
        return value

    def _unfit(self, name: str, value: object, expected: str) -> ModelError:
        return self.error(
            name, f"is {'null' if value is None else shown(value)}; expected {expected}"
        )


def read_list(path: Path) -> Iterator[Fields]:
    """The objects that a JSON file is a list of; what is none has no fields.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        listed: Any = json.loads(read_text(path))
    except (ValueError, RecursionError):
        listed = None
    for number, each in enumerate(listed if isinstance(listed, list) else ()):
        yield Fields(str(path), each if isinstance(each, dict) else {}, f"{number}.")
