"""``/v1/audio/transcriptions`` and ``/v1/audio/translations``: what is said in a file, by a model
beside the one that answers."""

import asyncio
import math
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from kvrt.errors import RequestError
from kvrt.model.speech.control import Task
from kvrt.server.beside import check_name
from kvrt.server.entry import entry_of
from kvrt.server.errors import Refusal, refusal_of
from kvrt.server.tenants.accounts import Accounts, Visit
from kvrt.server.wire.answers import answer
from kvrt.server.wire.form import FILE, Form
from kvrt.server.wire.http import headers_of, read_body, until_gone
from kvrt.server.words.fields import Named, decode
from kvrt.speech.audio import PARAM, read_audio
from kvrt.speech.features import RATE
from kvrt.speech.subtitles import srt, vtt
from kvrt.speech.transcript import Segment, Transcript

if TYPE_CHECKING:
    from kvrt.speech.transcriber import Transcriber

MAX_BODY = 25 << 20
"""As OpenAI's."""

GRANULARITIES = "timestamp_granularities[]"
WINDOW_S = 30


class AudioRequest(Named, kw_only=True):
    """The fields of a form, beside the file."""

    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] = 0.0
    stream: bool = False
    granularities: list[Literal["segment", "word"]] = msgspec.field(
        name=GRANULARITIES, default_factory=list
    )


TASKS: Mapping[str, Task] = {
    "/v1/audio/transcriptions": "transcribe",
    "/v1/audio/translations": "translate",
}
"""What is written of what is said, by its route."""


class Audio:
    """The routes.

    Args:
        transcriber: writes what is said; None: nothing does.
        strict: fields that are not known are refused.
        any_name: every name is the model's.
    """

    def __init__(self, transcriber: "Transcriber | None", *, strict: bool, any_name: bool) -> None:
        self._transcriber = transcriber
        self._strict = strict
        self._any_name = any_name

    def handlers(self, accounts: Accounts) -> dict[str, Callable[[Request], Awaitable[Response]]]:
        """What answers at each route."""
        return {
            route: partial(self.create, accounts=accounts, route=route, task=task)
            for route, task in TASKS.items()
        }

    async def create(
        self, request: Request, accounts: Accounts, route: str, task: Task
    ) -> Response:
        """Answer one request."""
        transcriber = self._transcriber
        if transcriber is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                "this server has no model that writes what is said: it was started without"
                " --speech-model",
                code="model_not_found",
            )
        entry = entry_of(request.scope)
        assert entry.owner is not None, "nobody else gets here"
        asked, data = await self._form(request)
        name = check_name(
            transcriber.name, asked.model, "writes what is said", any_name=self._any_name
        )
        with accounts.visit(entry.owner, route, entry.id) as visit:
            try:
                made = await _transcribed(
                    transcriber, request, visit, asked, data, task, entry.owner.tenant
                )
            except Exception as error:
                refusal = _of_the_file(error)
                visit.status = refusal_of(refusal).status
                raise refusal from None
            visit.status, visit.model = 200, name
            visit.took(0, 0, sum(len(segment.tokens) for segment in made.segments))
            response = _shaped(made, asked.response_format, task)
            response.headers.update(visit.headers)
            return response

    async def _form(self, request: Request) -> tuple[AudioRequest, bytes]:
        body = await read_body(request.scope, request.receive, MAX_BODY)
        data = bytearray()

        async def write(piece: bytes) -> None:
            data.extend(piece)

        form = Form("".join(headers_of(request.scope, b"content-type")[-1:]), write)
        await form.read(_whole(body))
        if form.file is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{FILE} is missing", param=FILE)
        fields: dict[str, Any] = dict(form.fields)
        for field in ("temperature", "stream"):
            if field in fields:
                fields[field] = _plain(fields[field])
        if GRANULARITIES in fields:
            fields[GRANULARITIES] = [value for field, value in form.given if field == GRANULARITIES]
        asked = decode(msgspec.json.encode(fields), AudioRequest, strict=self._strict)
        for field, is_there, why in (
            ("temperature", asked.temperature > 0, "is above 0; what is written is the likeliest"),
            ("stream", asked.stream, "is true; answers come whole"),
            (GRANULARITIES, "word" in asked.granularities, "has word; times are of segments"),
        ):
            if is_there:
                raise Refusal(HTTPStatus.BAD_REQUEST, f"{field} {why}", param=field)
        return asked, bytes(data)


async def _transcribed(
    transcriber: "Transcriber",
    request: Request,
    visit: Visit,
    asked: AudioRequest,
    data: bytes,
    task: Task,
    salt: str,
) -> Transcript:
    """What is said; nothing more is written for a client that has left."""
    samples = await asyncio.to_thread(read_audio, data, "the file")
    if visit.reserves:
        visit.reserve(math.ceil(len(samples) / RATE / WINDOW_S) * transcriber.longest)
    gone = threading.Event()

    def heard(number: int, segment: Segment) -> None:
        if gone.is_set():
            raise ConnectionError("the client left")

    work = asyncio.create_task(
        asyncio.to_thread(
            transcriber.transcribe,
            samples,
            language=asked.language or None,
            task=task,
            prompt=asked.prompt,
            cache_salt=salt,
            heard=heard,
        )
    )
    leaving = asyncio.create_task(until_gone(request.receive))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.set()
        leaving.cancel()
    [made] = await work
    return made


def _of_the_file(error: Exception) -> Exception:
    """An error of the sound, which is called otherwise here."""
    if isinstance(error, RequestError) and error.param == PARAM:
        told = refusal_of(error)
        return Refusal(told.status, told.message, param=FILE, code="invalid_file")
    return error


def _shaped(made: Transcript, form: str, task: Task) -> Response:
    usage = {"type": "duration", "seconds": math.ceil(made.duration)}
    match form:
        case "json":
            return answer({"text": made.text, "usage": usage})
        case "verbose_json":
            return answer(
                {
                    "task": task,
                    "language": made.language or "en",
                    "duration": made.duration,
                    "text": made.text,
                    "segments": [_segment(id, own) for id, own in enumerate(made.segments)],
                    "usage": usage,
                }
            )
        case "srt":
            return PlainTextResponse(srt(made.segments))
        case "vtt":
            return PlainTextResponse(vtt(made.segments), media_type="text/vtt")
        case _:
            return PlainTextResponse(f"{made.text}\n")


def _segment(id: int, own: Segment) -> dict[str, Any]:
    text = own.text.encode()
    return {
        "id": id,
        "seek": round(own.seek * 100),
        "start": round(own.start, 3),
        "end": round(own.end, 3),
        "text": own.text,
        "tokens": own.tokens,
        "temperature": 0.0,
        "avg_logprob": own.logprob,
        "compression_ratio": len(text) / len(zlib.compress(text)),
        "no_speech_prob": own.no_speech,
    }


def _plain(value: str) -> object:
    """A number or a truth value, as forms write it; or what else it is."""
    try:
        return msgspec.json.decode(value.lower())
    except msgspec.DecodeError:
        return value


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body
