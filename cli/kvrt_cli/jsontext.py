"""JSON as every program reads it."""

import json
import math
from collections.abc import Mapping


def to_json(value: object, *, indent: int | None = None, ascii_only: bool = True) -> str:
    """A value as JSON. It has no infinities and no NaN: they become null.

    Raises:
        TypeError: JSON has no such values at all.
    """
    return json.dumps(_finite(value), ensure_ascii=ascii_only, indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case _:
            return value
