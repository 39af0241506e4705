"""Streams, line by line: events of a chat, and answers of a batch."""

from typing import Any

import msgspec

from kvrt.client.errors import ServerError
from kvrt.client.words import Answer, ModelEvent

DONE = "[DONE]"
DATA = "data: "
EVENT = msgspec.json.Decoder(ModelEvent)
ANSWER = msgspec.json.Decoder(Answer)


class Lines:
    """Bytes as they come, cut at line feeds alone: texts may have other ends of lines."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> list[str]:
        """Lines that are whole now."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [each.decode() for each in whole]


def said(line: str) -> str | None:
    """What a line of server-sent events says; None: nothing more comes.

    Raises:
        ServerError: the server cannot go on.
    """
    if not line.startswith(DATA):
        return ""
    data = line.removeprefix(DATA)
    if data == DONE:
        return None
    event: dict[str, Any] = msgspec.json.decode(data)
    if "error" in event:
        raise ServerError(event["error"]["message"], code=event["error"].get("code"))
    choices = event["choices"]
    return (choices[0]["delta"].get("content") or "") if choices else ""


def moved(line: str) -> ModelEvent | None:
    """What a line of events about models tells; None: nothing."""
    return EVENT.decode(line.removeprefix(DATA)) if line.startswith(DATA) else None


def cut() -> ServerError:
    """The server has ended a stream early."""
    return ServerError("the server ended the answer early")


def answer(line: str) -> Answer:
    """Of a batch's output, or its errors."""
    return ANSWER.decode(line)
