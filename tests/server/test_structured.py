"""Answers that are held to a schema, a pattern, choices or a grammar, as clients ask for them."""

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.server.conftest import MESSAGES, PROMPT, Server

SECRET = "mysecretword"


class Person(BaseModel):
    """What is to be said."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=150)
    likes: Literal["tea", "rain"]


ASKED: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "max_tokens": 200, "seed": 5}
SCHEMA = {**Person.model_json_schema(), "additionalProperties": False}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.strict_client() as one:
        yield one


def test_the_official_client_parses_what_it_asked_for(client: openai.OpenAI) -> None:
    chat = client.chat.completions.parse(**ASKED, response_format=Person)
    assert isinstance(chat.choices[0].message.parsed, Person)
    response = client.responses.parse(
        model="tiny", input="Say something.", max_output_tokens=200, text_format=Person
    )
    assert isinstance(response.output_parsed, Person)
    assert response.text.format.type == "json_schema"  # type: ignore[union-attr]


def test_a_stream_and_several_completions_are_held_to_it_too(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    stream = client.chat.completions.create(**ASKED, response_format=form, stream=True, n=3)
    texts = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    answer = client.chat.completions.create(
        **{**ASKED, "temperature": 0.2}, response_format={"type": "json_object"}
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_grammar": 'root ::= "x" [0-9]'}, r"x\d"),
        ({"guided_json": {"enum": [1, "b"]}}, '1|"b"'),
        ({"guided_json": '{"enum": [1, "b"]}'}, '1|"b"'),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"], "json": None}}, "yes|no"),
        ({"structured_outputs": {"json": {"enum": [1, "b"]}}}, '1|"b"'),
    ],
    ids=str,
)
def test_what_other_servers_call_it_works_in_chats_and_completions(
    client: openai.OpenAI, fields: dict[str, Any], pattern: str
) -> None:
    chat = client.chat.completions.create(**ASKED, extra_body=fields)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    assert chat.choices[0].finish_reason == "stop"
    text = client.completions.create(model="tiny", prompt=PROMPT, extra_body=fields)
    assert re.fullmatch(pattern, text.choices[0].text)


def test_a_format_of_ollamas_is_held_to(server: Server) -> None:
    body = {"model": "tiny", "messages": MESSAGES, "stream": False, "format": SCHEMA}
    status, answer = server.post("/api/chat", {**body, "options": {"num_predict": 200}})
    assert status == 200
    jsonschema.validate(json.loads(answer["message"]["content"]), SCHEMA)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("response_format", {"response_format": {"type": SECRET}}),
    ("response_format", {"response_format": {"type": "json_schema", "json_schema": SECRET}}),
    ("response_format", {"response_format": {"type": "json_schema", "schema": {"type": SECRET}}}),
    ("guided_regex", {"guided_regex": f"({SECRET}"}),
    ("guided_regex", {"guided_regex": ""}),
    ("guided_regex", {"guided_regex": "a" * 300_000}),
    ("guided_choice", {"guided_choice": []}),
    ("guided_grammar", {"guided_grammar": SECRET}),
    ("guided_json", {"guided_json": f"[{SECRET}"}),
    ("structured_outputs", {"structured_outputs": {SECRET: 1}}),
    ("structured_outputs", {"structured_outputs": {"regex": 5}}),
    ("guided_regex", {"guided_regex": "a", "response_format": {"type": "json_object"}}),
]


@pytest.mark.promise("P26")
@pytest.mark.parametrize(("name", "fields"), BAD, ids=range(len(BAD)))
def test_what_cannot_be_held_to_is_refused_by_its_field(
    server: Server, name: str, fields: dict[str, Any]
) -> None:
    status, answer = server.post("/v1/chat/completions", {**ASKED, **fields})
    assert status == 400
    assert answer["error"]["param"] == name
    assert SECRET not in answer["error"]["message"]


def test_hostile_schemas_disturb_no_stream_beside_them(server: Server) -> None:
    """They are refused in their time, and the stream says what it says alone."""
    wide: dict[str, Any] = {"type": "string"}
    for _ in range(12):
        wide = {"anyOf": [{"properties": {name: wide}} for name in "ab"]}
    bodies = [
        {**ASKED, "guided_json": wide},
        {**ASKED, "guided_regex": "(" * 9000 + ")" * 9000},
        {**ASKED, "guided_grammar": "start: " + "(" * 9999 + '"a"' + ")" * 9999},
    ]
    free = {"model": "tiny", "prompt": PROMPT, "max_tokens": 300, "temperature": 0,
            "ignore_eos": True}  # fmt: skip
    alone = server.post("/v1/completions", free)[1]["choices"][0]["text"]
    found: list[int] = []

    def attack() -> None:
        found.extend(server.post("/v1/chat/completions", body)[0] for body in bodies * 2)

    attackers = [threading.Thread(target=attack) for _ in range(3)]
    begun = time.monotonic()
    for thread in attackers:
        thread.start()
    while any(thread.is_alive() for thread in attackers):
        assert server.post("/v1/completions", free)[1]["choices"][0]["text"] == alone
    assert set(found) == {400}
    assert time.monotonic() - begun < 120
