"""What is said in files, as OpenAI's client asks for it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from kvrt import AsyncRuntime, Runtime, Transcriber, Transcript
from kvrt.server.access.guard import Guard
from kvrt.server.access.keys import Keys, add_key
from kvrt.server.access.oidc import Credentials
from kvrt.server.app import make_app
from kvrt.server.config import ServerConfig
from kvrt.server.openai.audio import Audio
from kvrt.server.service import Service
from kvrt.speech.subtitles import srt, vtt
from tests.speech.speakers import make_speaker, sound
from tests.speech.test_audio import wav
from tests.speech.test_transcriber import count_encoded

from .conftest import Server, started

SECRET = "w1 my secret names"
SOUND = wav(sound(3.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whisper"
    make_speaker(folder)
    return folder


@pytest.fixture(scope="module")
def listening(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("server"), "--speech-model", str(folder)) as server:
        yield server


def test_what_is_said_is_told_in_all_of_openais_forms(folder: Path, listening: Server) -> None:
    with Transcriber(folder, backend="cpu") as transcriber:

        def want(**asked: Any) -> Transcript:
            return transcriber.transcribe(SOUND, **asked)[0]

        found, german = want(), want(language="de", prompt="w1 w2")
        english = want(task="translate")
    audio = listening.client().audio
    file = ("talk.wav", SOUND)
    assert audio.transcriptions.create(model="whisper", file=file).text == found.text
    with pytest.warns(DeprecationWarning, match="deprecated"):  # by this client
        assert audio.translations.create(model="whisper", file=file).text == english.text
    told = {"model": "whisper", "file": file, "language": "de", "prompt": "w1 w2"}
    for form, made in (
        ("text", f"{german.text}\n"),
        ("srt", srt(german.segments)),
        ("vtt", vtt(german.segments)),
    ):
        assert audio.transcriptions.create(**told, response_format=form) == made
    whole = audio.transcriptions.create(
        **told,
        response_format="verbose_json",
        temperature=0,
        timestamp_granularities=["segment"],
    )
    assert (whole.text, whole.language) == (german.text, "de")
    assert float(whole.duration) == pytest.approx(german.duration)
    assert [(own.text, own.tokens) for own in whole.segments] == [
        (own.text, [*own.tokens]) for own in german.segments
    ]
    for made, own in zip(whole.segments, german.segments, strict=True):
        assert (made.start, made.end) == (round(own.start, 3), round(own.end, 3))
        assert made.no_speech_prob == pytest.approx(own.no_speech)


def test_a_bad_question_is_refused_by_its_field(listening: Server) -> None:
    audio = listening.client().audio
    asked: dict[str, Any] = {"model": "whisper", "file": ("talk.wav", SOUND)}
    for fields, param in (
        ({"file": ("talk.wav", SOUND[:-900])}, "file"),
        ({"file": ("talk.wav", b"my secret words are no sound")}, "file"),
        ({"file": ("talk.wav", b"")}, "file"),
        ({"language": "xx"}, "language"),
        ({"temperature": 0.5}, "temperature"),
        ({"temperature": 7}, "temperature"),
        ({"response_format": "xml"}, "response_format"),
        ({"timestamp_granularities": ["word", "segment"]}, "timestamp_granularities[]"),
        ({"extra_body": {"stream": "true"}}, "stream"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            audio.transcriptions.create(**(asked | fields), prompt=SECRET)
        assert refused.value.param == param
        assert "secret" not in str(refused.value)
    with pytest.raises(openai.NotFoundError):
        audio.transcriptions.create(**(asked | {"model": "other"}))
    with pytest.raises(openai.APIStatusError) as large:
        audio.transcriptions.create(**(asked | {"file": ("talk.wav", bytes(26 << 20))}))
    assert large.value.status_code == 413
    assert audio.transcriptions.create(**asked).text  # it answers on


def test_many_ask_at_once_and_each_has_its_own(folder: Path, listening: Server) -> None:
    sounds = [wav(sound(1.5, seed)) for seed in range(4)]
    with Transcriber(folder, backend="cpu") as transcriber:
        want = [one.text for one in transcriber.transcribe(sounds)]
    audio = listening.client().audio
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        file = ("talk.wav", sounds[number])
        got[number] = audio.transcriptions.create(model="whisper", file=file).text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(len(sounds))] == want


def test_without_a_model_for_it_the_error_says_how_to_have_one(server: Server) -> None:
    with pytest.raises(openai.NotFoundError, match="--speech-model"):
        server.client().audio.transcriptions.create(model="tiny", file=("talk.wav", SOUND))


@contextlib.asynccontextmanager
async def guarded(folder: Path, keys: Path) -> AsyncIterator[tuple[Guard, Transcriber]]:
    """The server's application, and what writes for it."""
    with (
        Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime,
        Transcriber(folder, backend="cpu") as transcriber,
    ):
        service = Service(AsyncRuntime(runtime), ServerConfig(keys=keys))
        app = make_app(service, audio=Audio(transcriber, strict=False, any_name=False))
        try:
            yield Guard(app, service.book, "127.0.0.1", Credentials(Keys(keys), None)), transcriber
        finally:
            service.close()


@pytest.mark.promise("P30")
def test_a_sound_is_found_again_by_its_own_workspace_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    keys = {name: add_key(path, name, workspace=place) for name, place in
            (("alice", "acme"), ("anna", "acme"), ("bob", ""))}  # fmt: skip

    async def ask(app: Guard, who: str) -> None:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            response = await client.post(
                "/v1/audio/transcriptions",
                headers={"authorization": f"Bearer {keys[who]}"},
                files={"file": ("talk.wav", SOUND)},
                data={"language": "de"},
            )
        assert response.status_code == 200

    async def encoded_for() -> list[int]:
        found = []
        async with guarded(folder, path) as (app, transcriber):
            encoded = count_encoded(transcriber, monkeypatch)
            for who in ("alice", "bob", "anna", "bob"):
                before = len(encoded)
                await ask(app, who)
                found.append(len(encoded) - before)
        return found

    found = asyncio.run(encoded_for())
    assert found[0] == found[1] > 0
    assert found[2:] == [0, 0]


def test_nothing_more_is_written_for_a_client_that_has_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    key = add_key(path, "alice")
    built = httpx.Request("POST", "http://127.0.0.1/v1/audio/transcriptions",
                          files={"file": ("talk.wav", wav(sound(30)))})  # fmt: skip
    headers = {**built.headers, "authorization": f"Bearer {key}"}
    scope = {
        "type": "http", "method": "POST", "path": built.url.path, "query_string": b"",
        "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip

    async def leave(app: Guard, transcriber: Transcriber) -> int:
        loop, left = asyncio.get_running_loop(), asyncio.Event()
        states, encoded = transcriber._model.encoder.states, list[int]()

        def until_left(features: torch.Tensor) -> torch.Tensor:
            encoded.append(1)
            if len(encoded) == 2:
                loop.call_soon_threadsafe(left.set)
                for _ in range(50):  # turns of the loop, until the server has noticed
                    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
            return states(features)

        monkeypatch.setattr(transcriber._model.encoder, "states", until_left)
        messages = [{"type": "http.request", "body": built.read()}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise ConnectionError

        with contextlib.suppress(ConnectionError):
            await app(scope, receive, send)
        return len(encoded)

    async def encoded() -> int:
        async with guarded(folder, path) as (app, transcriber):
            count = await leave(app, transcriber)
            assert transcriber.stats().texts.used_pages == 0
            return count

    assert asyncio.run(encoded()) == 2
