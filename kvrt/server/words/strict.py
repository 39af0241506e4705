"""Calls of strict functions, where the model decides whether it calls any: what it says is free,
and held to the functions' schemas behind what begins a call.

    start: (head call)* rest          head ends with the dialect's trigger, and rest has none
    call:  {"name": "f", "arguments": what f's schema allows}

Of the ways to write calls, that is possible for JSON objects behind a trigger that is no special
token: those are not seen as text.
"""

import json
import re
from collections.abc import Mapping, Set
from importlib.util import find_spec
from typing import Any

from kvrt.dialect.events import Tools
from kvrt.dialect.marks import Calls, Dialect
from kvrt.structured.constraint import Constraint

GUIDANCE: Mapping[str, Any] = {"whitespace_pattern": r" |\r?\n[ \t]{0,40}", "lenient": False}


def holds(dialect: Dialect, special: Set[str]) -> bool:
    """Whether calls of a dialect can be held to schemas.

    Args:
        special: texts of special tokens.
    """
    calls = dialect.calls
    return (
        calls is not None
        and calls.kind == "json"
        and len(calls.name) == len(calls.arguments) == 1
        and bool(calls.trigger)
        and not any(text in calls.trigger for text in special)
        and find_spec("llguidance") is not None
    )


def held_calls(calls: Calls, schemas: Tools, strict: Set[str], *, several: bool) -> Constraint:
    """What an answer is held to.

    Args:
        schemas: of all functions, by their names.
        strict: those whose arguments are held to theirs; of others they are any object.
        several: there may be more calls than one.

    Raises:
        RequestError: it is too much.
    """
    (name,), (arguments,) = calls.name, calls.arguments
    trigger = re.escape(calls.trigger).replace("/", r"\/").replace("\\\n", r"\n")
    rules = [
        _call(name, arguments, each, schema if each in strict else {"type": "object"})
        for each, schema in schemas.items()
    ]
    lines = [
        f"start: (head call){'*' if several else '?'} REST",
        f"head[lazy]: /(?s:.*){trigger}/",
        f"REST: /(?s:.*)/ & ~/(?s:.*){trigger}(?s:.*)/",
        f"call: W? ({' | '.join(f'call_{number}' for number in range(len(rules)))})",
        *(f"call_{number}: {rule}" for number, rule in enumerate(rules)),
        r"W: /[ \t\r\n]{1,40}/",
    ]
    told = "\n".join(lines)
    return Constraint.grammar(told.replace("::=", r"\u003a:="))  # which is of another language


def _call(name: str, arguments: str, function: str, schema: Mapping[str, Any]) -> str:
    """One function's."""
    open, colon, comma = (_text(mark) for mark in "{:,")
    keys = [_text(json.dumps(each, ensure_ascii=False)) for each in (name, function, arguments)]
    held = json.dumps({**schema, "x-guidance": GUIDANCE}, ensure_ascii=False)
    return (
        f"{open} W? {keys[0]} W? {colon} W? {keys[1]} W? {comma} W? {keys[2]} W? {colon} W?"
        f" %json {held} W? {_text('}')}"
    )


def _text(said: str) -> str:
    """As the grammar has it."""
    return json.dumps(said, ensure_ascii=False)
