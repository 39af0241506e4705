"""Lines are read in the shapes that people have, and stay the bytes that they are."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvrt.data.reading import Lines, Reader
from kvrt.data.rows import Said, Unreadable, read_row
from kvrt.errors import RequestError

from .sets import rows, written

ASKED, YES = Said("user", "Why?"), "Because."
MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Wh"}, {"text": "y?"}]}]


@pytest.mark.parametrize(
    ("line", "shape", "prompt", "answer"),
    [
        ({"messages": MESSAGES}, "messages", (ASKED,), YES),
        ({"messages": MESSAGES[:1]}, "messages", (ASKED,), None),
        ({"messages": PARTS}, "messages", (ASKED,), None),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages", (), ""),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": YES}]},
         "conversations", (ASKED,), YES),
        ({"prompt": "Why?", "completion": YES}, "pair", (Said("", "Why?"),), YES),
        ({"prompt": "Why?", "answer": YES}, "pair", (Said("", "Why?"),), YES),
        ({"prompt": "Why?"}, "pair", (Said("", "Why?"),), None),
        ({"prompt": MESSAGES[:1], "chosen": MESSAGES[1:]}, "pair", (ASKED,), YES),
        ({"instruction": "Why?", "input": "", "output": YES}, "instruction", (ASKED,), YES),
        ({"instruction": "a", "input": "b"}, "instruction", (Said("user", "a\n\nb"),), None),
        ({"text": YES}, "text", (), YES),
        ({"custom_id": "1", "url": "/v1/chat/completions", "body": {"messages": MESSAGES[:1]}},
         "request", (ASKED,), None),
        ({"body": {"instructions": "Say.", "input": "Why?"}},
         "request", (Said("system", "Say."), Said("", "Why?")), None),
        ({"response": {"body": {"choices": [{"message": {"content": YES}}]}}}, "answer", (), YES),
        ({"response": {"body": {"choices": [{"text": YES}]}}}, "answer", (), YES),
        ({"response": {"body": {"output": [{"content": [{"text": YES}]}]}}}, "answer", (), YES),
        ({"response": {"body": {"error": {}}}}, "answer", (), None),
    ],
    ids=str,
)  # fmt: skip
def test_each_shape_has_its_prompt_and_its_answer(
    line: Any, shape: str, prompt: Any, answer: str | None
) -> None:
    row = read_row(json.dumps(line).encode())
    assert (row.shape, row.prompt, row.answer) == (shape, prompt, answer)


@pytest.mark.parametrize(
    "line",
    ["", "zebra", "[]", "1", "{}", '{"prompt": 5}', '{"messages": ["zebra"]}',
     '{"text": "zebra", "scores": 1}', '{"messages": [{"role": "user", "content": 7}]}',
     '{"text": "zebra", "scores": {"b": []}}', '{"body": {}}', '{"prompt": ["zebra"]}',
     "[" * 100_000],
)  # fmt: skip
def test_what_is_no_row_is_refused_and_not_quoted(line: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_row(line.encode())
    assert "zebra" not in str(caught.value)


@given(rows, st.dictionaries(st.sampled_from("ab"), st.integers() | st.none()))
def test_scores_change_nothing_else_of_a_line(line: Any, scores: Any) -> None:
    data = json.dumps({**line, "number": 1e100}, indent=1).replace("\n", " ").encode()
    scored = read_row(data).with_members(scores=scores)
    assert json.loads(scored) == {**json.loads(data), "scores": scores}
    assert read_row(scored).scores == scores
    again = read_row(scored).with_members(scores=scores)
    assert again == scored


def test_a_line_that_is_no_row_ends_all_or_goes_elsewhere(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', "", "nonsense", '{"text": "é"}\r', '{"text": "c"}']
    path = written(tmp_path / "set.jsonl", lines)
    with Reader(path) as reader, pytest.raises(RequestError, match=r"line 3: it is not JSON"):
        list(reader)
    bad = io.BytesIO()
    with Reader(path, bad) as reader:
        found = list(reader)
    assert [(row.number, row.answer) for row in found] == [(1, "a"), (4, "é"), (5, "c")]
    assert (bad.getvalue(), reader.bad, reader.done) == (b"nonsense\n", 1, reader.size)
    again = Lines(path)
    assert [again.at(row.at).answer for row in reversed(found)] == ["c", "é", "a"]
    again.close()
    with Reader(path, io.BytesIO(), skip=2) as reader:
        assert [row.answer for row in reader] == ["c"]
