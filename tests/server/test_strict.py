"""What an answer may say in which calls of strict functions are held to their schemas."""

import json
from typing import Any

import llguidance
import pytest

from kvrt.dialect.marks import Calls, Dialect
from kvrt.server.words.strict import held_calls, holds
from kvrt.structured.grammar import compiled, written

CALLS = Calls(kind="json", trigger="<tool_call>", name=("name",), arguments=("arguments",))
DAY: dict[str, Any] = {
    "type": "object",
    "description": "Of the form a ::= b; see http://x/y",
    "properties": {"day": {"$ref": "#/$defs/Day"}},
    "required": ["day"],
    "additionalProperties": False,
    "$defs": {"Day": {"enum": [1, 2]}},
}
FREE = {"type": "object", "properties": {"x": {"type": "integer"}}}
SCHEMAS = {"ask": DAY, 'sägé "it"::=': DAY, "free": FREE}
TOKENIZER = llguidance.LLTokenizer("byte")


def may_be_said(
    text: str, calls: Calls = CALLS, *, several: bool = True, whole: bool = True
) -> bool:
    held = held_calls(calls, SCHEMAS, SCHEMAS.keys() - {"free"}, several=several)
    matcher = compiled(written(held), TOKENIZER)
    data = text.encode()
    return matcher.try_consume_tokens(list(data)) == len(data) and (
        matcher.is_accepting() or not whole
    )


def call(name: str = "ask", trigger: str = "<tool_call>", **arguments: object) -> str:
    said = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"{trigger}\n{said}\n</tool_call>"


@pytest.mark.parametrize("name", ["ask", 'sägé "it"::='])
def test_calls_are_held_and_all_else_is_free(name: str) -> None:
    for text in ("", "Grüße", "a <tool_cal", "<tool>{}", "<<tool_cal>>\n\n{", call(name, day=1),
                 f"well{call(name, day=2)} and {call(name, day=1)}\nso", call("free", x="no", y=1),
                 '<tool_call>{"name":"ask","arguments":{"day":1}}'):  # fmt: skip
        assert may_be_said(text), text
    for text in (call(name, day=3), call(name), call(name, day=1, more=2), call("other", day=1),
                 "<tool_call> nothing", f"{call(name, day=1)}{call(name, day=7)}",
                 '<tool_call>{"arguments": {}}'):  # fmt: skip
        assert not may_be_said(text, whole=False), text


def test_one_call_is_all_where_no_more_are_wanted() -> None:
    assert may_be_said(f"a{call(day=1)}b", several=False)
    assert not may_be_said(f"a{call(day=1)}b{call(day=1)}", several=False, whole=False)


@pytest.mark.parametrize("trigger", ["[CALL]/", "a.b*(c)?|", "\\d\n<x>", '"quoted"', "функция"])
def test_what_begins_a_call_is_taken_as_it_is(trigger: str) -> None:
    calls = Calls(kind="json", trigger=trigger, name=("n",), arguments=("a",))
    good = f'so {trigger}{{"n": "ask", "a": {{"day": 1}}}}'
    assert may_be_said(good, calls)
    assert not may_be_said(good.replace("1", "9"), calls, whole=False)


def test_other_ways_to_write_calls_are_not_held() -> None:
    assert holds(Dialect(CALLS), frozenset({"<s>"}))
    for dialect in (
        Dialect(),
        Dialect(Calls(kind="json", trigger="", name=("n",), arguments=("a",))),
        Dialect(Calls(kind="json", trigger="<c>", arguments=())),
        Dialect(Calls(kind="json", trigger="<c>", name=("f", "n"), arguments=("f", "a"))),
        Dialect(Calls(kind="named", trigger="<c>")),
    ):
        assert not holds(dialect, frozenset())
    assert not holds(Dialect(CALLS), frozenset({"<tool_call>"})), "it is never seen as text"
