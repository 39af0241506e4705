"""How this run puts prompts to its model: as text or in a conversation, and sampled how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvrt.errors import RequestError
from kvrt.sampling import SamplingParams
from kvrt_cli.options.sampling import resolve

if TYPE_CHECKING:
    from kvrt.engine.prompts import Prompt
    from kvrt.model.generation import GenerationDefaults
    from kvrt.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Asking:
    """What the options and the model say about prompts.

    Args:
        chat: texts become the user's message in a conversation.
        system: the message that begins each conversation; None: none.
        wishes: sampling parameters the user named.
        generation: what the model's author recommends.
        variables: what the chat template is to know besides the messages.
        adapter: the name of the one that answers; None: the model as it is.
    """

    chat: bool
    system: str | None
    wishes: Mapping[str, Any]
    generation: "GenerationDefaults"
    variables: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None

    def prepare(
        self, prompt: "Prompt", wishes: Mapping[str, Any] = {}
    ) -> "tuple[Prompt, SamplingParams]":
        """What the runtime is asked, and how the answer is sampled.

        Raises:
            RequestError: a sampling parameter is out of range.
        """
        from kvrt.model.chat.templates import Chat

        if isinstance(prompt, str) and self.chat:
            prompt = [{"role": "user", "content": prompt}]
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], Mapping):
            prompt = Chat(prompt)
        if isinstance(prompt, Chat):
            prompt = replace(
                prompt,
                messages=self.messages(prompt.messages),
                variables={**self.variables, **prompt.variables},
            )
        params = {**self.wishes, **wishes}
        return prompt, resolve(params, self.generation, chat=isinstance(prompt, Chat))

    def illustrated(self, text: str, images: Sequence[Path]) -> "Prompt":
        """The prompt of a text with images, which come before it."""
        from kvrt.model.vision.prompt import Illustrated

        if not images:
            return text
        if not self.chat:
            return Illustrated(text, images)
        parts = [*({"type": "image", "image": image} for image in images)]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The conversation, with the system message in front unless it brings its own."""
        if self.system is None or (messages and messages[0].get("role") == "system"):
            return [*messages]
        return [{"role": "system", "content": self.system}, *messages]


def asking(
    runtime: "Runtime",
    wishes: Mapping[str, Any],
    *,
    chat: bool | None,
    system: str | None,
    variables: Mapping[str, Any],
    adapter: str | None = None,
) -> Asking:
    """How `runtime`'s model is asked.

    Args:
        chat: use the chat template, or not; None: if the model has one.
        system: the message that begins each conversation; None: none.
        variables: what the chat template is to know besides the messages.
        adapter: the name of the one that answers, which is loaded.

    Raises:
        RequestError: a conversation is wanted, and the model has no chat template.
    """
    template = has_chat(runtime)
    needing = {"chat": bool(chat), "system": system is not None, "template-var": bool(variables)}
    option = next((name for name, given in needing.items() if given), None)
    if option is not None and not template:
        raise RequestError(
            f"{runtime.config.model} has no chat template, so --{option} cannot be used",
            param=option,
            fix="leave it out: the model then continues the prompt as text",
        )
    if option is not None and chat is False:
        raise RequestError(
            f"--{option} needs the chat template, and --no-chat leaves it out",
            param=option,
            fix="leave out one of them",
        )
    chat = template if chat is None else chat
    return Asking(chat, system, wishes, runtime.model.generation, variables, adapter)


def has_chat(runtime: "Runtime") -> bool:
    """Whether the model came with a chat template."""
    tokenizer = runtime.model.tokenizer
    return tokenizer is not None and tokenizer.has_chat
