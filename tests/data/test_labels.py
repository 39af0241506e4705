"""What goes to Label Studio comes back as it was, with what people have said of it."""

import io
import json
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvrt.data import labels
from kvrt.data.labels import line_of, pair_of, read_tasks, task_of, write_tasks
from kvrt.data.rows import Unreadable, read_row
from kvrt.errors import RequestError

from .sets import conversation, rows, text

annotation = st.fixed_dictionaries(
    {"id": st.integers(1, 9), "was_cancelled": st.booleans(), "lead_time": st.floats(0, 99),
     "result": st.lists(st.fixed_dictionaries({"from_name": text, "value": st.just({"rating": 3})}),
                        max_size=2)}
)  # fmt: skip


def through(lines: list[bytes], **options: Any) -> list[bytes | None]:
    data = b"".join(write_tasks(task_of(read_row(line)) for line in lines))
    assert isinstance(json.loads(data), list)
    return [line_of(task, **options) for task in read_tasks(io.BytesIO(data))]


@settings(max_examples=60)
@given(st.lists(st.tuples(rows, st.none() | st.lists(annotation, min_size=1, max_size=2),
                          st.sampled_from([None, 1, "  "])), max_size=5))  # fmt: skip
def test_rows_come_back_byte_by_byte(given_rows: Any) -> None:
    lines = []
    for row, said, indent in given_rows:
        line = json.dumps(row, indent=indent).replace("\n", " ").encode()
        if said is not None:
            line = read_row(line).with_members(label_studio=said)
        lines.append(line)
    assert through(lines) == lines
    data = b"".join(write_tasks(task_of(read_row(line)) for line in lines))
    told = [task.get("annotations") for task in json.loads(data)]
    assert told == [said for _, said, _ in given_rows]


@pytest.mark.parametrize(
    "line",
    [b'{"label_studio": [1], "text": "a"}', b'{"text":"a","label_studio":[]}',
     b'{"text":"a","label_studio":"x"}', b'{"text":"a","label_studio":[1.50]}',
     b'{"text": "\\u0000\\ud83d\\ude00", "n": 12345678901234567890123}'],
)  # fmt: skip
def test_also_odd_ones_do(line: bytes) -> None:
    assert through([line]) == [line]


def said(name: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"result": [{"from_name": name, "to_name": "prompt", "value": value}], **more}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (conversation("a", "b"), ("messages", -1, "content")),
        ({"messages": [{"role": "user", "content": "a"}]}, ("messages", -1, "content")),
        ({"conversations": [{"from": "human", "value": "a"}]}, ("conversations", -1, "value")),
        ({"prompt": "a", "response": "b"}, ("response",)),
        ({"prompt": "a"}, ("answer",)),
        ({"instruction": "a", "output": "b"}, ("output",)),
        ({"text": "a"}, ("text",)),
    ],
    ids=str,
)
def test_an_answer_that_somebody_has_written_takes_the_place_of_the_rows(
    row: Any, place: Any
) -> None:
    task = task_of(read_row(json.dumps(row).encode()))
    task["annotations"] = [said("response", {"text": ["better"]})]
    found = line_of(task, apply=True)
    assert found is not None
    value = json.loads(found)
    for step in place:
        value = value[step]
    assert value == "better"
    assert read_row(found).answer == "better"
    untouched = line_of(task)
    assert untouched is not None
    assert read_row(untouched).answer == read_row(json.dumps(row).encode()).answer


def test_the_last_annotation_that_was_not_cancelled_counts() -> None:
    task = task_of(read_row(b'{"text": "a"}'))
    out = said("flags", {"choices": ["wrong", "leave out"]})
    for annotations, kept in (
        ([out], False), ([{**out, "was_cancelled": True}], True),
        ([out, said("rating", {"rating": 5})], True), ([said("rating", {"rating": 5}), out], False),
    ):  # fmt: skip
        task["annotations"] = annotations
        assert (line_of(task, apply=True) is not None) == kept
        assert line_of(task) is not None


def test_tasks_that_were_made_elsewhere_are_rows_if_they_have_a_prompt() -> None:
    found = line_of({"data": {"prompt": "a", "response": "b"}})
    assert found is not None
    assert (read_row(found).prompt_text, read_row(found).answer) == ("a", "b")
    for task in (7, {}, {"data": {"image": "x"}}, {"data": {"row": "no row"}}):
        with pytest.raises(Unreadable):
            line_of(task)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
def test_files_are_read_in_pieces_of_any_size(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "PIECE", piece)
    tasks = [{"a": "é😀", "b": [1, {"c": "]"}]}, {}, {"d": 123}, 456]
    for data in (json.dumps(tasks), json.dumps(tasks, indent=2, ensure_ascii=False), "[]", " [ ] "):
        found = list(read_tasks(io.BytesIO(data.encode())))
        assert found == json.loads(data)
    for data in ("", "{}", '[{"a": 1}', "[1", "[1,", "nonsense", '["\xff'):
        with pytest.raises(RequestError, match="no list"):
            list(read_tasks(io.BytesIO(data.encode("latin-1"))))


def test_a_pair_says_which_side_the_judge_preferred() -> None:
    task = pair_of(3, "p", "x", "y", "left")
    assert task["data"] == {"number": 3, "prompt": "p", "answer_a": "x", "answer_b": "y"}
    assert task["predictions"][0]["result"][0]["value"] == {"selected": "left"}
    assert "predictions" not in pair_of(3, "p", "x", "y", None)


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (labels.CONFIG, task_of(read_row(json.dumps(conversation("a", "b")).encode()))),
        (labels.PAIRS_CONFIG, pair_of(1, "p", "x", "y", "right")),
    ],
    ids=["a set", "pairs"],
)
def test_a_configuration_shows_what_tasks_have_and_asks_about_what_it_shows(
    config: str, task: dict[str, Any]
) -> None:
    tags = list(ElementTree.fromstring(config).iter())
    shown = {tag.get("value", "")[1:] for tag in tags if tag.get("value", "").startswith("$")}
    assert shown <= task["data"].keys()
    assert task["data"].keys() - shown <= {"row", "number"}, "what people need not see"
    objects = {tag.get("name") for tag in tags if tag.tag == "Text"}
    asks = {tag.get("name"): tag for tag in tags if tag.get("toName")}
    for tag in asks.values():
        about = tag.get("toName", "").split(",")
        assert set(about) <= objects
        assert len(about) == (2 if tag.tag == "Pairwise" else 1)
    for said in (said for made in task["predictions"] for said in made["result"]):
        tag = asks[said["from_name"]]
        assert said["to_name"] in tag.get("toName", "").split(",")
        assert said["type"] == tag.tag.lower()


@pytest.mark.extra
def test_label_studio_itself_takes_tasks_predictions_and_annotations() -> None:
    """Where its SDK is installed (label-studio-sdk), which is 600 MB."""
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    answers = interface.LabelInterface(labels.CONFIG)
    task = task_of(read_row(json.dumps(conversation("a", "b")).encode()))
    # The SDK cannot check predictions within a task (2.1.2).
    assert answers.validate_task({"data": task["data"]})
    assert all(map(answers.validate_prediction, task["predictions"]))
    stars = {"from_name": "rating", "to_name": "prompt", "type": "rating", "value": {"rating": 4}}
    assert answers.validate_annotation({"result": [stars]})
    assert not answers.validate_annotation({"result": [{**stars, "from_name": "nothing"}]})
    pairs = interface.LabelInterface(labels.PAIRS_CONFIG)
    pair = pair_of(1, "p", "x", "y", "right")
    assert pairs.validate_task({"data": pair["data"]})
    assert all(map(pairs.validate_prediction, pair["predictions"]))
