"""``/api/chat`` and ``/api/generate``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvrt.model.chat import Chat
from kvrt.outputs import Delta, Result, Timings, TokenLogprobs
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.fields import Message, decode
from kvrt.server.ollama.errors import broken, line, refused
from kvrt.server.ollama.fields import Asked, ChatAsked, GenerateAsked, params_of
from kvrt.server.openai.shared import finish_reason, token_entries
from kvrt.server.served import Served

UNLOAD = (0, "0", "0s", "0m")
"""Values of `keep_alive` that ask for the model to be given up at once."""

Shape = Callable[[str], dict[str, Any]]
"""Text as the route says it."""


class Answers:
    """What both routes do alike.

    Args:
        served: what is asked.
    """

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, served: Served) -> None:
        self._served = served

    def _call(self, asked: Asked, prompt: "Chat | str | None", shape: Shape) -> "AnswerCall":
        """A request without a prompt only wants the model to be loaded, which it is."""
        params = params_of(asked, self._served.defaults)
        asks = () if prompt is None else (Ask(prompt, params, "format"),)
        if not asks and asked.keep_alive in UNLOAD:
            raise Refusal(400, "the model is not given up while it is served", param="keep_alive")
        return AnswerCall(self._served, asked, asks, shape)

    def _check_name(self, name: str) -> None:
        self._served.check_name(name.removesuffix(":latest"))


class ChatAnswers(Answers):
    """The protocol of ``/api/chat``."""

    def read(self, body: bytes) -> "AnswerCall":
        asked = decode(body, ChatAsked, strict=self._served.strict)
        self._check_name(asked.model)
        asked.check_offered()
        continues = bool(asked.messages) and asked.messages[-1].get("role") == "assistant"
        chat = Chat(asked.messages, continue_final_message=continues) if asked.messages else None
        return self._call(
            asked, chat, lambda text: {"message": {"role": "assistant", "content": text}}
        )


class GenerateAnswers(Answers):
    """The protocol of ``/api/generate``."""

    def read(self, body: bytes) -> "AnswerCall":
        asked = decode(body, GenerateAsked, strict=self._served.strict)
        self._check_name(asked.model)
        asked.check_offered()
        prompt = self._prompt(asked) if asked.prompt else None
        return self._call(asked, prompt, lambda text: {"response": text})

    def _prompt(self, asked: GenerateAsked) -> Chat | str:
        """The prompt is what a user says, unless it is raw; or the model has no template for it."""
        tokenizer = self._served.model.tokenizer
        if asked.raw or tokenizer is None or tokenizer.chat is None:
            if asked.system:
                raise Refusal(400, "system needs a chat template, and is not raw", param="system")
            return asked.prompt or ""
        said: list[Message] = [{"role": "user", "content": asked.prompt}]
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        return Chat([*system, *said])


@dataclass(slots=True)
class AnswerCall:
    """One request, and its answer: in several lines unless it asks for one."""

    served: Served
    asked: Asked
    asks: Sequence[Ask]
    shape: Shape

    @property
    def stream(self) -> bool:
        return self.asked.stream is not False

    def whole(self, results: Sequence[Result]) -> object:
        text = "".join(result.text for result in results)
        entries = [e for result in results for e in result.completions[0].logprobs or ()]
        return {**self._said(text, entries), **_ended(results)}

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        yield from ()

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        if delta.text or delta.logprobs:
            yield line({**self._said(delta.text, delta.logprobs or ()), "done": False})

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        yield line({**self._said("", ()), **_ended(results)})

    def _said(self, text: str, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        head = {"model": self.asked.model, "created_at": datetime.now(UTC).isoformat()}
        if not self.asked.logprobs or not entries:
            return {**head, **self.shape(text)}
        top = self.asked.top_logprobs or 0
        return {**head, **self.shape(text), "logprobs": token_entries(self.served, entries, top)}


def _ended(results: Sequence[Result]) -> dict[str, Any]:
    """Why it ended, and what it took, in nanoseconds."""
    if not results:
        return {"done": True, "done_reason": "load"}
    (result,) = results
    times = result.timings
    return {
        "done": True,
        "done_reason": finish_reason(result.finish_reason),
        "total_duration": _nanoseconds(times.total),
        "load_duration": 0,
        "prompt_eval_count": result.usage.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(_first(times) - times.queued),
        "eval_count": result.usage.completion_tokens,
        "eval_duration": _nanoseconds(times.total - _first(times)),
    }


def _first(times: Timings) -> float:
    """When the first token came; the end, where none did."""
    return times.first_token or times.total


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
