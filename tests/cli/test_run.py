"""`kvrt run` with one prompt."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from kvrt_cli.answer import as_json

from kvrt import RequestError, SamplingParams
from kvrt.errors import DeviceError
from kvrt.outputs import Completion, Timings, TokenLogprobs, Usage
from kvrt.outputs import Result as Answered
from kvrt.spi import Device
from tests.model.checkpoints import make_model as make_checkpoint
from tests.model.checkpoints import save_model, save_tokenizer

from .conftest import DUMMY, Kvrt, make_model

SHORT = (*DUMMY, "-n", "8")


def answer(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return str(result.stdout)


def as_object(result: Result) -> dict:
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


def test_the_answer_goes_to_stdout_and_everything_else_to_stderr(
    kvrt: Kvrt, plain_model: str
) -> None:
    result = kvrt("run", plain_model, "Once upon", *SHORT, "--verbose")
    whole = as_object(kvrt("run", plain_model, "Once upon", *SHORT, "--json"))
    assert result.stdout == whole["text"] + ("" if whole["text"].endswith("\n") else "\n")
    assert plain_model in result.stderr
    for name in ("load", "prompt", "time to first token", "generation", "peak memory", "KV mapped"):
        assert f"\n{name} " in result.stderr
    assert "preemptions          0" in result.stderr
    assert kvrt("run", plain_model, "Once upon", *SHORT, "--quiet").stderr == ""


def test_streamed_or_not_the_text_is_the_same(kvrt: Kvrt, plain_model: str) -> None:
    args = ("run", plain_model, "Once upon", *DUMMY, "-n", "40")
    assert answer(kvrt(*args)) == answer(kvrt(*args, "--no-stream"))


@pytest.mark.parametrize(
    ("words", "stdin", "asked"),
    [
        (["one", "two"], b"", "one two"),
        ([], b"a\nb\n", "a\nb\n"),
        (["-"], b"a", "a"),
        (["and", "this"], b"first", "first\nand this"),
        (["and", "this"], b"first\n", "first\nand this"),
        (["-", "this"], b"first", "first\nthis"),
        ([], "é…".encode(), "é…"),
        ([], "é…\n".encode("utf-8-sig"), "é…\n"),
        (["and"], "é…".encode("utf-16"), "é…\nand"),
    ],
)
def test_the_prompt_is_stdin_then_the_arguments(
    kvrt: Kvrt, plain_model: str, words: list[str], stdin: bytes, asked: str
) -> None:
    got = as_object(kvrt("run", plain_model, *words, *SHORT, "--json", input=stdin))
    # The model knows single bytes, so that the number of tokens is that of the bytes.
    assert got["usage"]["prompt_tokens"] == len(asked.encode())
    want = as_object(kvrt("run", plain_model, asked, *SHORT, "--json"))
    assert got["token_ids"] == want["token_ids"]


@pytest.mark.parametrize(
    ("words", "stdin", "cause"),
    [
        ([""], b"", "the prompt is empty"),
        ([], b"", "the prompt is empty"),
        ([], b"good \xff bad", "standard input is not UTF-8: byte 0xff at offset 5"),
        (["x"], b"\xc3", "standard input is not UTF-8: byte 0xc3 at offset 0"),
        (["caf\udce9"], b"", "the prompt is not UTF-8: byte 0xe9 at offset 3"),
    ],
)
def test_a_bad_prompt_is_refused_before_the_model_is_loaded(
    kvrt: Kvrt, words: list[str], stdin: bytes, cause: str
) -> None:
    result = kvrt("run", "./no-such-model", *words, input=stdin)
    assert result.exit_code == 2
    assert cause in result.stderr
    assert result.stdout == ""


def test_json_has_everything_about_the_answer(kvrt: Kvrt, plain_model: str) -> None:
    args = ("--json", "--logprobs", "2", "--temp", "0.9", "--ignore-eos")
    got = as_object(kvrt("run", plain_model, "abc", *SHORT, *args))
    assert got["finish_reason"] == "length"
    assert len(got["token_ids"]) == len(got["logprobs"]) == 8
    assert got["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11,
        "cached_tokens": 0, "preemptions": 0, "drafted_tokens": 0, "accepted_tokens": 0,
    }  # fmt: skip
    assert got["model"] == plain_model
    assert (got["backend"], got["dtype"]) == ("cpu", "float32")
    first = got["logprobs"][0]
    assert first["token_id"] == got["token_ids"][0]
    assert len(first["top"]) == 2
    assert 0 < got["timings"]["first_token_s"] <= got["timings"]["total_s"]
    stats = got["statistics"]
    assert stats["load_s"] > 0
    assert stats["generation_tokens_per_s"] > 0
    assert stats["peak_rss_bytes"] > 10 << 20
    assert 0 <= stats["kv_end_bytes"] <= stats["kv_peak_bytes"] <= stats["kv_limit_bytes"]
    # The seed was made up, and named, so that the draws can be had again.
    again = as_object(kvrt("run", plain_model, "abc", *SHORT, *args, "--seed", str(got["seed"])))
    assert again["token_ids"] == got["token_ids"]


def test_each_number_of_an_answer_is_where_its_name_says() -> None:
    first = Completion(0, "one", (4, 5), "length", (TokenLogprobs(4, -0.5, ((4, -0.5),)),), -1.5)
    second = Completion(1, "two", (6,), "stop", score=-2.5)
    result = Answered(
        "name", (1, 2, 3), (first, second), Usage(3, 7, 1, 2, 6, 5),
        Timings(queued=0.1234567, first_token=0.2, total=0.3),
        prompt_logprobs=(TokenLogprobs(2, -0.25),),
        error=RequestError("it was wrong", param="prompt", fix="mend it"),
    )  # fmt: skip
    assert as_json(result, SamplingParams(seed=9)) == {
        "request_id": "name", "text": "one", "finish_reason": "length", "token_ids": [4, 5],
        "usage": {
            "prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10, "cached_tokens": 2,
            "preemptions": 1, "drafted_tokens": 6, "accepted_tokens": 5,
        },
        "timings": {"queued_s": 0.123457, "first_token_s": 0.2, "total_s": 0.3},
        "seed": 9,
        "score": -1.5,
        "logprobs": [{"token_id": 4, "logprob": -0.5, "top": [[4, -0.5]]}],
        "prompt_logprobs": [{"token_id": 2, "logprob": -0.25, "top": []}],
        "completions": [
            {"index": 0, "text": "one", "finish_reason": "length", "token_ids": [4, 5],
             "score": -1.5},
            {"index": 1, "text": "two", "finish_reason": "stop", "token_ids": [6], "score": -2.5},
        ],
        "error": {"type": "RequestError", "message": "it was wrong", "param": "prompt",
                  "fix": "mend it"},
    }  # fmt: skip
    plain = replace(
        result, completions=(Completion(0, "", (), "length"),), prompt_logprobs=None, error=None
    )
    assert list(as_json(plain, SamplingParams())) == [
        "request_id", "text", "finish_reason", "token_ids", "usage", "timings", "seed",
    ]  # fmt: skip


def test_beams_answer_with_the_best_text_as_a_whole(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    args = ("--ignore-eos", "--json", "--beam-width", "3")
    got = as_object(kvrt("run", plain_model, "abc", *SHORT, *args))
    assert len(got["token_ids"]) == 8
    assert got["score"] < 0
    assert got["seed"] is None
    whole = as_object(kvrt("run", plain_model, "abc", *SHORT, *args, "--length-penalty", "0"))
    assert whole["score"] == pytest.approx(8 * got["score"])
    assert kvrt("run", plain_model, "abc", *SHORT, *args[::2], "3").stdout == got["text"] + "\n"
    # What the model's author recommends is for draws.
    sampling = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 2.0}
    drawing = str(make_model(tmp_path / "drawing", chat=False, generation=sampling))
    assert as_object(kvrt("run", drawing, "abc", *SHORT, *args))["score"] < 0


def test_greedy_unless_the_user_or_the_model_asks_for_draws(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    def ids(model: str, *options: str) -> list[int]:
        result = kvrt("run", model, "abc", *DUMMY, "-n", "24", "--json", *options)
        return list(as_object(result)["token_ids"])

    greedy = ids(plain_model)
    assert as_object(kvrt("run", plain_model, "abc", *SHORT, "--json"))["seed"] is None
    assert ids(plain_model, "--seed", "1") == greedy
    assert ids(plain_model, "--top-k", "50", "--temp", "0") == greedy
    assert ids(plain_model, "--top-k", "1") == greedy
    assert ids(plain_model, "--top-p", "0.99", "--seed", "1") != greedy

    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 100}
    drawing = str(make_model(tmp_path / "drawing", chat=False, generation=sampling))
    assert ids(drawing, "--seed", "1") != greedy
    assert ids(drawing, "--temp", "0") == greedy
    calm = {"do_sample": False, "temperature": 5.0}
    assert ids(str(make_model(tmp_path / "calm", chat=False, generation=calm))) == greedy


@pytest.mark.parametrize("bad", [{"top_p": 0.0}, {"temperature": 9e3}])
def test_a_value_that_only_the_model_recommends_is_not_called_the_users(
    kvrt: Kvrt, tmp_path: Path, bad: dict[str, float]
) -> None:
    sampling = {"do_sample": True, "temperature": 0.7} | bad
    drawing = str(make_model(tmp_path / "drawing", chat=False, generation=sampling))
    (name,) = bad
    option = {"temperature": "--temp", "top_p": "--top-p"}[name]
    result = kvrt("run", drawing, "abc", *SHORT)
    assert result.exit_code == 3
    assert "generation_config.json" in result.stderr
    assert f"{name} is {bad[name]}" in result.stderr
    assert kvrt("run", drawing, "abc", *SHORT, option, "0.5").exit_code == 0


def test_stop_strings_end_the_answer_and_are_not_part_of_it(kvrt: Kvrt, plain_model: str) -> None:
    draws = ("--temp", "1", "--seed", "3", "--ignore-eos")
    args = ("run", plain_model, "Once upon", *DUMMY, "-n", "40", *draws)
    whole = as_object(kvrt(*args, "--json"))["text"]
    cut = whole[10]
    got = as_object(kvrt(*args, "--json", "--stop", cut, "--stop", "never there"))
    assert got["finish_reason"] == "stop"
    assert got["text"] == whole[: whole.index(cut)]


def test_what_may_be_said_is_an_option_and_a_key(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    args = ("run", plain_model, "Once upon", *DUMMY, "-n", "12", "--ignore-eos", "--json")
    free = as_object(kvrt(*args))
    whole = free["token_ids"]
    one, other = whole[2], next(token for token in whole if token != whole[2])
    bans = ("--logit-bias", f"{one}=-100", "--logit-bias", f"{other}=-100.0")
    got = as_object(kvrt(*args, *bans))["token_ids"]
    assert not {one, other} & {*got}
    assert set(as_object(kvrt(*args, "--logit-bias", f"{one}=100"))["token_ids"]) == {one}
    word = next(letter for letter in free["text"] if letter.isascii())
    assert word not in as_object(kvrt(*args, "--bad-word", word))["text"]
    for wrong in ("5", "5=x", "x=5", "5=101", "-1=5"):
        result = kvrt(*args, "--logit-bias", wrong)
        assert result.exit_code == 2
        assert "--logit-bias" in result.stderr
    lines = [{"logit_bias": {str(one): -100, other: -100}}, {"max_tokens": 0, "prompt_logprobs": 1}]
    file = tmp_path / "prompts"
    file.write_text("\n".join(json.dumps({"prompt": "Once upon", **line}) for line in lines))
    common = ("-n", "12", "--ignore-eos", "--prompts", str(file))
    biased, scored = map(json.loads, kvrt("run", plain_model, *DUMMY, *common).stdout.splitlines())
    assert biased["token_ids"] == got
    assert (scored["text"], scored["finish_reason"]) == ("", "length")
    assert len(scored["prompt_logprobs"]) == len("Once upon") - 1


def test_the_chat_template_is_used_where_there_is_one(kvrt: Kvrt, chat_model: str) -> None:
    def tokens(*options: str) -> int:
        got = as_object(kvrt("run", chat_model, "hi", *SHORT, "--json", *options))
        return int(got["usage"]["prompt_tokens"])

    plain, chat = len("hi"), len("|user\nhi|") + len("|assistant\n")  # | is one special token
    assert tokens() == chat
    assert tokens("--no-chat") == plain
    assert tokens("--system", "be kind") == chat + len("|system\nbe kind|")


def test_a_conversation_needs_a_chat_template(kvrt: Kvrt, plain_model: str) -> None:
    for option in (["--chat"], ["--system", "x"], ["--template-var", "a=1"]):
        result = kvrt("run", plain_model, "hi", *SHORT, *option)
        assert result.exit_code == 2
        assert f"has no chat template, so {option[0]} cannot be used" in result.stderr
    result = kvrt("run", plain_model, "hi", *SHORT, "--no-chat", "--system", "x")
    assert result.exit_code == 2


def test_template_variables_are_json_or_text(kvrt: Kvrt, chat_model: str, tmp_path: Path) -> None:
    model = Path(shutil.copytree(chat_model, tmp_path / "model"))
    template = "{{ a | tojson }}{{ b | tojson }}{{ tools | tojson }}"
    (model / "chat_template.jinja").write_text(template)
    line = {"messages": [{"role": "user", "content": "x"}], "tools": [{}], "variables": {"b": 1}}
    for options, want in (
        (("hi", "--template-var", "a=false", "--template-var", "b=no=1"), 'false"no=1"null'),
        (("hi", "--template-var", 'a=[1, "2"]', "--template-var", "b="), '[1, "2"]""null'),
        (("--prompts", "-", "--template-var", "a=3", "--template-var", "b=4"), "31[{}]"),
    ):
        output = ("--json",) if "hi" in options else ()
        result = kvrt("run", str(model), *SHORT, *output, *options, input=json.dumps(line).encode())
        assert as_object(result)["usage"]["prompt_tokens"] == len(want)
    for bad in ("a", "=1", "a b=1"):
        result = kvrt("run", str(model), "hi", *SHORT, "--template-var", bad)
        assert result.exit_code == 2
        assert "NAME=VALUE" in result.stderr


def test_special_tokens_are_printed_if_asked_for(kvrt: Kvrt, chat_model: str) -> None:
    draws = ("-n", "200", "--temp", "1", "--seed", "5", "--ignore-eos")  # some of them special
    said = ("run", chat_model, "--no-chat", *DUMMY, *draws, "--json", "<|start|>")
    default, without, there = (
        as_object(kvrt(*said, *options))
        for options in ((), ("--skip-special-tokens",), ("--no-skip-special-tokens",))
    )
    assert default["text"] == without["text"]
    assert default["token_ids"] == there["token_ids"]
    assert default["text"] != there["text"]
    line = {"prompt": "<|start|>", "skip_special_tokens": False}
    listed = kvrt(
        "run", chat_model, *DUMMY, "--no-chat", *draws, "--prompts", "-",
        input=json.dumps(line).encode(),
    )  # fmt: skip
    assert as_object(listed)["text"] == there["text"]


def test_any_installed_backend_can_be_named(kvrt: Kvrt, plain_model: str) -> None:
    args = ("run", plain_model, "abc", "--load-format", "dummy", "-n", "8", "--json")
    cpu = as_object(kvrt(*args, "--backend", "cpu"))
    null = as_object(kvrt(*args, "--backend", "null"))
    assert null["backend"] == "null"
    assert null["token_ids"] == cpu["token_ids"]


def test_devices_are_listed(kvrt: Kvrt) -> None:
    result = kvrt("run", "--list-devices")
    assert result.exit_code == 0
    assert any(line.startswith("cpu:0 ") for line in result.stdout.splitlines())
    listed = json.loads(kvrt("run", "--list-devices", "--json").stdout)
    cpu = next(device for device in listed if device["backend"] == "cpu")
    assert cpu["total_bytes"] > 0
    assert "float32" in cpu["dtypes"]


def test_a_device_that_cannot_be_opened_is_said_beside_the_list(
    kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, index: int) -> Device:
        raise DeviceError(f"no luck with {name}")

    monkeypatch.setattr("kvrt.registry.open_device", refuse)
    result = kvrt("run", "--list-devices", "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "warning: cpu:0: no luck with cpu" in result.stderr


def test_a_model_can_be_computed_by_transformers(kvrt: Kvrt, tmp_path: Path) -> None:
    folder = save_tokenizer(save_model(make_checkpoint("llama-2"), tmp_path))
    args = ("run", str(folder), "abc", "-n", "4", "--json", "--backend", "cpu")
    result = kvrt(*args, "--model-impl", "transformers", "--verbose")
    assert result.exit_code == 0, result.stderr
    assert len(as_object(result)["token_ids"]) == 4
    assert "slower than an architecture that kvrt has" in result.stderr
