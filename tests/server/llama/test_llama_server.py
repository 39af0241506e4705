"""`kvrt llama-server`: what the model says comes out in llama-server's words, and its command line
is taken."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kvrt_cli.main import cli

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams
from tests.cli.conftest import Kvrt, kvrt
from tests.server.conftest import PROMPT, Server, launch, listening, until

__all__ = ["kvrt"]
GREEDY: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "n_predict": 20}


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    """The same model without a server."""
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        yield runtime


def slots(server: Server) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(server.ask("GET", "/slots")[2])
    return found


def pieces(server: Server, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream."""
    _, _, body = server.ask("POST", path, {"stream": True, **fields})
    datas = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(data) for data in datas if data != "[DONE]"]


def test_a_completion_is_what_the_model_says(face: Server, tiny: Runtime) -> None:
    alone = tiny.generate(PROMPT, SamplingParams(max_tokens=20))[0]
    status, told = face.post("/completion", {**GREEDY, "return_tokens": True})
    assert status == 200
    assert (told["content"], told["tokens"]) == (alone.text, [*alone.token_ids])
    assert (told["stop_type"], told["tokens_predicted"]) == ("limit", 20)
    assert told["tokens_evaluated"] == alone.usage.prompt_tokens
    assert told["generation_settings"]["temperature"] == 0
    pace = told["timings"]
    assert pace["cache_n"] + pace["prompt_n"] == alone.usage.prompt_tokens
    assert pace["predicted_per_second"] == pytest.approx(19e3 / pace["predicted_ms"])
    streamed = pieces(face, "/completion", **GREEDY)
    assert "".join(each["content"] for each in streamed) == alone.text
    assert [token for each in streamed for token in each["tokens"]] == [*alone.token_ids]
    assert [each["stop"] for each in streamed] == [False] * (len(streamed) - 1) + [True]
    _, text = face.post("/v1/completions", {"prompt": PROMPT, "max_tokens": 20, "temperature": 0})
    assert text["choices"][0]["text"] == alone.text


def test_it_says_why_it_ended(face: Server, tiny: Runtime) -> None:
    alone = tiny.generate(PROMPT, SamplingParams(max_tokens=20))[0].text
    word = alone[8:11]
    _, told = face.post("/completion", {**GREEDY, "stop": ["never said", word]})
    assert (told["stop_type"], told["stopping_word"]) == ("word", word)
    assert told["content"] == alone[: alone.index(word)]
    _, told = face.post("/completion", {**GREEDY, "grammar": 'root ::= "yes"'})
    assert (told["content"], told["stop_type"]) == ("yes", "eos")
    _, told = face.post("/completion", {**GREEDY, "n_predict": 0})
    assert (told["content"], told["tokens_predicted"]) == ("", 0)


def test_prompts_are_texts_tokens_and_both(face: Server, tiny: Runtime) -> None:
    tokens = tiny.model.encode(PROMPT)
    alone = tiny.generate(PROMPT, SamplingParams(max_tokens=8))[0].text
    head, tail = tokens[:2], tiny.model.need_tokenizer().decode(tokens[2:])
    for prompt in (tokens, [*head, tail], {"prompt_string": PROMPT}):
        _, told = face.post("/completion", {**GREEDY, "n_predict": 8, "prompt": prompt})
        assert told["content"] == alone
    _, several = face.post("/completion", {**GREEDY, "n_predict": 8, "prompt": [PROMPT, tokens]})
    assert [(each["index"], each["content"]) for each in several] == [(0, alone), (1, alone)]


def test_the_end_of_a_stream_has_no_probabilities_also_where_its_last_token_has_no_text(
    face: Server, tiny: Runtime
) -> None:
    assert tiny.model.tokenizer is not None
    silent = tiny.model.tokenizer.eos
    asked = {
        "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "stream": True,
        "ignore_eos": True, "logit_bias": [[silent, 1000.0]], "logprobs": True, "top_logprobs": 1,
    }  # fmt: skip
    status, _, body = face.ask("POST", "/v1/chat/completions", asked)
    assert status == 200, body
    *before, last = [json.loads(line[6:]) for line in body.splitlines() if line[:7] == b"data: {"]
    (end,) = last["choices"]
    assert (end["finish_reason"], end["delta"]) == ("length", {})
    assert "logprobs" not in end
    told = [each["choices"][0].get("logprobs") or {"content": []} for each in before]
    assert [one["id"] for each in told for one in each["content"]] == [silent] * 3


def test_a_request_that_goes_on_has_a_slot(face: Server) -> None:
    done: list[Any] = []
    long = {**GREEDY, "n_predict": 900, "ignore_eos": True, "id_slot": 1}
    asking = threading.Thread(target=lambda: done.append(face.post("/completion", long)))
    asking.start()
    until(lambda: slots(face)[1]["is_processing"])
    assert not slots(face)[0]["is_processing"]
    asking.join()
    (_, told), slot = done[0], slots(face)[1]
    assert told["id_slot"] == slot["id"] == 1
    assert not slot["is_processing"]
    assert slot["next_token"][0]["n_decoded"] == told["tokens_predicted"]
    assert "stop" not in slot["params"], "it would tell what somebody has asked"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mirostat": 2}, "mirostat"),
        ({"dry_multiplier": 0.8}, "dry_multiplier"),
        ({"n_probs": 2, "post_sampling_probs": True}, "post_sampling_probs"),
        ({"lora": [{"id": 0, "scale": 1.0}]}, "lora"),
        ({"n_predict": -2}, "n_predict"),
        ({"grammar": "root ::= ("}, "grammar"),
        ({"prompt": [["x", None]]}, "prompt"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": ["aGk="]}}, "prompt"),
    ],
)
def test_what_is_not_offered_or_cannot_be_is_refused(
    face: Server, fields: dict[str, Any], named: str
) -> None:
    for stream in (False, True):
        status, told = face.post("/completion", {**GREEDY, **fields, "stream": stream})
        assert (status, told["error"]["code"]) == (400, 400)
        assert told["error"]["type"] == "invalid_request_error"
        assert named in told["error"]["message"]
    off = {"mirostat": 0, "dry_multiplier": 0.0, "top_n_sigma": -1, "typical_p": 1.0}
    assert face.post("/completion", {**GREEDY, **off, "n_predict": 1})[0] == 200


def test_what_means_nothing_here_is_passed_over_and_said(face: Server) -> None:
    assert "passed over, as they mean nothing to kvrt: --mlock, --flash-attn" in face.said()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--mirostat", "2"), "--mirostat is not offered"),
        (("--rope-scale", "4"), "--rope-scale is not offered"),
        (("--tools", "all"), "--tools is not offered"),
        (("-ctk", "q8_0", "-ctv", "f16"), "both are of one type"),
        (("-ctk", "q5_1"), "q8_0 is"),
        (("--spec-type", "draft-simple"), "-md MODEL"),
        (("--lora", "a.gguf", "--lora", "b.gguf"), "one adapter at most"),
        (("--temp", "-1"), "temperature"),
        (("--embedding", "-m", __file__), "Hugging Face layout"),
        (("--host", "0.0.0.0"), "--without-keys"),
        (("--pooling", "none", "--embedding"), "--pooling none is not offered"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_its_name(
    kvrt: Kvrt, words: tuple[str, ...], said: str
) -> None:
    result = kvrt("llama-server", "-m", "tiny", "--port", "0", *words)
    assert result.exit_code == 2
    assert said in result.stderr


def test_what_is_off_is_no_reason_to_refuse() -> None:
    words = ["--mirostat", "0", "--typical", "1.0", "--rope-scaling", "none", "-ngl", "99", "-fa"]
    command = cli.commands["llama-server"]
    ctx = command.make_context("llama-server", ["-m", "tiny", *words])
    assert ctx.params["gpu_layers"] == "99"


def test_clients_need_one_of_the_keys_that_are_given(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("second\n\nthird\n")
    options = ("--port", "0", "-ngl", "0", "--api-key", "first", "--api-key-file", str(keys))
    server = launch(tmp_path / "log", "-m", "tiny", *options, command="llama-server")
    with listening(server):
        assert server.ask("GET", "/health")[0] == 200
        assert server.ask("GET", "/v1/health")[0] == 200
        for key in ("", "Bearer fourth", "Bearer "):
            headers = {"authorization": key} if key else {}
            status, _, body = server.ask("GET", "/props", headers=headers)
            told = json.loads(body)["error"]
            assert (status, told["code"], told["type"]) == (401, 401, "authentication_error")
        for key in ("first", "second", "third"):
            told_by = {"authorization": f"Bearer {key}"}
            assert server.ask("GET", "/props", headers=told_by)[0] == 200
            assert server.ask("GET", "/props", headers={"x-api-key": key})[0] == 200
        assert server.ask("GET", "/metrics", headers={"x-api-key": "first"})[0] == 501
        begun = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - begun < 30


SAID = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/completion", {"logit_bias": 5}, "logit_bias is no list of [token, bias]"),
        ("/completion", {"logit_bias": [[1]]}, "logit_bias is no list of [token, bias]"),
        ("/completion", {"lora": [{"id": 0, "scale": 1}]}, "there is no adapter 0"),
        ("/completion", {"lora": [{"x": 0}]}, "lora is no list of objects with id and scale"),
        ("/tokenize", {"content": "a<|endoftext|>", "parse_special": False}, "always read as such"),
        ("/v1/chat/completions", {"messages": [SAID] * 2}, "none can be continued"),
        ("/lora-adapters", b"{", "the body is not JSON"),
        ("/lora-adapters", {}, "the body is no list of objects with id and scale"),
    ],
)
def test_what_is_not_taken_is_refused_for_its_reason(
    face: Server, path: str, body: Any, words: str
) -> None:
    given = {"prompt": "a", **body} if path == "/completion" else body
    status, _, data = face.ask("POST", path, given)
    assert status == 400, data
    assert words in json.loads(data)["error"]["message"]


def test_a_text_without_special_tokens_may_say_that_they_are_none(face: Server) -> None:
    status, told = face.post("/tokenize", {"content": "a b", "parse_special": False})
    assert (status, told) == face.post("/tokenize", {"content": "a b"})
