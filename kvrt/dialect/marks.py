"""How calls and reasoning are written: values."""

import re
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["json", "named", "tagged", "python", "quoted"]
"""How a call is written:

json      {"name": "f", "arguments": {"x": 1}}          one object, or a list of them
named     f<|args|>{"x": 1}                             a name, then JSON
tagged    <function=f><parameter=x>1</parameter>        each argument by itself
python    [f(x=1)]                                      calls of Python
quoted    call:f{x:1}                                   JSON without quotes, but for texts
"""

SEGMENT = re.compile(r"<[^<>\s][^<>]*>|\[[A-Z_ ]+\]|[^<\[]+|[<\[]")
"""A marker, or the text between two."""


def segments(text: str) -> list[str]:
    """Markers, and what is between them, in order."""
    return SEGMENT.findall(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How calls are written.

    Args:
        kind: see `Kind`.
        trigger: what a call, or a list of them, begins with; "": nothing, a call is all there is.
        before_name: what stands right before a name; of ``json``, nothing.
        before_arguments: between the name and arguments that are JSON, the last of it.
        name: of ``json``, the keys that lead to the name; none: the name is the key.
        arguments: of ``json``, the keys that lead to the arguments.
        key: of ``tagged``, what stands before an argument's name.
        value: between its name and its value, the last of it.
        end: behind its value.
        quote: of ``quoted``, what stands around texts.
        tail: what is behind the last call.
    """

    kind: Kind
    trigger: str
    before_name: str = ""
    before_arguments: str = ""
    name: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    key: str = ""
    value: str = ""
    end: str = ""
    quote: str = ""
    tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What stands around reasoning."""

    begin: str
    end: str


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a model writes, as far as its template shows it.

    Args:
        calls: None: the template writes no calls.
        reasoning: None: nor reasoning.
        openings: what may stand before content, and is none.
        texts: arguments of calls are given to the template as JSON's text, not as data.
    """

    calls: Calls | None = None
    reasoning: Reasoning | None = None
    openings: tuple[str, ...] = ()
    texts: bool = field(default=False, kw_only=True)

    @property
    def marks(self) -> tuple[str, ...]:
        """All that has to be seen in a text for it to be read."""
        calls, reasoning = self.calls, self.reasoning
        found = list(self.openings)
        if calls is not None:
            found += [calls.trigger, calls.before_name, calls.before_arguments, calls.key]
            found += [calls.value, calls.end, calls.quote]
        if reasoning is not None:
            found += [reasoning.begin, reasoning.end]
        return tuple(mark for mark in found if mark)
