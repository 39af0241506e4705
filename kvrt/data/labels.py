"""Sets as tasks of Label Studio, and back.

A task is what its import takes and its export gives, in a list:

    {"data": {"prompt": "...", "response": "...", "row": "the line as it was"},
     "predictions": [{"model_version": ..., "result": [...]}], "annotations": [...]}

`row` is the line itself, which Label Studio hands through: so rows come back byte by byte. What
people have said of a row comes back as its member ``label_studio``, and goes out again from there.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import msgspec

from kvrt.data.rows import ANSWERS, MEMBERS, Row, Unreadable, read_row
from kvrt.errors import RequestError

MEMBER = "label_studio"
"""Of a row: what people have said of it."""

RESPONSE, FLAGS, PREFERRED = "response", "flags", "preferred"
"""Names of tags that they say it with."""

CONFIG = """\
<View>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt"/>
  <Header value="Answer"/>
  <TextArea name="response" toName="prompt" value="$response" rows="6" maxSubmissions="1"
            editable="true"/>
  <Rating name="rating" toName="prompt" maxRating="5"/>
  <Choices name="flags" toName="prompt" choice="multiple">
    <Choice value="wrong"/>
    <Choice value="harmful"/>
    <Choice value="leave out"/>
  </Choices>
</View>
"""
"""The labelling configuration that the tasks of a set are for."""

PAIRS_CONFIG = """\
<View>
  <Header value="Prompt"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preferred" toName="answer_a,answer_b"/>
  <Text name="answer_a" value="$answer_a"/>
  <Text name="answer_b" value="$answer_b"/>
</View>
"""
"""... that the pairs of ``kvrt data compare --pairs`` are for."""

PIECE = 1 << 20
LONGEST = 256 << 20
"""Characters of a task."""


def task_of(row: Row) -> dict[str, Any]:
    """A row as a task. Its answer is a prediction, which people begin with."""
    line, annotations = _apart(row)
    data = {"prompt": row.prompt_text, "response": row.answer or "", "row": line.decode()}
    task: dict[str, Any] = {"data": data}
    if row.answer is not None:
        said = {
            "id": "answer", "from_name": RESPONSE, "to_name": "prompt", "type": "textarea",
            "value": {"text": [row.answer]},
        }  # fmt: skip
        task["predictions"] = [{"model_version": "set", "result": [said]}]
    if annotations is not None:
        task["annotations"] = annotations
    return task


def _apart(row: Row) -> tuple[bytes, list[Any] | None]:
    """A row without what people have said of it, and that; None: nothing that `line_of` would put
    back as it is."""
    members = MEMBERS.decode(row.line)
    if MEMBER not in members:
        return row.line, None
    annotations = msgspec.json.decode(members.pop(MEMBER))
    line = msgspec.json.encode(members)
    if not annotations or not isinstance(annotations, list) or not members:
        return row.line, None
    whole = read_row(line).with_members(**{MEMBER: annotations}) == row.line
    return (line, annotations) if whole else (row.line, None)


def pair_of(number: int, prompt: str, a: str, b: str, preferred: str | None) -> dict[str, Any]:
    """Two answers to a prompt as a task; what a judge preferred (``left``, ``right``) is a
    prediction."""
    data = {"number": number, "prompt": prompt, "answer_a": a, "answer_b": b}
    task: dict[str, Any] = {"data": data}
    if preferred is not None:
        said = {
            "id": "judged", "from_name": PREFERRED, "to_name": "answer_a", "type": "pairwise",
            "value": {"selected": preferred},
        }  # fmt: skip
        task["predictions"] = [{"model_version": "judge", "result": [said]}]
    return task


def write_tasks(tasks: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """The file of tasks, in pieces."""
    before = b"[\n"
    for task in tasks:
        yield before + json.dumps(task, ensure_ascii=False).encode("utf-8", "surrogatepass")
        before = b",\n"
    yield b"[]\n" if before == b"[\n" else b"\n]\n"


def read_tasks(file: BinaryIO) -> Iterator[Any]:
    """The tasks of a file, one at a time.

    Raises:
        RequestError: it is no list of JSON.
    """
    decoder, text, begun = json.JSONDecoder(), "", False
    pieces = iter(lambda: file.read(PIECE), b"")
    left = b""
    ended = False
    while True:
        text = text.lstrip()
        if not begun and text:
            if text[0] != "[":
                raise _no_list()
            text, begun = text[1:], True
            continue
        if begun and text.startswith("]"):
            return
        if begun and text.startswith(","):
            text = text[1:]
            continue
        if begun and text:
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                if ended or len(text) > LONGEST:
                    raise _no_list() from None
            else:
                # A number that ends with the piece may go on in the next.
                if end < len(text):
                    yield value
                    text = text[end:]
                    continue
        if ended:
            raise _no_list()
        piece = next(pieces, b"")
        ended = not piece
        data, left = left + piece, b""
        try:
            text += data.decode()
        except UnicodeDecodeError as error:
            if ended or error.end < len(data) - 3:
                raise _no_list() from None
            text, left = text + data[: error.start].decode(), data[error.start :]


def line_of(task: object, *, apply: bool = False) -> bytes | None:
    """The row of a task, with what people have said of it.

    Args:
        apply: the answer becomes what they have written, and rows that are to be left out are None.

    Raises:
        Unreadable: it is no task of ours.
    """
    match task:
        case {"data": {"row": str() as line}}:
            pass
        case {"data": {"prompt": str() as prompt, **more}}:
            answer = more.get(RESPONSE)
            line = json.dumps({"prompt": prompt, "answer": answer}, ensure_ascii=False)
        case _:
            raise Unreadable("it has neither data.row nor data.prompt")
    assert isinstance(task, dict)
    row = read_row(line.encode("utf-8", "surrogatepass"))
    annotations = [each for each in task.get("annotations") or () if isinstance(each, dict)]
    if not annotations:
        return row.line
    if apply:
        said = _said([each for each in annotations if not each.get("was_cancelled")])
        if "leave out" in said.get(FLAGS, ()):
            return None
        row = _with_answer(row, said.get(RESPONSE))
    return row.with_members(**{MEMBER: annotations})


def _said(annotations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the last annotation says, by the names of tags."""
    found: dict[str, Any] = {}
    for result in annotations[-1].get("result") or () if annotations else ():
        match result:
            case {"from_name": str() as name, "value": {"text": [str() as text, *_]}}:
                found[name] = text
            case {"from_name": str() as name, "value": {"choices": list() as choices}}:
                found[name] = choices
            case {"from_name": str() as name, "value": {"rating": rating}}:
                found[name] = rating
    return found


def _with_answer(row: Row, answer: str | None) -> Row:
    """The row with another answer, wherever its shape has that; one of batches keeps its own."""
    if answer is None or answer == row.answer:
        return row
    value = json.loads(row.line)
    match row.shape:
        case "messages" | "conversations":
            role, name, mine = (
                ("role", "content", "assistant")
                if row.shape == "messages"
                else ("from", "value", "gpt")
            )
            said = value[row.shape]
            if row.answer is None:
                said.append({role: mine})
            said[-1][name] = answer
            line = row.with_members(**{row.shape: said})
        case "pair":
            name = next((each for each in ANSWERS if value.get(each) is not None), "answer")
            line = row.with_members(**{name: answer})
        case "instruction":
            line = row.with_members(output=answer)
        case "text":
            line = row.with_members(text=answer)
        case _:
            return row
    return read_row(line)


def _no_list() -> RequestError:
    return RequestError(
        "it is no list of Label Studio's tasks", param="input", fix="export as JSON, not JSON_MIN"
    )
