"""The real openai client, unmodified, gets what the model says."""

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .clients import ROUTES, asked
from .conftest import MESSAGES, PROMPT, Server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.strict_client() as client:
        yield client


@pytest.fixture
def lenient(server: Server) -> Iterator[openai.OpenAI]:
    """For completions: where there is no reason to end yet, and no log-probability of a first
    token, OpenAI's own server says null, for which its client's types have no room."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    """The same model without a server."""
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        yield runtime


def test_the_model_is_listed_and_found_by_its_name(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "kvrt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="this server has tiny"):
        client.completions.create(model="other", prompt="a")


def test_a_completion_says_what_the_runtime_says(lenient: openai.OpenAI, tiny: Runtime) -> None:
    alone = tiny.generate(PROMPT, SamplingParams(max_tokens=24))[0]
    answer = lenient.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, temperature=0)
    assert answer.choices[0].text == alone.text
    assert answer.choices[0].finish_reason == alone.finish_reason
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens == alone.usage.completion_tokens
    pieces = lenient.completions.create(
        model="tiny", prompt=list(alone.prompt_token_ids), max_tokens=24, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == alone.text


def test_several_prompts_are_answered_each_n_times(lenient: openai.OpenAI, tiny: Runtime) -> None:
    prompts = ["def f(a):", "import os\n", "class A:"]
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=3, n=2)
    texts = [c.text for r in tiny.generate(prompts, params) for c in r.completions]
    asked = {"model": "tiny", "prompt": prompts, "max_tokens": 8, "seed": 3, "n": 2}
    asked |= {"temperature": 1.0, "top_p": 1.0, "extra_body": {"top_k": 0}}
    answer = lenient.completions.create(**asked)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(6))
    streamed = [""] * 6
    options = {"include_usage": True}
    for piece in lenient.completions.create(**asked, stream=True, stream_options=options):
        for choice in piece.choices:
            streamed[choice.index] += choice.text
        last = piece
    assert streamed == texts
    assert last.usage == answer.usage


def test_echo_gives_the_log_probabilities_of_the_prompt(
    lenient: openai.OpenAI, tiny: Runtime
) -> None:
    """As lm-eval's local-completions asks."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=2)
    alone = tiny.generate(PROMPT, params)[0]
    answer = lenient.completions.create(
        model="tiny", prompt=list(alone.prompt_token_ids), max_tokens=1, temperature=0, logprobs=2,
        echo=True, seed=1234,
    )  # fmt: skip
    assert answer.choices[0].text == PROMPT + alone.text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == PROMPT + alone.text
    assert logprobs.text_offset == [
        sum(map(len, logprobs.tokens[:place])) for place in range(len(logprobs.tokens))
    ]
    assert logprobs.token_logprobs[0] is None
    assert alone.prompt_logprobs is not None
    for entry, given in zip(alone.prompt_logprobs, logprobs.token_logprobs[1:-1], strict=True):
        assert math.isclose(entry.logprob, given, abs_tol=1e-3)
    for token, given, top in list(
        zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True)
    )[1:]:
        assert top[token] >= given
        assert 2 <= len(top) <= 3
    scored = lenient.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=0, logprobs=1, echo=True
    )
    assert scored.choices[0].text == PROMPT
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0


def test_a_chat_is_answered_whole_and_as_a_stream(client: openai.OpenAI, tiny: Runtime) -> None:
    alone = tiny.generate("User: Say something.\n\nAssistant:", SamplingParams(max_tokens=20))[0]
    asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 20}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.message.content == alone.text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert len(choice.logprobs.content) == 20
    assert "".join(entry.token for entry in choice.logprobs.content) == alone.text
    assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            **asked, stream=True, logprobs=True, top_logprobs=3, stream_options=options
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == alone.text
    entries = [e for c in said if c.logprobs is not None for e in c.logprobs.content or ()]
    assert entries == choice.logprobs.content
    assert [choice.finish_reason for choice in said if choice.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_an_address_without_the_version_finds_the_same(server: Server) -> None:
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0}
    with server.client(base_url=server.url) as bare, server.client() as usual:
        assert list(bare.models.list()) == list(usual.models.list())
        assert bare.models.retrieve("tiny").id == "tiny"
        said = [
            client.chat.completions.create(**asked, messages=MESSAGES, max_tokens=8).choices
            for client in (bare, usual)
        ]
        assert said[0] == said[1]
        assert bare.completions.create(**asked, prompt="a").choices
        assert bare.responses.create(**asked, input="a", max_output_tokens=2).output
        assert bare.responses.input_tokens.count(model="tiny", input="a").input_tokens
        with pytest.raises(openai.NotFoundError):
            bare.post("/messages", cast_to=object, body={})


@pytest.mark.parametrize("route", [*ROUTES, "/v1/messages/count_tokens"])
def test_a_request_that_names_no_model_means_the_one_that_there_is(
    server: Server, route: str
) -> None:
    shape = route.removesuffix("/count_tokens")
    body = asked(shape, "Say something.", 2, stream=False)
    if shape != route:
        del body["stream"], body["max_tokens"]
    named = server.post(route, body)
    assert named[0] == 200
    del body["model"]
    status, answer = server.post(route, body)
    assert status == 200
    assert answer.get("model") == named[1].get("model")
    body["model"] = "other"
    assert server.post(route, body)[0] == 404


def test_a_response_is_answered_whole_and_as_a_stream(client: openai.OpenAI, tiny: Runtime) -> None:
    prompt = "System: Be brief.\n\nUser: Say something.\n\nAssistant:"
    alone = tiny.generate(prompt, SamplingParams(max_tokens=20))[0]
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "Say something."}]}]
    developer = [{"role": "developer", "content": "Be brief.", "type": "message"}, *parts]
    asked: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_output_tokens": 20}
    for fields in (
        {"input": "Say something.", "instructions": "Be brief."},
        {"input": parts, "instructions": "Be brief."},
        {"input": developer},
    ):
        answer = client.responses.create(**asked, **fields)
        assert answer.output_text == alone.text
        assert answer.status == "incomplete"
        assert answer.incomplete_details is not None
        assert answer.incomplete_details.reason == "max_output_tokens"
        assert answer.usage is not None
        assert answer.usage.input_tokens == alone.usage.prompt_tokens
        counted = client.responses.input_tokens.count(model="tiny", **fields)
        assert counted.input_tokens == alone.usage.prompt_tokens
    events = list(client.responses.create(**asked, **fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added",
        "response.content_part.added",
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done",
        "response.incomplete",
    ]  # fmt: skip
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(said) == events[-1].response.output_text == alone.text
    for name, value in (
        ("previous_response_id", "resp_1"),
        ("tools", [{"type": "web_search"}]),
        ("background", True),
        ("input", [{"type": "item_reference", "id": "x"}]),
        ("text", {"format": {"type": "json_schema", "name": "x"}}),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(**{**asked, **fields, name: value})
        assert caught.value.param in (name, f"{name}[0]")


def test_sampling_fields_mean_what_they_mean_in_the_runtime(
    client: openai.OpenAI, tiny: Runtime
) -> None:
    params = SamplingParams(
        max_tokens=16, temperature=0.9, top_p=0.9, top_k=40, min_p=0.01, seed=11, n=3,
        presence_penalty=0.5, frequency_penalty=-0.5, repetition_penalty=1.1,
        logit_bias={300: 5.0}, stop=["\n\n", "zzz"], stop_token_ids=[7], min_tokens=2,
    )  # fmt: skip
    alone = tiny.generate(PROMPT, params)[0]
    answer = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=16, temperature=0.9, top_p=0.9, seed=11, n=3,
        presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"300": 5}, stop=["\n\n", "zzz"],
        extra_body={"top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "stop_token_ids": [7],
                    "min_tokens": 2},
    )  # fmt: skip
    assert [choice.text for choice in answer.choices] == [c.text for c in alone.completions]


def test_what_was_computed_before_is_not_computed_again(client: openai.OpenAI) -> None:
    prompt = "".join(f"value_{n} = {n}\n" for n in range(40))
    cached = []
    for _ in range(2):
        answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=1)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert answer.usage.prompt_tokens - 16 <= cached[1] < answer.usage.prompt_tokens  # type: ignore[operator]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "structural_tag"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"top_logprobs": 3},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        {"messages": []},
        {"n": 1000},
    ],
)
def test_what_is_not_offered_or_cannot_be_is_refused_by_the_name_of_its_field(
    client: openai.OpenAI, fields: dict[str, object]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            **{"model": "tiny", "messages": MESSAGES, "max_tokens": 4, **fields}
        )
    (name,) = fields
    assert str(caught.value.param).startswith(name)


def test_a_prompt_that_is_longer_than_the_context_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="room for 1024"):
        client.completions.create(model="tiny", prompt=[5] * 1024)


def test_many_asynchronous_streams_are_answered_together(server: Server, tiny: Runtime) -> None:
    prompts = [f"def f{n}(x):" for n in range(16)]
    alone = [result.text for result in tiny.generate(prompts, SamplingParams(max_tokens=32))]

    async def ask(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=prompt, max_tokens=32, temperature=0, stream=True
        )
        return "".join([piece.choices[0].text async for piece in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    assert asyncio.run(all_of_them()) == alone


def test_tokens_are_made_of_text_and_text_of_tokens(server: Server, tiny: Runtime) -> None:
    status, answer = server.post("/tokenize", {"prompt": PROMPT})
    assert status == 200
    assert answer["tokens"] == tiny.model.encode(PROMPT)
    assert answer["count"] == len(answer["tokens"])
    assert server.post("/detokenize", {"tokens": answer["tokens"]})[1]["prompt"] == PROMPT
    status, answer = server.post("/tokenize", {"messages": MESSAGES})
    assert answer["tokens"] == tiny.model.encode("User: Say something.\n\nAssistant:")
    assert server.post("/tokenize", {})[0] == 400
    assert server.post("/detokenize", {"tokens": [10**9]})[0] == 400
