"""What callers may give for an argument: its type and its range.

Arguments are checked by tables from their names to checks, such as `kvrt.sampling.PARAMS` and
`kvrt.config.OPTIONS`. A check returns the value as the type that the rest of kvrt expects: numpy's
numbers become Python's. What it says of a wrong one quotes no text, which may be somebody's prompt.
"""

import contextlib
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kvrt.errors import ConfigError, RequestError
from kvrt.units import GIB, parse_bytes


class Wrong(ValueError):
    """A value cannot be used.

    Args:
        reason: how a sentence goes on that begins with the argument's name.
        fix: what to do about it.
    """

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.fix = fix


class Check(Protocol):
    def __call__(self, value: object) -> Any:
        """The value, as kvrt wants it. Raises `Wrong`."""


Checks = Mapping[str, Check]


def check_request(checks: Checks, **values: object) -> dict[str, Any]:
    """What a request says, or a `RequestError` for the first value that is wrong."""
    return _check(checks, values, lambda name, text, fix: RequestError(text, param=name, fix=fix))


def check_options(checks: Checks, **values: object) -> dict[str, Any]:
    """What all others say, or a `ConfigError` for the first value that is wrong."""
    return _check(checks, values, lambda _, text, fix: ConfigError(text, fix=fix))


class _MakeError(Protocol):
    def __call__(self, name: str, text: str, fix: str, /) -> Exception: ...


def _check(checks: Checks, values: Mapping[str, object], error: _MakeError) -> dict[str, Any]:
    checked = {}
    for name, value in values.items():
        try:
            checked[name] = checks[name](value)
        except Wrong as wrong:
            raise error(name, f"{name} {wrong}", wrong.fix) from None
    return checked


def shown(value: object) -> str:
    """A value for a message: a number as it is, anything else by its type."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, float):
        return repr(float(value))  # of numpy's, too
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 128 else f"{value.bit_length()} bits long"
    return f"a {type(value).__name__}"


def as_index(value: object) -> int | None:
    """A whole number of any library as an `int`; None if it is none, as a `bool` is."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    if getattr(value, "ndim", 0):  # torch takes a tensor of one element for a number
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def __call__(self, value: object) -> int:
        number = as_index(value)
        if number is None or not self.low <= number <= self.high:
            span = f"from {self.low} to {self.high}"
            raise Wrong(f"is {shown(value)}; it must be a whole number {span}")
        return number


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`; `above`: greater than `low`."""

    low: float
    high: float
    above: bool = False

    def __call__(self, value: object) -> float:
        number = math.nan
        if isinstance(value, numbers.Real) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # whole numbers go beyond floats
                number = float(value)
        if not self.low <= number <= self.high or (self.above and number == self.low):
            span = f"above {self.low:g}, at most" if self.above else f"from {self.low:g} to"
            raise Wrong(f"is {shown(value)}; it must be a number {span} {self.high:g}")
        return number


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def __call__(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Wrong(f"is {shown(value)}; it must be true or false")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some names."""

    names: tuple[str, ...]

    def __call__(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            what = f"{value!r:.60}" if isinstance(value, str) else shown(value)
            raise Wrong(f"is {what}", f"use one of {', '.join(self.names)}")
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """A text of 1 to `most` characters."""

    most: int = 4096

    def __call__(self, value: object) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= self.most:
            size = f"has {len(value)} characters" if isinstance(value, str) else ""
            raise Wrong(
                f"{size or f'is {shown(value)}'}; it must be a text of 1 to {self.most} characters"
            )
        return value


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of at most `count` texts of 1 to `most` characters, or one of them."""

    count: int
    most: int

    def __call__(self, value: object) -> tuple[str, ...]:
        items = (value,) if isinstance(value, str) else items_of(value)
        return _each(Text(self.most), items, self.count)


@dataclass(frozen=True, slots=True)
class Wholes:
    """A list of at most `count` whole numbers from `low` to `high`."""

    count: int
    low: int
    high: int

    def __call__(self, value: object) -> tuple[int, ...]:
        return _each(Whole(self.low, self.high), items_of(value), self.count)


@dataclass(frozen=True, slots=True)
class Biases:
    """Numbers from `low` to `high` for at most `count` token ids, as a mapping or as pairs.

    They become pairs. An id may be written in digits, since JSON has no other keys.
    """

    count: int
    low: float
    high: float

    def __call__(self, value: object) -> tuple[tuple[int, float], ...]:
        pairs = value.items() if isinstance(value, Mapping) else items_of(value)
        if len(pairs) > self.count:
            raise Wrong(f"has {len(pairs)} entries; it may have {self.count}")
        biases: dict[int, float] = {}
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise Wrong(f"has {shown(pair)}; it must have pairs of a token id and a number")
            token, bias = pair
            if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11:
                token = int(token)
            try:
                biases[Whole(0, 2**31 - 1)(token)] = Number(self.low, self.high)(bias)
            except Wrong as wrong:
                raise Wrong(f"has an entry that {wrong}") from None
        return tuple(biases.items())


@dataclass(frozen=True, slots=True)
class Folder:
    """A path, with ``~`` for a home."""

    def __call__(self, value: object) -> Path:
        if not isinstance(value, str | Path) or not str(value):
            raise Wrong(f"is {shown(value)}; it must be a path")
        if "\0" in str(value):
            raise Wrong("has a null character, which no path has")
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise Wrong("begins with the home of a user that this system does not know") from None


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, at least 1; or a text such as ``4GiB``, or ``50%`` of something that is known later.

    Numbers become `int`, texts stay.
    """

    def __call__(self, value: object) -> int | str:
        if isinstance(value, str):
            try:
                parse_bytes(value, whole=GIB)
            except ConfigError:
                wanted = "it must be a size such as 4GiB, 512MB or 50%"
                raise Wrong(f"is {value!r:.60}; {wanted}") from None
            return value
        number = as_index(value)
        if number is None or not 1 <= number < 2**62:
            form = "a whole number of bytes, at least 1, or a text such as 4GiB"
            whole = isinstance(value, float) and value.is_integer()
            fix = f"write {int(value)}" if whole else ""  # type: ignore[call-overload]
            raise Wrong(f"is {shown(value)}; it must be {form}", fix)
        return number


@dataclass(frozen=True, slots=True)
class Of:
    """A value of one of some types, or of their subclasses."""

    types: tuple[type, ...]
    fix: str = ""

    def __call__(self, value: object) -> Any:
        if not isinstance(value, self.types):
            names = " or ".join(kind.__name__ for kind in self.types)
            raise Wrong(f"is {shown(value)}; it must be a {names}", self.fix)
        return value


@dataclass(frozen=True, slots=True)
class Maybe:
    """None, or what another check takes."""

    check: Check

    def __call__(self, value: object) -> Any:
        return None if value is None else self.check(value)


def items_of(value: object) -> Sequence[object]:
    """What is in a list, a tuple, or an array or tensor of one dimension. Raises `Wrong`."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        return value.tolist()  # type: ignore[no-any-return]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray | memoryview):
        raise Wrong(f"is {shown(value)}; it must be a list")
    return value


def _each(check: Check, items: Sequence[object], count: int) -> tuple[Any, ...]:
    if len(items) > count:
        raise Wrong(f"has {len(items)} entries; it may have {count}")
    checked = []
    for place, item in enumerate(items):
        try:
            checked.append(check(item))
        except Wrong as wrong:
            raise Wrong(f"{place} {wrong}") from None
    return tuple(checked)
