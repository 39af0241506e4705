"""Templates that people's models have: the calls of each that declares tools are read.

Beside a few calls of every kind, those of the Berkeley Function Calling Leaderboard: its functions
are the tools, its questions are asked, and a model that follows its template calls as it should.
`ci/clients` fetches both.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dialect.scripted import CALLS, Said, Script, called

pytestmark = [pytest.mark.extra, pytest.mark.timeout(1800)]

FOLDER = os.environ.get("CHAT_TEMPLATES")
"""Of templates of models, such as llama.cpp's models/templates."""

UNSHOWN = {"LFM2-8B-A1B", "LFM2.5-Instruct"}
"""They list tools, and show no call."""
ONLY_TOLD = {"ibm-granite-granite-3.3-2B-Instruct"}
"""They tell in words what a call begins with."""
REFUSED = {"Kimi-K2-Instruct", "Kimi-K2-Thinking", "llama-cpp-deepseek-r1"}
"""They change lists, or join texts to data, which fails before there is a call."""
NAMED_TAGS = {"MiniMax-M3"}
"""They write arguments in tags of their own names: not read, so tools are refused."""
UNESCAPED = {"LFM2.5-8B-A1B"}
"""They write texts without escapes, so that a quote ends them."""


@functools.cache
def declaring() -> list[Path]:
    """The templates that know of tools."""
    if FOLDER is None:
        pytest.skip("CHAT_TEMPLATES names no folder of *.jinja")
    paths = sorted(Path(FOLDER).glob("*.jinja"))
    found = [path for path in paths if re.search(r"\btools\b", path.read_text())]
    assert len(found) > 40
    return found


def test_the_calls_of_every_template_that_declares_tools_are_read() -> None:
    for path in declaring():
        script = Script(path.read_text())
        if path.stem in UNSHOWN | REFUSED | NAMED_TAGS:
            assert script.dialect.calls is None, path.stem
            continue
        if script.dialect.calls is None:
            assert "tool_calls" not in path.read_text() or not script.calls(CALLS[0]), path.stem
            continue
        read = 0
        for calls in CALLS:
            text = _told(calls) if path.stem in ONLY_TOLD else script.calls(calls)
            if text is None or (path.stem in UNESCAPED and "\\" in json.dumps(calls)):
                continue
            one = len(re.findall("get_weather|take_note", text)) < len(calls)
            for size in (1, 10_000):
                found = called(script.read(text, size, thinking=_opened(script, text)))
                assert found == (calls[:1] if one else calls), path.stem
                read += 1
        assert read >= 6, path.stem


LEADERBOARD = os.environ.get("BFCL")
"""Its folder of data."""
KINDS = ("simple_python", "multiple", "parallel")
EACH = 25
"""Entries of each kind, evenly among all."""
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
"""The leaderboard's words for types, and JSON schema's."""


@functools.cache
def entries() -> list[tuple[dict[str, Any], list[dict[str, Any]], list[Said]]]:
    """What is asked, the tools that there are, and what should be called."""
    if LEADERBOARD is None:
        pytest.skip("BFCL names no folder of the leaderboard's data")
    found = []
    for kind in KINDS:
        asked, right = (
            [json.loads(line) for line in (Path(LEADERBOARD) / name).read_text().splitlines()]
            for name in (f"BFCL_v4_{kind}.json", f"possible_answer/BFCL_v4_{kind}.json")
        )
        answers = {each["id"]: each["ground_truth"] for each in right}
        for entry in asked[:: len(asked) // EACH]:
            tools = [
                {"type": "function", "function": {**tool, "name": _name(tool["name"]),
                                                  "parameters": _typed(tool["parameters"])}}
                for tool in entry["function"]
            ]  # fmt: skip
            calls = [
                (_name(name), dict(_chosen(arguments)))
                for call in answers[entry["id"]]
                for name, arguments in call.items()
            ]
            found.append((entry["question"][0][-1], tools, calls))
    return found


def _name(name: str) -> str:
    """As OpenAI's interface has it, which knows no dots."""
    return name.replace(".", "_")


def _typed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_typed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    own = {"type": TYPES.get(kind, kind)} if isinstance(kind, str) else {}
    return {name: _typed(value) for name, value in schema.items()} | own


def _chosen(arguments: dict[str, list[Any]]) -> Iterator[tuple[str, Any]]:
    """Of each argument, the first value that is right; none if it may be left out."""
    for name, values in arguments.items():
        if values[0] != "":
            first = values[0]
            yield name, dict(_chosen(first)) if isinstance(first, dict) else first


def test_calls_of_the_leaderboard_are_read_by_every_template() -> None:
    wrong: dict[str, list[Any]] = {}
    read = 0
    for path in declaring():
        script = Script(path.read_text())
        if script.dialect.calls is None or path.stem in ONLY_TOLD | UNESCAPED:
            continue
        for asked, tools, calls in entries():
            script.ask(asked, tools)
            text = script.calls(calls)
            if text is None:
                continue
            one = sum(map(text.count, {name for name, _ in calls})) < len(calls)
            found = called(script.read(text, 7, thinking=_opened(script, text)))
            read += 1
            if found != (calls[:1] if one else calls):
                wrong.setdefault(path.stem, []).append((text, found, calls))
    assert read > 40 * len(entries()) / 2
    assert not wrong, {name: (len(each), each[0]) for name, each in wrong.items()}


def _told(calls: list[Said]) -> str:
    listed: list[Any] = [{"name": name, "arguments": args} for name, args in calls]
    return f"<|tool_call|>{json.dumps(listed)}"


def _opened(script: Script, text: str) -> bool:
    reasoning = script.dialect.reasoning
    return reasoning is not None and script.thinks and reasoning.end in text
