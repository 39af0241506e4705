"""The real ollama client, unmodified, gets what the model says."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MESSAGES, Server, until

PLAIN = "User: Say something.\n\nAssistant:"
GREEDY: Any = {"temperature": 0, "num_predict": 20}
ASKED: Any = {"model": "tiny", "messages": MESSAGES, "options": GREEDY}


@pytest.fixture
def client(server: Server) -> Iterator[ollama.Client]:
    client = ollama.Client(host=server.url)
    yield client
    client._client.close()


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    """The same model without a server."""
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        yield runtime


def test_a_chat_is_answered_whole_and_as_a_stream(client: ollama.Client, tiny: Runtime) -> None:
    alone = tiny.generate(PLAIN, SamplingParams(max_tokens=20))[0]
    answer = client.chat(**ASKED)
    assert answer.message.role == "assistant"
    assert answer.message.content == alone.text
    assert (answer.done, answer.done_reason) == (True, "length")
    assert answer.prompt_eval_count == alone.usage.prompt_tokens
    assert answer.eval_count == 20
    assert answer.total_duration is not None
    assert answer.prompt_eval_duration is not None
    assert answer.eval_duration is not None
    assert answer.total_duration >= answer.prompt_eval_duration + answer.eval_duration > 0
    pieces = list(client.chat(**ASKED, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == alone.text
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == 20
    assert pieces[-1].done_reason == "length"


def test_an_assistants_last_message_is_continued(client: ollama.Client, tiny: Runtime) -> None:
    alone = tiny.generate(f"{PLAIN} Well", SamplingParams(max_tokens=20))[0]
    answer = client.chat(
        **{**ASKED, "messages": [*MESSAGES, {"role": "assistant", "content": "Well"}]}
    )
    assert answer.message.content == alone.text


def test_a_prompt_is_a_users_unless_it_is_raw(client: ollama.Client, tiny: Runtime) -> None:
    params = SamplingParams(max_tokens=20)
    system = f"System: Be brief.\n\n{PLAIN}"
    for prompt, fields in (
        (PLAIN, {"prompt": "Say something."}),
        (system, {"prompt": "Say something.", "system": "Be brief."}),
        ("Say something.", {"prompt": "Say something.", "raw": True}),
    ):
        alone = tiny.generate(prompt, params)[0]
        asked: Any = {"model": "tiny:latest", "options": GREEDY, **fields}
        assert client.generate(**asked).response == alone.text
        pieces = list(client.generate(**asked, stream=True))
        assert "".join(piece.response for piece in pieces) == alone.text


def test_log_probabilities_are_those_of_the_runtime(client: ollama.Client, tiny: Runtime) -> None:
    params = SamplingParams(max_tokens=20, logprobs=2)
    alone = tiny.generate(PLAIN, params)[0].completions[0].logprobs
    assert alone is not None
    answer = client.chat(**ASKED, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert [e.logprob for e in answer.logprobs] == pytest.approx([e.logprob for e in alone])
    assert all(entry.top_logprobs and len(entry.top_logprobs) == 2 for entry in answer.logprobs)
    pieces = client.chat(**ASKED, stream=True, logprobs=True, top_logprobs=2)
    assert [e for piece in pieces for e in piece.logprobs or ()] == answer.logprobs
    assert client.chat(**ASKED).logprobs is None


def test_options_mean_what_they_mean_in_the_runtime(client: ollama.Client, tiny: Runtime) -> None:
    params = SamplingParams(
        max_tokens=16, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=11,
        presence_penalty=0.5, frequency_penalty=-0.5, repetition_penalty=1.1, stop=["\n\n", "zzz"],
    )  # fmt: skip
    options = {"num_predict": 16, "temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01,
               "seed": 11, "presence_penalty": 0.5, "frequency_penalty": -0.5,
               "repeat_penalty": 1.1, "stop": ["\n\n", "zzz"], "num_ctx": 4096}  # fmt: skip
    alone = tiny.generate(PLAIN, params)[0]
    assert client.chat("tiny", MESSAGES, options=options).message.content == alone.text
    assert tiny.model.max_model_len == 1024
    everything = client.generate("tiny", "a", raw=True, options={"num_predict": -1, "seed": 1})
    assert everything.eval_count is not None
    assert everything.done_reason == "stop" or everything.eval_count > 1000


def test_a_model_is_listed_shown_and_there(client: ollama.Client, tiny: Runtime) -> None:
    (listed,) = client.list().models
    assert listed.model == "tiny"
    assert listed.size == tiny.model.weight_bytes
    assert listed.digest == tiny.model.fingerprint
    (running,) = client.ps().models
    assert running.model == "tiny"
    assert running.context_length == 1024
    shown = client.show("tiny")
    assert shown.modelinfo is not None
    family = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{family}.context_length"] == 1024
    assert shown.details is not None
    assert shown.details.family == family
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities
    assert client.generate("tiny").done_reason == "load", "asked to load, it is there"
    assert client.chat("tiny").done_reason == "load"
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("other")
    assert caught.value.status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"format": {"type": "nothing"}},
        {"think": True},
        {"options": {"mirostat": 2}},
        {"options": {"num_predict": -3}},
        {"options": {"temperature": -1}},
        {"messages": [{"role": "user", "content": "What is it?", "images": ["aGk="]}]},
    ],
)
def test_what_is_not_offered_or_cannot_be_is_refused(
    client: ollama.Client, server: Server, fields: dict[str, Any]
) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(client.chat(**{**ASKED, **fields, "stream": stream}))
        assert caught.value.status_code == 400
        (name,) = fields.get("options", fields)
        assert name.replace("messages", "images") in caught.value.error
    status, answer = server.post("/api/chat", {**ASKED, **fields})
    assert (status, type(answer["error"])) == (400, str)
    with pytest.raises(ollama.ResponseError, match="this server has tiny"):
        client.chat("other", MESSAGES)
    with pytest.raises(ollama.ResponseError, match="not given up"):
        client.generate("tiny", keep_alive=0)


@pytest.mark.promise("P14")
def test_a_stream_that_is_left_ends_its_request(client: ollama.Client, server: Server) -> None:
    asked = {**ASKED, "options": {"num_predict": 900}}
    stream = client.chat(**asked, stream=True)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    until(lambda: server.used_pages == 0)


def test_many_asynchronous_streams_are_answered_together(server: Server, tiny: Runtime) -> None:
    prompts = [f"def f{n}(x):" for n in range(8)]
    alone = [result.text for result in tiny.generate(prompts, SamplingParams(max_tokens=20))]

    async def ask(client: ollama.AsyncClient, prompt: str) -> str:
        pieces = await client.generate("tiny", prompt, raw=True, options=GREEDY, stream=True)
        return "".join([piece.response async for piece in pieces])

    async def all_of_them() -> list[str]:
        client = ollama.AsyncClient(host=server.url)
        try:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))
        finally:
            await client._client.aclose()

    assert asyncio.run(all_of_them()) == alone


def test_a_stream_is_lines_of_json_and_one_is_asked_for_unless_it_is_not(server: Server) -> None:
    status, headers, body = server.ask("POST", "/api/chat", ASKED)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    lines = [json.loads(line) for line in body.splitlines()]
    assert len(lines) > 1
    assert lines[-1]["done"]
    _, headers, body = server.ask("POST", "/api/chat", {**ASKED, "stream": False})
    assert headers["content-type"] == "application/json"
    assert json.loads(body)["done"]
