"""What is asked: the contract that `kvrt.bench.http` and `kvrt.bench.inside` keep."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kvrt.bench.clocks import Clocks
from kvrt.bench.words import Held

Endpoint = Literal["completions", "chat"]
"""Which of OpenAI's routes: a text that goes on, or messages."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Said:
    """A part of a conversation."""

    role: Role
    text: str


@dataclass(slots=True)
class Heard:
    """One answer as it comes. Times are those of `time.perf_counter`."""

    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None

    def send(self) -> None:
        """It is asked for now."""
        self.sent = time.perf_counter()

    def hear(self, text: str) -> None:
        """A piece has come now."""
        self.pieces.append(time.perf_counter())
        self.parts.append(text)

    @property
    def text(self) -> str:
        return "".join(self.parts)


class Target(Protocol):
    """What answers."""

    here: bool
    """Whether it is on this machine."""

    async def ask(self, said: Sequence[Said], new: int, heard: Heard) -> None:
        """Ask for the next `new` tokens, and note in `heard` what comes and when.

        Raises:
            KvrtError: it refuses, cannot be reached, or ends early. What has come is in `heard`.
        """

    async def look(self, at: float) -> Held:
        """How much KV memory it holds now.

        Args:
            at: the time to write on it.

        Raises:
            KvrtError: it does not say.
        """

    async def clocks(self) -> Clocks:
        """What it knows of its own times until now.

        Raises:
            KvrtError: it does not say.
        """

    async def about(self) -> Mapping[str, Any]:
        """What it is: ``kind``, ``model``, and more by kind."""

    async def close(self) -> None:
        """It is asked no more."""


def as_text(said: Sequence[Said]) -> str:
    """A conversation without roles: what was said, one after the other."""
    return "".join(
        each.text if each.role == "assistant" else f"{each.text}\n" for each in said
    ).rstrip("\n")
