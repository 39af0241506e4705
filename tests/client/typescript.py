"""The types of `clients/typescript`, made of those of `kvrt.client`.

python -m tests.client.typescript
"""

import inspect
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from kvrt.client import standing, words

FILE = Path(__file__).parents[2] / "clients/typescript/src/types.ts"
HEAD = "// What comes back. Made of the types of kvrt.client: python -m tests.client.typescript\n"
PLAIN = {int: "number", float: "number", str: "string", bool: "boolean", type(None): "null",
         Any: "unknown"}  # fmt: skip


def structs() -> list[type[msgspec.Struct]]:
    """In the order of the modules."""
    return [
        each
        for module in (words, standing)
        for each in vars(module).values()
        if inspect.isclass(each)
        and issubclass(each, msgspec.Struct)
        and each.__module__ == module.__name__
    ]


def written(kind: Any) -> str:
    """A type in TypeScript."""
    if kind in PLAIN:
        return PLAIN[kind]
    inner = get_args(kind)
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        return " | ".join(written(each) for each in inner if each is not msgspec.UnsetType)
    if origin is Literal:
        return " | ".join(map(json.dumps, inner))
    if origin is list:
        return f"readonly {written(inner[0])}[]"
    if origin is dict:
        return f"Readonly<Record<{written(inner[0])}, {written(inner[1])}>>"
    assert issubclass(kind, msgspec.Struct), kind
    return kind.__name__


def interfaces() -> Iterator[str]:
    for each in structs():
        told = (each.__doc__ or "").splitlines()[0]
        yield f"\n/** {told} */\nexport interface {each.__name__} {{\n"
        for name, kind in get_type_hints(each).items():
            missing = msgspec.UnsetType in get_args(kind)
            yield f"  readonly {name}{'?' * missing}: {written(kind)};\n"
        yield "}\n"


def made() -> str:
    return HEAD + "".join(interfaces())


if __name__ == "__main__":
    FILE.write_text(made())
