"""What an answer is made of, piece by piece."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Tools = Mapping[str, Mapping[str, Any]]
"""JSON Schemas of the arguments that tools take, by the names of the tools."""


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins; calls of one answer come one after the other."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A further piece of the arguments of the call that began last, which are JSON as a whole."""

    text: str


Event = Content | Thought | Called | Arguments


class Reader(Protocol):
    """Takes one answer apart as it comes."""

    def push(self, text: str) -> list[Event]:
        """What is certain with this further text."""

    def end(self) -> list[Event]:
        """What is left when no more comes."""
