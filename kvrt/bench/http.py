"""A server that speaks OpenAI's API, as its clients see it."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import httpx
import msgspec

from kvrt.bench.clocks import Clocks, read_clocks
from kvrt.bench.targets import Endpoint, Heard, Said, as_text
from kvrt.bench.words import Held
from kvrt.errors import ConfigError, KvrtError

PATHS: Mapping[Endpoint, str] = {"completions": "/completions", "chat": "/chat/completions"}
LONGEST_ERROR = 300
DONE = b"[DONE]"

CONNECTS = 5
"""Connections that are made to learn how far away the server is."""

CONNECT_S = 5.0
"""For each of them, at most."""


class Details(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None


class Delta(msgspec.Struct):
    """What a chat adds. Reasoning has two names in use."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Event(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


EVENT = msgspec.json.Decoder(Event)


class HttpTarget:
    """A server.

    Args:
        url: its root, with ``/v1`` or without.
        model: that requests name; None: the first that it lists.
        endpoint: which of its routes.
        key: that it wants; None: none.
        fields: others of each request, such as ``ignore_eos``.
        timeout: seconds, at most, in which nothing comes.

    Raises:
        ConfigError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        endpoint: Endpoint = "completions",
        key: str | None = None,
        fields: Mapping[str, Any] | None = None,
        timeout: float = 600.0,
    ) -> None:
        self._root = url.rstrip("/").removesuffix("/v1")
        try:
            parsed = httpx.URL(self._root)
        except (httpx.InvalidURL, ValueError):
            parsed = httpx.URL("")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(
                f"{url!r:.100} is no address of a server", fix="as in http://127.0.0.1:8000"
            )
        self._place = parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80)
        self.here = parsed.host in ("localhost", "::1") or parsed.host.startswith("127.")
        """Whether it is on this machine."""
        self._model = model
        self._endpoint: Endpoint = endpoint
        self._fields = dict(fields or {})
        self._server: str | None = None
        self._http = httpx.AsyncClient(
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=timeout,
            # As many connections as there are requests at once; none is given up between two.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def ask(self, said: Sequence[Said], new: int, heard: Heard) -> None:
        body = msgspec.json.encode(
            {
                "model": await self._name(),
                **self._prompt(said),
                "max_tokens": new,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self._fields,
            }
        )
        request = self._http.build_request(
            "POST",
            f"{self._root}/v1{PATHS[self._endpoint]}",
            content=body,
            headers={"content-type": "application/json"},
        )
        heard.send()
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise KvrtError(_refusal(response.status_code, await response.aread()))
                await self._read(response, heard)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise KvrtError(f"the server gives no answer: {type(error).__name__}") from None

    async def _read(self, response: httpx.Response, heard: Heard) -> None:
        rest = b""
        async for data in response.aiter_bytes():
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:") and self._event(line[5:].strip(), heard):
                    return
        if heard.finish is None:
            raise KvrtError("the server ended the answer early")

    def _event(self, data: bytes, heard: Heard) -> bool:
        """Take one event; whether nothing comes after it."""
        if data == DONE:
            return True
        try:
            event = EVENT.decode(data)
        except msgspec.MsgspecError as error:
            raise KvrtError(f"what came is no event of OpenAI's streams: {error}") from None
        if event.error is not None:
            raise KvrtError(f"the server cannot go on: {event.error!s:.{LONGEST_ERROR}}")
        for choice in event.choices:
            if text := _text(choice):
                heard.hear(text)
            heard.finish = choice.finish_reason or heard.finish
        if (usage := event.usage) is not None:
            heard.prompt_tokens = usage.prompt_tokens
            heard.output_tokens = usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                heard.cached_tokens = usage.prompt_tokens_details.cached_tokens
        return False

    def _prompt(self, said: Sequence[Said]) -> dict[str, Any]:
        if self._endpoint == "chat":
            return {"messages": [{"role": each.role, "content": each.text} for each in said]}
        return {"prompt": as_text(said)}

    async def _name(self) -> str:
        if self._model is None:
            found = await self._get("/v1/models", "what models it has")
            try:
                self._model = str(found["data"][0]["id"])
            except (LookupError, TypeError):
                raise KvrtError(
                    f"{self._root} does not say what models it has", fix="name one with --served"
                ) from None
        return self._model

    async def _get(self, path: str, what: str) -> Any:
        response = await self._got(path, what)
        try:
            return msgspec.json.decode(response.content)
        except msgspec.MsgspecError:
            raise KvrtError(f"{self._root} does not say {what}: it is no JSON") from None

    async def _got(self, path: str, what: str) -> httpx.Response:
        try:
            response = await self._http.get(f"{self._root}{path}")
        except httpx.HTTPError as error:
            raise KvrtError(
                f"{self._root} gives no answer: {type(error).__name__}", fix="is it running?"
            ) from None
        self._server = response.headers.get("server", self._server)
        if response.status_code != 200:
            raise KvrtError(f"{self._root} does not say {what}: {response.status_code}")
        return response

    async def look(self, at: float) -> Held:
        """As kvrt's own ``/status`` says; other servers have no such thing."""
        found = await self._get("/status", "how much KV memory it holds")
        try:
            memory = found["memory"]
            pinned = sum(group["used"] * group["page_bytes"] for group in memory["groups"])
            return Held(
                at=at,
                pinned=pinned,
                cached=memory["cached_bytes"],
                held=memory["mapped_bytes"] + memory["pooled_bytes"],
                limit=memory["limit_bytes"],
            )
        except (LookupError, TypeError):
            raise KvrtError(f"{self._root} does not say how much KV memory it holds") from None

    async def clocks(self) -> Clocks:
        """As the `/metrics` of kvrt and of vLLM say; they may want a key for it."""
        response = await self._got("/metrics", "how long requests wait in it")
        found = read_clocks(response.text)
        if found is None:
            raise KvrtError(f"{self._root} does not say how long requests wait in it")
        return found

    async def _round_trip(self) -> float | None:
        """Seconds there and back: the median of what connections take, which a server's kernel
        makes whatever the server does; None: none could be made."""
        found = []
        for _ in range(CONNECTS):
            begun = time.perf_counter()
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_S):
                    _, writer = await asyncio.open_connection(*self._place)
                found.append(time.perf_counter() - begun)
                writer.close()
                await writer.wait_closed()
        return statistics.median(found) if found else None

    async def about(self) -> Mapping[str, Any]:
        name = await self._name()
        return {
            "kind": "http",
            "model": name,
            "url": self._root,
            "endpoint": self._endpoint,
            "server": self._server,
            "round_trip_s": await self._round_trip(),
            "fields": self._fields,
        }

    async def close(self) -> None:
        await self._http.aclose()


def _text(choice: Choice) -> str:
    if choice.text:
        return choice.text
    if (delta := choice.delta) is None:
        return ""
    said = delta.content or delta.reasoning_content or delta.reasoning
    return said or (str(delta.tool_calls) if delta.tool_calls else "")


def _refusal(status: int, body: bytes) -> str:
    """What an answer that is an error says."""
    try:
        error = msgspec.json.decode(body)
        message = error["error"]["message"]
    except (msgspec.MsgspecError, LookupError, TypeError):
        message = body.decode(errors="replace")
    said = " ".join(str(message).split())
    return f"the server answers {status}: {said:.{LONGEST_ERROR}}"
