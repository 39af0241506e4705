"""Sizes in bytes, and times, as people write and read them."""

import re

from kvrt.errors import ConfigError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "kib": KIB,
    "m": 10**6, "mb": 10**6, "mib": MIB,
    "g": 10**9, "gb": 10**9, "gib": GIB,
    "t": 10**12, "tb": 10**12, "tib": 1 << 40,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0,
            "d": 86_400.0}  # fmt: skip
_TIME = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ns|us|µs|ms|s|m|h|d)")


def parse_bytes(text: str, *, whole: int = 0) -> int:
    """``512MiB``, ``4 GiB``, ``1.5g`` or plain bytes; also ``50%`` of `whole`, if that is given.

    Raises:
        ConfigError: `text` is none of these.
    """
    if text.strip().endswith("%") and whole:
        try:
            share = float(text.strip()[:-1])
        except ValueError:
            share = -1.0
        if 0 < share <= 100:
            return int(whole * share / 100)
        raise ConfigError(f"{text!r} is not a percentage above 0 and at most 100")
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _UNITS or len(match[1]) > 30:
        raise ConfigError(
            f"{text!r} is not a size in bytes", fix="write it as 4GiB, 512MiB, 4GB or plain bytes"
        )
    return int(float(match[1]) * _UNITS[match[2].lower()])


def format_bytes(nbytes: int) -> str:
    """``1536`` as ``1.5 KiB``: three digits or more, the largest unit that leaves at least one."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1023.5 or unit == "TiB":  # what is more would round to 1024
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 100 else f"{value:.3g} {unit}"


def parse_seconds(text: str) -> float:
    """``500ms``, ``5m``, ``1h30m`` or plain seconds; with a minus before it, negative.

    Raises:
        ConfigError: `text` is none of these.
    """
    said = text.strip()
    sign, said = (-1.0, said[1:]) if said.startswith("-") else (1.0, said)
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", said):
        return sign * float(said)
    parts = _TIME.findall(said)
    if not parts or "".join(number + unit for number, unit in parts) != said:
        raise ConfigError(
            f"{text!r:.60} is not a time", fix="write it as 500ms, 30s, 5m, 1h30m or plain seconds"
        )
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in parts)
