"""Chat templates: Jinja programs that come with a model and turn messages into a prompt.

They are rendered in Jinja's immutable sandbox: a template can read what it is given and nothing
else. What Hugging Face templates expect of their surroundings is provided: block trimming, loop
controls, ``raise_exception``, ``strftime_now``, a ``tojson`` that leaves HTML alone, and the
``generation`` tag, which marks an assistant's words for training and means nothing here.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvrt.errors import ModelError, RequestError

Message = Mapping[str, Any]


class ChatTemplate:
    """A model's chat template.

    Args:
        source: the template.
        file: where it came from, for errors.
        variables: what every rendering sees, e.g. ``bos_token``.

    Raises:
        ModelError: the template is not valid Jinja.
    """

    def __init__(self, source: str, file: str, variables: Mapping[str, str]) -> None:
        self._file = file
        self._variables = dict(variables)
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(
                f"{file}: chat template is not valid: {error}",
                fix="use a plain prompt, or repair the template",
            ) from None

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: each with a ``role`` and usually a ``content``.
            add_generation_prompt: end with the words that begin the assistant's answer.
            variables: further names the template may read, e.g. ``tools``, ``enable_thinking``.

        Raises:
            RequestError: the messages are not such a list, or the template refuses them.
            ModelError: the template tried to leave the sandbox.
        """
        try:
            return self._template.render(
                self._variables,
                messages=_checked(messages),
                add_generation_prompt=add_generation_prompt,
                **{"tools": None, "documents": None} | variables,
            )
        except jinja2.exceptions.SecurityError as error:
            raise ModelError(f"{self._file}: chat template is not safe: {error}") from error
        except Exception as error:  # a template is a program, and can fail in any way
            raise RequestError(
                f"the model's chat template does not accept these messages: {error}",
                param="messages",
                fix="templates differ in the roles they know and in what order they want them",
            ) from error


def _checked(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a list with at least one message", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(
                f"message {index} must be an object with a role that is a string",
                param=f"messages[{index}]",
            )
    return [dict(message) for message in messages]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way to declare tags)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
