"""The surroundings of a chat template: Jinja's immutable sandbox, with what templates expect of it.

A template can read what it is given and nothing else. What those of the Hugging Face hub want is
provided: block trimming, loop controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that
leaves HTML alone, and the ``generation`` tag, which marks an assistant's words for training and
means nothing here.
"""

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Refusal(Exception):
    """What a template says of messages that it does not accept."""


def sandbox() -> ImmutableSandboxedEnvironment:
    """An environment to compile and render templates in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` renders what is inside, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way to declare tags)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: object) -> NoReturn:
    raise Refusal(str(message))


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
