"""How this run puts prompts to its model: as text or in a conversation, and sampled how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kvrt.errors import RequestError
from kvrt.sampling import SamplingParams
from kvrt_cli.sampling import resolve

if TYPE_CHECKING:
    from kvrt.model.generation import GenerationDefaults
    from kvrt.prompts import Prompt
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
    """

    chat: bool
    system: str | None
    wishes: Mapping[str, Any]
    generation: "GenerationDefaults"
    variables: Mapping[str, Any] = field(default_factory=dict)

    def prepare(
        self, prompt: "Prompt", wishes: Mapping[str, Any] = {}
    ) -> "tuple[Prompt, SamplingParams]":
        """What the runtime is asked, and how the answer is sampled.

        Raises:
            RequestError: a sampling parameter is out of range.
        """
        from kvrt.model.chat import Chat

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

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The conversation, with the system message in front unless it brings its own."""
        if self.system is None or (messages and messages[0].get("role") == "system"):
            return [*messages]
        return [{"role": "system", "content": self.system}, *messages]


def asking(
    runtime: "Runtime", wishes: Mapping[str, Any], *, chat: bool | None, system: str | None
) -> Asking:
    """How `runtime`'s model is asked.

    Args:
        chat: use the chat template, or not; None: if the model has one.

    Raises:
        RequestError: a conversation is wanted, and the model has no chat template.
    """
    template = has_chat(runtime)
    if not template and (chat or system is not None):
        raise RequestError(
            f"{runtime.config.model} has no chat template, so"
            f" {'--chat' if chat else '--system'} cannot be used",
            param="chat" if chat else "system",
            fix="leave it out: the model then continues the prompt as text",
        )
    if chat is False and system is not None:
        raise RequestError(
            "--system needs the chat template, and --no-chat leaves it out",
            param="system",
            fix="leave out one of them",
        )
    return Asking(template if chat is None else chat, system, wishes, runtime.model.generation)


def has_chat(runtime: "Runtime") -> bool:
    """Whether the model came with a chat template."""
    tokenizer = runtime.model.tokenizer
    return tokenizer is not None and tokenizer.has_chat
