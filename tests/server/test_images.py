"""Images in requests of OpenAI's, Anthropic's and Ollama's clients."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from PIL import Image

from kvrt import Illustrated, Runtime, SamplingParams
from tests.model.sights import TOKENS, encoded, make_sight, picture, save_sight

from .conftest import Server, started

DATA = base64.b64encode(encoded(picture(1))).decode()
URL = f"data:image/png;base64,{DATA}"
NEW = 8
GREEDY = SamplingParams(max_tokens=NEW, temperature=0.0)
ASKED: dict[str, Any] = {"model": "any", "temperature": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sight(make_sight(), tmp_path_factory.mktemp("sight"))


@pytest.fixture(scope="module")
def said(folder: Path) -> tuple[str, str, int]:
    """What it says of the image in a conversation, and of a text behind it; tokens of the first."""
    part = {"type": "image", "image": encoded(picture(1))}
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "what?"}]}]
    with Runtime(folder, backend="cpu", memory_limit="64MiB") as runtime:
        of_chat, of_text = (
            runtime.generate([prompt], GREEDY)[0]
            for prompt in (chat, Illustrated("what?", [encoded(picture(1))]))
        )
    return of_chat.text, of_text.text, len(of_chat.prompt_token_ids)


@pytest.fixture(scope="module")
def seeing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("log"), "--alias", "any", model=str(folder)) as server:
        yield server
    assert "CONNECTS" not in server.said(), "nothing that is asked makes a connection"


def message(*parts: object) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "what?"}]}]


def image_url(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def source(**fields: str) -> dict[str, Any]:
    return {"type": "image", "source": {"media_type": "image/png", **fields}}


def test_all_protocols_see_the_same_image(seeing: Server, said: tuple[str, str, int]) -> None:
    of_chat, of_text, length = said
    with openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="none") as client:
        chat = client.chat.completions.create(
            **ASKED, max_tokens=NEW, messages=message(image_url(URL))
        )
        items: Any = [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": URL, "detail": "auto"},
                    {"type": "input_text", "text": "what?"},
                ],
            }
        ]
        response = client.responses.create(**ASKED, max_output_tokens=16, input=items)
    assert chat.choices[0].message.content == of_chat
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == length > TOKENS
    assert response.output_text.startswith(of_chat)
    with anthropic.Anthropic(base_url=seeing.url, api_key="none") as asker:
        messages = message(source(type="base64", data=DATA))
        answer = asker.messages.create(
            model="any", max_tokens=NEW, messages=messages, extra_body={"temperature": 0.0}
        )
        counted = asker.messages.count_tokens(model="any", messages=messages)
    assert [getattr(block, "text", None) for block in answer.content] == [of_chat]
    assert counted.input_tokens == length
    options = {"num_predict": NEW, "temperature": 0.0}
    asked = [{"role": "user", "content": "what?", "images": [encoded(picture(1))]}]
    with ollama.Client(host=seeing.url) as shower:
        shown = shower.chat("any", asked, options=options)
        made = [
            shower.generate("any", "what?", images=[DATA], raw=raw, options=options).response
            for raw in (False, True)
        ]
    assert shown.message.content == of_chat
    assert made == [of_chat, of_text]


BAD = {
    "an address": (image_url("http://127.0.0.1:9/cat.png"), "nothing is fetched here"),
    "a file": (image_url("file:///etc/hostname"), "nothing is fetched here"),
    "a path": (image_url("/etc/hostname"), "nothing is fetched here"),
    "a path as ours": ({"type": "image", "image": "/etc/hostname"}, "has an image that is none"),
    "an address, Anthropic's": (source(type="url", url="http://127.0.0.1:9"), "nothing is fetched"),
    "a file of theirs": (source(type="file", file_id="x"), "has an image that is none"),
    "no url": ({"type": "image_url"}, "has an image that is none"),
    "no base64": (image_url("data:image/png;base64,@@@"), "is no base64"),
    "not in base64": (image_url("data:image/png,abc"), "has an image that is none"),
    "no image": (image_url("data:image/png;base64,aGk="), "image 0 is none of PNG"),
    "half an image": (image_url(URL[:-400]), "image 0 cannot be decoded"),
    "a sound": ({"type": "input_audio", "input_audio": {}}, "has content other than text"),
}


def bomb() -> dict[str, Any]:
    """A file of 12 kB, with 100 million pixels."""
    file = encoded(Image.new("1", (10_000, 10_000)))
    return image_url(f"data:image/png;base64,{base64.b64encode(file).decode()}")


@pytest.mark.promise("P32")
@pytest.mark.parametrize("name", [*BAD, "a bomb", "too many"])
def test_what_is_no_image_is_refused_and_disturbs_nobody(
    seeing: Server, said: tuple[str, str, int], name: str
) -> None:
    parts, why = {
        "a bomb": ([bomb()], "10000 x 10000 pixels"),
        "too many": ([image_url(URL)] * 9, "9 images; at most 8"),
    }.get(name) or ([BAD[name][0]], BAD[name][1])
    body = {**ASKED, "max_tokens": NEW}
    status, answer = seeing.post("/v1/chat/completions", {**body, "messages": message(*parts)})
    assert status == 400
    assert why in answer["error"]["message"]
    assert "hostname" not in answer["error"]["message"]
    good = {**body, "messages": message(image_url(URL))}
    status, answer = seeing.post("/v1/chat/completions", good)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == said[0]


def test_a_model_without_a_tower_refuses_images_in_every_protocol(server: Server) -> None:
    asked = {"model": "tiny", "max_tokens": 4}
    anthropics = message(source(type="base64", data=DATA))
    ollamas = [{"role": "user", "content": "x", "images": [DATA]}]
    for path, body in (
        ("/v1/chat/completions", {**asked, "messages": message(image_url(URL))}),
        ("/v1/messages", {**asked, "messages": anthropics}),
        ("/v1/messages/count_tokens", {"model": "tiny", "messages": anthropics}),
        ("/api/chat", {"model": "tiny", "messages": ollamas}),
        ("/api/generate", {"model": "tiny", "prompt": "x", "images": [DATA]}),
        ("/tokenize", {"messages": message(image_url(URL))}),
    ):
        status, answer = server.post(path, body)
        assert status == 400, path
        assert "tiny has no vision tower" in str(answer), path
