"""Templates of every kind that there is: what they show is found out, and read in any pieces."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.dialect.derive import derive
from kvrt.dialect.events import Called, Content, Thought
from kvrt.dialect.marks import Calls, Dialect, Reasoning
from kvrt.dialect.plugins import find_reader
from kvrt.dialect.reader import DialectReader
from kvrt.errors import ConfigError
from tests.dialect.scripted import (
    CALLS,
    SCHEMAS,
    Script,
    called,
    content,
    templates,
    thoughts,
)
from tests.dialect.sources import SOURCES

STRANGE = {"Python": 5, "JSON without quotes": 5}
"""Calls that these templates write as Python or JSON would not: lists, as text."""


@pytest.fixture(scope="module")
def scripts() -> dict[str, Script]:
    return {name: Script(source) for name, (_, source) in SOURCES.items()}


@pytest.mark.parametrize("name", SOURCES)
def test_what_a_template_shows_of_calls_is_read_in_pieces_of_any_size(
    scripts: dict[str, Script], name: str
) -> None:
    script = scripts[name]
    assert script.dialect.calls is not None
    assert script.dialect.calls.kind == SOURCES[name][0]
    assert script.dialect.reasoning == Reasoning("<think>", "</think>")
    for calls in CALLS[: STRANGE.get(name)]:
        text = script.calls(calls)
        assert text is not None
        for size in (1, 2, 7, 10_000):
            events = script.read(text, size, thinking=False)
            assert called(events) == calls, text
            assert content(events) == ""


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "JSON alone"])
def test_reasoning_and_content_come_before_calls(scripts: dict[str, Script], name: str) -> None:
    script, calls = scripts[name], CALLS[0]
    begun = script.thinks
    text = script.calls(calls)
    assert text is not None
    opening = "" if begun else "<think>\n"
    said = f"{opening}Where is it?\n</think>\n\nLet me look.\n{text.lstrip()}"
    for size in (1, 3, 10_000):
        events = script.read(said, size, thinking=begun)
        assert thoughts(events) == "Where is it?"
        assert content(events) == "Let me look."
        assert called(events) == calls
    cut = script.read(f"{opening}Where", 1, thinking=begun)
    assert thoughts(cut) == "Where"


def test_arguments_of_json_are_given_out_while_they_come(scripts: dict[str, Script]) -> None:
    script = scripts["JSON between tags"]
    reader = DialectReader(script.dialect, SCHEMAS, thinking=False, special=frozenset())
    reader.push('<tool_call>\n{"name": "take_note", "arguments": {"text": "It')
    events = reader.push(" rains")
    assert [event.text for event in events] == [" rains"]  # type: ignore[union-attr]


def test_a_call_that_is_cut_off_is_a_call_with_what_came(scripts: dict[str, Script]) -> None:
    for name in ("JSON between tags", "a name in a tag"):
        script = scripts[name]
        text = script.calls(CALLS[0])
        assert text is not None
        events = script.read(text[: text.index("Par") + 3], 4)
        begun, *arguments = events
        assert begun == Called("get_weather")
        assert "".join(a.text for a in arguments) == '{"city": "Par'  # type: ignore[union-attr]


@pytest.mark.parametrize("name", SOURCES)
def test_an_answer_that_ends_before_a_call_has_a_name_is_content_to_the_last_letter(
    scripts: dict[str, Script], name: str
) -> None:
    text = scripts[name].calls(CALLS[0])
    assert text is not None
    text = text.lstrip()
    for length in range(1, len(text)):
        events = scripts[name].read(text[:length], 10_000, thinking=False)
        if any(isinstance(event, Called) for event in events):
            break
        assert content(events).strip() == text[:length].strip(), text[:length]
    assert length > 4


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_text_breaks_a_reader_and_text_without_marks_is_all_content(
    name: str, data: st.DataObject
) -> None:
    dialect = DIALECTS[name]
    others = ["{", "}", '"', "name", "get_weather", "\n", " ", "x", "[", "]", "</", ">", ":", "(",
              "\\", "é"]  # fmt: skip
    pieces = data.draw(st.lists(st.sampled_from([*dialect.marks, *others]), max_size=25))
    reader = DialectReader(dialect, SCHEMAS, thinking=False, special=frozenset())
    events = [event for piece in pieces for event in reader.push(piece)] + reader.end()
    text = "".join(pieces)
    if not any(mark[0] in text for mark in dialect.marks) and "{" not in text:
        assert content(events).strip() == text.strip()
    for event in events:
        assert not isinstance(event, Content | Thought) or event.text


DIALECTS = {name: derive(templates(source)) for name, (_, source) in SOURCES.items()}


def test_special_tokens_are_no_content() -> None:
    dialect = Dialect(Calls(kind="json", trigger="<c>", name=("n",), arguments=("a",)))
    reader = DialectReader(dialect, {}, thinking=False, special=frozenset({"<|eot|>"}))
    events = reader.push("So it is.<|eot|>") + reader.end()
    assert content(events) == "So it is."


def test_channels_are_headers_and_no_content() -> None:
    """As gpt-oss writes them."""
    dialect = Dialect(
        Calls(kind="named", trigger="to=functions.", before_name="to=functions.",
              before_arguments="<|message|>", tail=("<|call|>",)),
        Reasoning("analysis<|message|>", "<|end|>"),
        ("<|channel|>final<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
    )  # fmt: skip
    thought = "<|channel|>analysis<|message|>Where?<|end|><|start|>assistant"
    call = '<|channel|>commentary to=functions.take_note <|constrain|>json<|message|>{"text": "x"}'
    for size in (1, 5, 1000):
        for text, said, calls in (
            (f"{thought}<|channel|>final<|message|>Here.", "Here.", []),
            (thought + call, "", [("take_note", {"text": "x"})]),
        ):
            special = frozenset({"<|channel|>", "<|start|>", "<|end|>", "<|message|>"})
            reader = DialectReader(dialect, SCHEMAS, thinking=False, special=special)
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            events = [event for piece in pieces for event in reader.push(piece)] + reader.end()
            assert thoughts(events) == "Where?"
            assert content(events) == said
            assert called(events) == calls


def test_a_template_without_calls_or_reasoning_shows_neither() -> None:
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    assert derive(templates(plain)) == Dialect()
    told = plain + "{% if tools %} Answer with <|tool_call|> and a JSON list.{% endif %}"
    found = derive(templates(told)).calls
    assert found is not None
    assert (found.kind, found.trigger) == ("json", "<|tool_call|>")


def test_a_reader_of_another_package_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "shouting-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[kvrt.readers]\nloud = shouting:Loud\nlost = shouting:Nothing\n"
    )
    (tmp_path / "shouting.py").write_text(
        "from kvrt.dialect.events import Content\n"
        "class Loud:\n"
        "    def __init__(self, tools, thinking): pass\n"
        "    def push(self, text): return [Content(text.upper())]\n"
        "    def end(self): return []\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_reader("loud")(None, False).push("so") == [Content("SO")]
    with pytest.raises(ConfigError, match="cannot be loaded"):
        find_reader("lost")
    with pytest.raises(ConfigError, match="loud"):
        find_reader("quiet")
