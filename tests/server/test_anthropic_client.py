"""The real anthropic client, unmodified, gets what the model says."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import MESSAGES, Server, until

GREEDY = {"temperature": 0}  # which newer clients have no argument for
ASKED: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "extra_body": GREEDY}
PLAIN = "User: Say something.\n\nAssistant:"


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="module")
def tiny() -> Iterator[Runtime]:
    """The same model without a server."""
    with Runtime("tiny", backend="cpu", memory_limit="256MiB") as runtime:
        yield runtime


def test_a_message_is_answered_whole_and_as_a_stream(
    client: anthropic.Anthropic, tiny: Runtime
) -> None:
    alone = tiny.generate(PLAIN, SamplingParams(max_tokens=20))[0]
    answer = client.messages.create(**ASKED)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == alone.text
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 20
    cached = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + cached == alone.usage.prompt_tokens
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == alone.text
        final = stream.get_final_message()
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 20


def test_events_come_in_their_order(client: anthropic.Anthropic) -> None:
    kinds = [event.type for event in client.messages.create(**ASKED, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_system_message_comes_first_and_an_assistants_last_is_continued(
    client: anthropic.Anthropic, tiny: Runtime
) -> None:
    prompt = "System: Be brief.\n\nUser: Say something.\n\nAssistant: Well"
    alone = tiny.generate(prompt, SamplingParams(max_tokens=8))[0]
    parts = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    for system in ("Be brief.", parts):
        asked = {**ASKED, "max_tokens": 8, "system": system}
        asked["messages"] = [*MESSAGES, {"role": "assistant", "content": "Well"}]
        answer = client.messages.create(**asked)
        assert answer.content[0].text == alone.text  # type: ignore[union-attr]
        count = client.messages.count_tokens(
            **{k: asked[k] for k in ("model", "messages", "system")}
        )
        assert count.input_tokens == alone.usage.prompt_tokens


def test_the_stop_sequence_that_ended_an_answer_is_named(
    client: anthropic.Anthropic, tiny: Runtime
) -> None:
    said = tiny.generate(PLAIN, SamplingParams(max_tokens=20))[0].text
    stop = said[8:11]
    answer = client.messages.create(**ASKED, stop_sequences=["zzzz", stop])
    assert answer.stop_reason == "stop_sequence"
    assert answer.stop_sequence == stop
    assert answer.content[0].text == said[: said.index(stop)]  # type: ignore[union-attr]


def test_the_model_is_listed(client: anthropic.Anthropic) -> None:
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == ("tiny", "model", "tiny")
    assert client.models.retrieve("tiny") == model


def test_an_answer_is_held_to_a_schema(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"mood": {"enum": ["glad", "sad"]}},
              "required": ["mood"], "additionalProperties": False}  # fmt: skip
    config: Any = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    answer = client.messages.create(**ASKED, output_config=config)
    assert json.loads(answer.content[0].text)["mood"] in ("glad", "sad")  # type: ignore[union-attr]
    assert answer.stop_reason == "end_turn"
    for wrong in ({"type": "xml"}, {"type": "json_schema"}):
        with pytest.raises(anthropic.BadRequestError, match="output_config"):
            client.messages.create(**ASKED, output_config={"format": wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"temperature": 2.5},
        {"top_k": -5},
        {"messages": []},
        {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
    ],
)
def test_what_is_not_offered_or_cannot_be_is_refused(
    client: anthropic.Anthropic, fields: dict[str, Any]
) -> None:
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{**ASKED, "extra_body": fields})
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    (name,) = fields
    assert name in body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASKED, "model": "other"})


@pytest.mark.promise("P14")
def test_a_stream_that_is_left_ends_its_request(
    client: anthropic.Anthropic, server: Server
) -> None:
    with client.messages.stream(**{**ASKED, "max_tokens": 900}) as stream:
        next(iter(stream.text_stream))
    until(lambda: server.used_pages == 0)
