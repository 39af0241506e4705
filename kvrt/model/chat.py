"""Chat templates: Jinja programs that come with a model and turn messages into a prompt.

tokenizer_config.json               chat_template: one template, or several as {name, template}
chat_template.jinja                 the one named default; this and the next come before the first
additional_chat_templates/*.jinja   others, by the names of their files
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes

from kvrt.errors import ModelError, RequestError
from kvrt.model.bounds import Excess
from kvrt.model.jsonfile import read_text
from kvrt.model.messages import (
    Message,
    checked_messages,
    cut_at_mark,
    join_parts,
    mark_end,
    plain,
)
from kvrt.model.sandbox import Refusal, Sandbox

CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
FURTHER = "additional_chat_templates"
DEFAULT = "default"
WITH_TOOLS = "tool_use"
OWN = ("messages", "tools", "add_generation_prompt", "continue_final_message")
"""Variables of a template that have a place of their own in `Chat`."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as a prompt, with what the model's chat template is to make of it.

    Args:
        messages: each with a ``role`` and usually a ``content``: text, or a list of parts such as
            ``{"type": "text", "text": "..."}``.
        tools: what the model may call, as JSON schemas.
        variables: further names the template reads, e.g. ``{"enable_thinking": False}``.
        template: the name of one of the model's templates; None: ``tool_use`` if there are tools
            and the model has that, else ``default``.
        continue_final_message: the answer goes on where the last message ends.
        add_generation_prompt: end with the words that begin the assistant's answer; None: yes,
            unless the last message is continued.

    Raises:
        RequestError: an argument is not what it should be.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = field(default=None, kw_only=True)
    variables: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    template: str | None = field(default=None, kw_only=True)
    continue_final_message: bool = field(default=False, kw_only=True)
    add_generation_prompt: bool | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.tools is not None and not _are_objects(self.tools):
            raise RequestError("tools must be a list of objects", param="tools")
        if not isinstance(self.variables, Mapping) or not all(
            isinstance(name, str) for name in self.variables
        ):
            raise RequestError("variables must be an object, by names", param="variables")
        for name in OWN:
            if name in self.variables:
                raise RequestError(
                    f"{name} is no variable", param="variables", fix="give it beside them"
                )
        if self.template is not None and not isinstance(self.template, str):
            raise RequestError("template must be a name", param="template")
        for name in ("continue_final_message", "add_generation_prompt"):
            if not isinstance(getattr(self, name), bool | None):
                raise RequestError(f"{name} must be true or false", param=name)
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "a message is continued or an answer begun, not both",
                param="add_generation_prompt",
                fix="leave out add_generation_prompt or continue_final_message",
            )


class ChatTemplates:
    """A model's chat templates, by name; at least one.

    Args:
        templates: by their names.
    """

    def __init__(self, templates: "Mapping[str, ChatTemplate]") -> None:
        self._templates = dict(templates)

    def render(self, chat: Chat) -> str:
        """The prompt for a conversation.

        Raises:
            RequestError: the template refuses it, or there is no such template.
            ModelError: the template tried what it may not.
        """
        begin = chat.add_generation_prompt
        return self._choose(chat).render(
            chat.messages,
            add_generation_prompt=not chat.continue_final_message if begin is None else begin,
            continue_final_message=chat.continue_final_message,
            tools=chat.tools,
            **chat.variables,
        )

    def _choose(self, chat: Chat) -> "ChatTemplate":
        name = chat.template
        if name is None:
            with_tools = chat.tools is not None and WITH_TOOLS in self._templates
            name = WITH_TOOLS if with_tools else DEFAULT
        if name in self._templates:
            return self._templates[name]
        why = "none of them is the default" if chat.template is None else "none has the name given"
        raise RequestError(
            f"the model's chat templates are {', '.join(sorted(self._templates))}; {why}",
            param="template",
            fix="name one of them: Chat(messages, template=NAME)",
        )


class ChatTemplate:
    """One chat template.

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
            self._sandbox = Sandbox()
            tree = self._sandbox.read(source)
            self._takes_parts = _iterates_over_content(tree)
            self._words = {node.value for node in tree.find_all(nodes.Const)}
            self._template = self._sandbox.from_string(tree)
        except Exception as error:  # Python's compiler has errors of its own for what Jinja lets by
            reason = error.message if isinstance(error, jinja2.TemplateError) else None
            raise ModelError(
                f"{file}: chat template is not valid: {reason or type(error).__name__}",
                fix="use a plain prompt, or repair the template",
            ) from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages, add_generation_prompt, continue_final_message: see `Chat`.
            variables: further names the template may read, e.g. ``tools``, ``enable_thinking``.

        Raises:
            RequestError: the messages are not such a list, or the template refuses them.
            ModelError: the template tried to leave the sandbox.
        """
        copied = checked_messages(messages)
        if not self._takes_parts:
            join_parts(copied)
        end = mark_end(copied[-1]) if continue_final_message else None
        given = {name: plain(value, name) for name, value in variables.items()}
        text = self._render(
            {
                **self._variables,
                "tools": None,
                "documents": None,
                **given,
                "messages": copied,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return text if end is None else cut_at_mark(text, end)

    def _render(self, variables: dict[str, Any]) -> str:
        # What a template raises may quote the messages, and so may what Python says of its
        # mistakes: only words that stand in the template itself are passed on.
        try:
            return self._sandbox.render(self._template, variables)
        except jinja2.exceptions.SecurityError as error:
            tried = str(error) if isinstance(error, Excess) else "it tried what is forbidden"
            raise ModelError(
                f"{self._file}: chat template is not safe: {tried}",
                fix="use a plain prompt, or repair the template",
            ) from None
        except Refusal as refusal:
            reason = str(refusal) if str(refusal) in self._words else "it raises an exception"
        except Exception as error:  # a template is a program, and can fail in any way
            reason = f"it fails with {type(error).__name__}"
        raise RequestError(
            f"the model's chat template does not accept these messages: {reason}",
            param="messages",
            fix="templates differ in the roles they know and in what order they want them",
        )


def read_templates(
    folder: Path, settings: Mapping[str, Any], variables: Mapping[str, str]
) -> ChatTemplates | None:
    """The chat templates of a model; None if it has none.

    Args:
        settings: tokenizer_config.json.
        variables: what they all see.

    Raises:
        ModelError: a template is damaged.
    """
    paths = {path.stem: path for path in sorted((folder / FURTHER).glob("*.jinja"))}
    if (folder / TEMPLATE).exists():
        paths[DEFAULT] = folder / TEMPLATE
    sources = {name: (read_text(path), str(path)) for name, path in paths.items()}
    if not sources:
        config = str(folder / CONFIG)
        named = _listed(settings.get("chat_template"), config)
        sources = {name: (source, config) for name, source in named.items()}
    templates = {
        name: ChatTemplate(source, file, variables) for name, (source, file) in sources.items()
    }
    return ChatTemplates(templates) if templates else None


def _listed(value: object, file: str) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if _is_object(item)}
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise ModelError(f"{file}: chat_template is neither a template nor templates by name")
    return dict(value)


def _iterates_over_content(tree: nodes.Template) -> bool:
    """Whether a template knows content that is a list: it has a loop over some ``content``."""
    names = {"content"}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Filter):
        return node.node is not None and _is_content(node.node, names)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names


def _are_objects(value: object) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return listed and all(_is_object(item) for item in value)  # type: ignore[attr-defined]


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)
