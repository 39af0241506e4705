"""Patterns of a tokenizer.json that the library must not be given.

Its regular expressions are Oniguruma's. Those may call a group, ``\\g<name>``, and a call is
compiled as a copy of the group: thirty groups that each call the next one twice take minutes of a
thread that cannot be interrupted. No tokenizer needs that.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from kvrt.errors import ModelError
from kvrt.model.files.jsonfile import shown

_WRITTEN = re.compile(rb"(?:\\\\|\\u005[cC])(?:g|\\u0067)(?:[<']|\\u003[cC]|\\u0027)")
"""A call as JSON may write it. Where there is none, which is nearly always, nothing is parsed."""

_ESCAPES = re.compile(r"\\g[<']|\\.", re.DOTALL)


def check_patterns(data: bytes, path: Path) -> None:
    """Refuse a tokenizer.json in which a pattern calls a group.

    Args:
        data: the file's.
        path: names it.

    Raises:
        ModelError: one does. What is wrong with the file otherwise is left to the library.
    """

    def look(pairs: list[tuple[str, Any]]) -> None:
        for key, value in pairs:
            if key == "Regex" and isinstance(value, str) and _calls(value):
                raise ModelError(
                    f"{path}: the pattern {shown(value)} calls a group (\\g), which can take for"
                    " ever to read",
                    fix="write the group out where it is called",
                )

    if _WRITTEN.search(data):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(data, object_pairs_hook=look, parse_int=float)


def _calls(pattern: str) -> bool:
    return any(len(found[0]) > 2 for found in _ESCAPES.finditer(pattern))
