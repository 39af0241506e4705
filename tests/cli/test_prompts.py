"""`kvrt run --prompts`: a file of prompts as one continuous batch."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

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
        6: (b'{"prompt": ""}', "prompt is ''"),
        7: (b'{"id": "none"}', "this has none"),
        8: (b'{"prompt": "x", "token_ids": [1]}', "this has prompt and token_ids"),
        9: (b'{"token_ids": [1, 99999]}', "99999"),
        10: (b'{"token_ids": [true]}', "a list of whole numbers"),
        11: (b'{"messages": [{"role": "user", "content": "x"}]}', "no chat template"),
        12: (b"caf\xe9", "the line is not UTF-8: byte 0xe9 at offset 3"),
        13: (b'{"prompt": "x", "id": {}}', "id is {}"),
        14: (b'{"prompt": "' + b"x" * 300 + b'"}', "the prompt has 300 tokens"),
    }
    file = b"\n".join([b"good", *(line for line, _ in bad.values()), b'{"prompt": "good"}'])
    options = (*SHORT, "--max-model-len", "256", "--prompts", "-")
    result = kvrt("run", plain_model, *options, input=file)
    assert result.exit_code == 1
    rows = lines(result)
    assert [row["line"] for row in rows] == list(range(1, 16))
    assert rows[0]["token_ids"] == rows[14]["token_ids"] != []
    for number, (_, cause) in bad.items():
        row = rows[number - 1]
        assert cause in row["error"]["message"], row
        assert "text" not in row
        assert f"error: line {number}: {row['error']['message']}" in result.stderr
    assert rows[6]["id"] == "none"
    assert rows[2]["error"]["param"] == "temprature"


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
