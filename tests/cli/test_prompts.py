"""`kvrt run --prompts`: a file of prompts as one continuous batch."""

import codecs
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from kvrt_cli import asking
from kvrt_cli.options.sampling import NAMES
from kvrt_cli.prompts import read_items

from kvrt.errors import RequestError
from kvrt.model.chat.templates import Chat

from .conftest import DUMMY, Kvrt

SHORT = (*DUMMY, "-n", "12")


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def alone(kvrt: Kvrt, model: str, prompt: str, *options: str) -> list[int]:
    result = kvrt("run", model, *SHORT, "--json", *options, input=prompt.encode())
    return list(json.loads(result.stdout)["token_ids"])


def test_every_line_is_answered_in_order_as_it_would_be_alone(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    prompts = ["first", "the second, a longer one" * 9, "third"]
    objects = [
        {"prompt": prompts[1], "id": "b"},
        {"prompt": prompts[2], "id": 7, "max_tokens": 3, "temperature": 1.5, "seed": 4},
        {"token_ids": list(b"ids"), "logprobs": 1, "ignore_eos": True},
    ]
    file = tmp_path / "prompts.jsonl"
    text = "\n".join([prompts[0], "", *map(json.dumps, objects)]) + "\r\n"
    file.write_text(text, encoding="utf-8")
    result = kvrt("run", plain_model, *SHORT, "--prompts", str(file), "--verbose")
    assert result.exit_code == 0, result.stderr
    one, two, three, four = lines(result)
    assert [row["line"] for row in (one, two, three, four)] == [1, 3, 4, 5]
    assert [row.get("id") for row in (one, two, three, four)] == [None, "b", 7, None]
    assert one["token_ids"] == alone(kvrt, plain_model, prompts[0])
    assert two["token_ids"] == alone(kvrt, plain_model, prompts[1])
    drawn = alone(kvrt, plain_model, prompts[2], "-n", "3", "--temp", "1.5", "--seed", "4")
    assert three["token_ids"] == drawn
    assert three["seed"] == 4
    assert len(four["logprobs"]) == 12
    assert "4 in " in result.stderr
    assert "over all requests" in result.stderr


def test_a_bad_line_fails_alone_with_its_number(kvrt: Kvrt, plain_model: str) -> None:
    bad = {
        2: (b'{"prompt": "x"', "not a JSON object"),
        3: (b'{"prompt": "x", "temprature": 1}', "unknown key 'temprature'"),
        4: (b'{"prompt": "x", "temperature": -1}', "temperature is -1"),
        5: (b'{"prompt": "x", "stop": 5}', "stop is 5"),
        6: (b'{"prompt": ""}', "prompt is a text of 0 characters"),
        7: (b'{"id": "none"}', "this has none"),
        8: (b'{"prompt": "x", "token_ids": [1]}', "this has prompt and token_ids"),
        9: (b'{"token_ids": [1, 99999]}', "99999"),
        10: (b'{"token_ids": [true]}', "a list of whole numbers"),
        11: (b'{"messages": [{"role": "user", "content": "x"}]}', "no chat template"),
        12: (b"caf\xe9", "the line is not UTF-8: byte 0xe9 at offset 3"),
        13: (b'{"prompt": "x", "id": {}}', "id is an object"),
        14: (b'{"prompt": "x", "tools": []}', "tools goes with messages alone"),
        15: (b'{"messages": [{"role": "x"}], "tools": "t"}', "tools must be a list of objects"),
        16: (b'{"prompt": "' + b"x" * 300 + b'"}', "the prompt has 300 tokens"),
    }
    file = b"\n".join([b"good", *(line for line, _ in bad.values()), b'{"prompt": "good"}'])
    options = (*SHORT, "--max-model-len", "256", "--prompts", "-")
    result = kvrt("run", plain_model, *options, input=file)
    assert result.exit_code == 1
    rows = lines(result)
    assert [row["line"] for row in rows] == list(range(1, 18))
    assert rows[0]["token_ids"] == rows[16]["token_ids"] != []
    for number, (_, cause) in bad.items():
        row = rows[number - 1]
        assert cause in row["error"]["message"], row
        assert "text" not in row
        assert f"error: line {number}: {row['error']['message']}" in result.stderr
    assert rows[6]["id"] == "none"
    assert rows[2]["error"]["param"] == "temperature"


@pytest.mark.parametrize("key", ["prompt", "messages", "token_ids"])
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("null", "null"), ("true", "true or false"), ("5", "a number"), ("1.5", "a number"),
        ("{}", "an object"), ('""', "a text of 0 characters"), ('"my secret"', "a text of 9 char"),
        ("[]", "an empty list"), ("[null]", "a list of null"), ('["a", 1]', "a list of a number"),
        ("[[]]", "a list of a list"), ("[{}, true]", "a list of an object and true or false"),
    ],
)  # fmt: skip
def test_what_is_no_prompt_is_told_by_its_kind_and_not_quoted(
    key: str, value: str, told: str
) -> None:
    if key == "prompt" and "secret" in value:
        return  # that is one
    (item,) = read_items(f'{{"{key}": {value}}}'.encode())
    assert isinstance(item.error, RequestError)
    assert str(item.error).startswith(f"{key} is {told}")
    assert "secret" not in str(item.error)
    assert item.error.param == key


ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
"""Those that Python writes without their mark."""


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_file_may_begin_with_a_byte_order_mark(encoding: str, newline: str) -> None:
    objects = [{"prompt": "é…", "id": "a"}, {"prompt": "\u2028 is no end of a line", "id": 2}]
    text = [json.dumps(entry, ensure_ascii=False) for entry in objects]
    text = [text[0], "", "  ", "plain…", text[1]]
    whole = newline.join([*text, ""])
    data = MARKS.get(encoding, b"") + whole.encode(encoding)
    items = read_items(data)
    assert [(item.line, item.id, item.prompt, item.error) for item in items] == [
        (1, "a", "é…", None),
        (4, None, "plain…", None),
        (5, 2, "\u2028 is no end of a line", None),
    ]
    # The same as one array: the entries are counted.
    array = json.dumps(["plain…", *objects], ensure_ascii=False, indent=1).replace("\n", newline)
    items = read_items(MARKS.get(encoding, b"") + array.encode(encoding))
    assert [(item.line, item.id, item.prompt, item.error) for item in items] == [
        (1, None, "plain…", None),
        (2, "a", "é…", None),
        (3, 2, "\u2028 is no end of a line", None),
    ]


def test_a_line_that_is_no_text_in_the_files_encoding_fails_alone() -> None:
    lone = "good\n{} bad\ngood".format("\ud800").encode("utf-16", "surrogatepass")
    latin = codecs.BOM_UTF8 + b"good\n\xe9 bad\ngood"
    for data, cause in ((lone, "is not UTF-16-LE: byte 0x00"), (latin, "is not UTF-8: byte 0xe9")):
        first, second, third = read_items(data)
        assert first.prompt == third.prompt == "good"
        assert cause in str(second.error)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        ("ab".encode("utf-16")[:-1], "the file is not UTF-16-LE: byte 0x62 at offset 2"),
        (b'["a", "b"', "the file begins as a JSON array, and is none: Expecting ',' delimiter"),
        (b'[\n"a",\n{"prompt": "b"]', "Expecting ',' delimiter (line 3, character 15)"),
        (b'["a"]\n["b"]', "Extra data (line 2, character 1)"),
        (b'["' + b"\xe9" + b'"]', "the file is not UTF-8: byte 0xe9 at offset 2"),
        (b'["a", ' + b"9" * 9999 + b"]", "it has a number of thousands of digits"),
        (b'["a", ' + b"[" * 99999, "it is nested too deeply"),
    ],
)
def test_a_file_that_is_no_list_of_prompts_is_refused_as_a_whole(data: bytes, cause: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_items(data)
    assert cause in str(caught.value)
    assert caught.value.fix


def test_plain_text_may_begin_with_a_bracket() -> None:
    assert [item.prompt for item in read_items(b"[INST] hi [/INST]\n[1] one")] == [
        "[INST] hi [/INST]",
        "[1] one",
    ]
    (numbers,) = read_items(b"[[1, 2]]")
    assert "it is a list of a number, not a text or an object" in str(numbers.error)


# Values that some parameter takes, and those that none does.
HOSTILE = (
    *("0", "1", "-1", "2", "0.5", "1e-45", "1e-5", "1e308", "1e400", "-1e400", "NaN", "-Infinity"),
    *("null", "true", "false", '""', '"x"', '"\\ud800"', '"\\u0000"', "[]", "{}", "[[]]", "[0]"),
    *('["x"]', "[null]", '{"a": 1}', '[{"role": "user", "content": "x"}]', '[{"role": 5}]'),
    *("9" * 20, "9" * 400, "-" + "9" * 400, "9" * 5000, "[" + "9" * 400 + "]", "0." + "9" * 400),
    *('"' + "x" * 3000 + '"', "[" * 500 + "]" * 500, "[1.5]", "[true]", "[-1]", "[99999999999]"),
)
KEYS = ("prompt", "messages", "token_ids", "id", *NAMES)


def drawn_lines(draws: random.Random, count: int) -> list[str]:
    """Objects of which one value is hostile, or two are."""
    found = []
    for _ in range(count):
        value = {"prompt": '"x"', "max_tokens": "2"}
        for key in draws.sample(KEYS, draws.choice([1, 1, 2])):
            value[key] = draws.choice(HOSTILE)
        found.append("{" + ", ".join(f'"{key}": {text}' for key, text in value.items()) + "}")
    return found


@pytest.mark.parametrize(
    ("model", "count"),
    [("plain", 300), ("chat", 300), pytest.param("chat", 5000, marks=pytest.mark.extra)],
)
def test_whatever_a_line_says_it_fails_alone_or_is_answered(
    kvrt: Kvrt, plain_model: str, chat_model: str, model: str, count: int
) -> None:
    asked = drawn_lines(random.Random(count), count)
    file = "\n".join([*asked, '{"prompt": "good", "id": "last"}']).encode()
    name = plain_model if model == "plain" else chat_model
    result = kvrt("run", name, *SHORT, "--max-model-len", "512", "--prompts", "-", input=file)
    assert result.exit_code == 1, result.stderr
    rows = [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]
    assert [row["line"] for row in rows] == list(range(1, count + 2))
    assert rows[-1]["id"] == "last"
    assert len(rows[-1]["token_ids"]) == 12
    for row, line in zip(rows, asked, strict=False):
        assert ("error" in row) != ("text" in row), (line, row)
        assert "unexpected" not in str(row.get("error")), (line, row)
        assert len(str(row.get("error"))) < 1000, (line, row)


def test_a_fault_that_nobody_expected_is_that_of_its_line(
    kvrt: Kvrt, plain_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = asking.resolve

    def fails_for_seven(wishes: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
        if wishes.get("seed") == 7:
            raise KeyError("what was asked")
        return resolve(wishes, *rest, **options)

    monkeypatch.setattr(asking, "resolve", fails_for_seven)
    file = b'first\n{"prompt": "second", "seed": 7, "id": "b"}\nthird'
    result = kvrt("run", plain_model, *SHORT, "--prompts", "-", input=file)
    assert result.exit_code == 1
    first, second, third = lines(result)
    assert first["text"]
    assert third["text"]
    assert (second["id"], second["error"]["message"]) == ("b", "unexpected KeyError")
    assert "error: line 2: unexpected KeyError\n  fix: KVRT_DEBUG=1 shows" in result.stderr
    assert "what was asked" not in result.stderr
    debugged = kvrt(
        "run", plain_model, *SHORT, "--prompts", "-", input=file, env={"KVRT_DEBUG": "1"}
    )
    assert "KeyError: 'what was asked'" in debugged.stderr


def test_conversations_get_the_system_message_unless_they_bring_one(
    kvrt: Kvrt, chat_model: str
) -> None:
    user = {"role": "user", "content": "hi"}
    own = [{"role": "system", "content": "own"}, user]
    file = "\n".join(["hi", json.dumps({"messages": [user]}), json.dumps({"messages": own})])
    options = (*SHORT, "--prompts", "-", "--system", "be kind")
    rows = lines(kvrt("run", chat_model, *options, input=file.encode()))
    asked = [row["usage"]["prompt_tokens"] for row in rows]
    assert asked[0] == asked[1] == asked[2] + len("be kind") - len("own")


def test_log_probabilities_can_be_asked_for_of_all_lines(kvrt: Kvrt, plain_model: str) -> None:
    options = (*DUMMY, "-n", "2", "--ignore-eos", "--logprobs", "3", "--prompts", "-")
    rows = lines(kvrt("run", plain_model, *options, input=b'one\n{"prompt": "two"}'))
    assert [[len(entry["top"]) for entry in row["logprobs"]] for row in rows] == [[3, 3], [3, 3]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("template", ""),
        ("tools", []),
        ("variables", {"enable_thinking": False}),
    ],
)
def test_what_a_line_says_of_its_conversation_goes_with_it(name: str, value: object) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (item,) = read_items(json.dumps({"messages": messages, name: value, "seed": 0}).encode())
    assert item.prompt == Chat(messages, **{name: value})
    assert item.wishes == {"seed": 0}


def test_more_lines_than_the_window_are_all_answered(kvrt: Kvrt, plain_model: str) -> None:
    file = "\n".join(f"prompt {i}" for i in range(40)).encode()
    options = (*DUMMY, "-n", "2", "--max-running", "4", "--prompts", "-")
    rows = lines(kvrt("run", plain_model, *options, input=file))
    assert [row["line"] for row in rows] == list(range(1, 41))


@pytest.mark.parametrize("name", ["n", "stop", "stop_token_ids", "ignore_eos", "min_p", "seed"])
def test_a_sampling_parameter_of_the_wrong_type_is_named(
    kvrt: Kvrt, plain_model: str, name: str
) -> None:
    file = json.dumps({"prompt": "x", name: {"a": [1]}}).encode()
    result = kvrt("run", plain_model, *SHORT, "--prompts", "-", input=file)
    assert result.exit_code == 1
    assert lines(result)[0]["error"]["param"] == name


def test_several_completions_of_one_line_are_all_there(kvrt: Kvrt, plain_model: str) -> None:
    file = json.dumps({"prompt": "x", "n": 3, "temperature": 2.0, "seed": 1}).encode()
    (row,) = lines(kvrt("run", plain_model, *SHORT, "--prompts", "-", input=file))
    assert [c["index"] for c in row["completions"]] == [0, 1, 2]
    assert len({tuple(c["token_ids"]) for c in row["completions"]}) == 3
    assert row["completions"][0]["text"] == row["text"]
