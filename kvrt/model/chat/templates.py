"""A model's chat templates: Jinja programs that turn messages into a prompt, and which is meant.

tokenizer_config.json               chat_template: one template, or several as {name, template}
chat_template.jinja                 the one named default; this and the next come before the first
additional_chat_templates/*.jinja   others, by the names of their files
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrt.errors import ModelError, RequestError
from kvrt.model.chat.messages import Message
from kvrt.model.files.jsonfile import read_text

if TYPE_CHECKING:
    from kvrt.model.chat.template import ChatTemplate

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
                "continue_final_message and add_generation_prompt do not go together",
                param="add_generation_prompt",
                fix="leave out add_generation_prompt or continue_final_message",
            )


class ChatTemplates:
    """A model's chat templates, by name; at least one.

    Args:
        sources: the template and where it came from, for errors; by their names.
        variables: what every rendering sees, e.g. ``bos_token``.

    Attributes:
        sources: the templates, by their names.

    Raises:
        ModelError: a template is not valid Jinja.
    """

    def __init__(
        self, sources: Mapping[str, tuple[str, str]], variables: Mapping[str, str]
    ) -> None:
        # Loading Jinja takes a hundredth of a small model's start, and many models need none.
        from kvrt.model.chat.template import ChatTemplate

        self.sources = {name: source for name, (source, _) in sources.items()}
        self._templates = {
            name: ChatTemplate(source, file, variables) for name, (source, file) in sources.items()
        }

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
    return ChatTemplates(sources, variables) if sources else None


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


def _are_objects(value: object) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return listed and all(_is_object(item) for item in value)  # type: ignore[attr-defined]


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping)
