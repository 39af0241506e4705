"""``/api/chat`` and ``/api/generate``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

from kvrt.dialect.events import Content, Thought
from kvrt.model.chat.templates import Chat
from kvrt.model.vision.prompt import Illustrated
from kvrt.outputs import Delta, Result, Timings, TokenLogprobs
from kvrt.server.asking import Ask
from kvrt.server.errors import Refusal
from kvrt.server.ollama.errors import broken, line, refused
from kvrt.server.ollama.fields import Asked, ChatAsked, GenerateAsked, params_of, thinking
from kvrt.server.openai.shared import finish_reason, token_entries
from kvrt.server.served import Served
from kvrt.server.words.fields import Message
from kvrt.server.words.pictures import beside, parts_of, places_of
from kvrt.server.words.talk import NO_TOOLS, Choice, Spoken, Talk, as_said, choose

UNLOAD = (0, "0", "0s", "0m")
"""Values of `keep_alive` that ask for the model to be given up at once."""

Shape = Callable[[Spoken], dict[str, Any]]
"""An answer, or a piece of it, as the route says it."""


class Answers:
    """What both routes do alike.

    Args:
        served: what is asked.
    """

    refused = staticmethod(refused)
    broken = staticmethod(broken)

    def __init__(self, served: Served) -> None:
        self._served = served

    def _call(
        self, asked: Asked, prompt: "Chat | Illustrated | str | None", talk: Talk, shape: Shape
    ) -> "AnswerCall":
        """A request without a prompt only wants the model to be loaded, which it is."""
        shows = talk.skips_special(None) is False
        params = params_of(asked, self._served.defaults, shows_special=shows)
        adapter = self._served.adapter(asked.model.removesuffix(":latest"))
        asks = () if prompt is None else (Ask(prompt, params, "format", adapter),)
        if not asks and asked.keep_alive in UNLOAD:
            why = "keep_alive: the model is not given up while it is served"
            raise Refusal(400, why, param="keep_alive")
        return AnswerCall(self._served, asked, asks, talk, shape)

    def _check_name(self, name: str) -> None:
        self._served.check_name(name.removesuffix(":latest"))


class ChatAnswers(Answers):
    """The protocol of ``/api/chat``."""

    def read(self, body: bytes) -> "AnswerCall":
        asked = self._served.fields(body, ChatAsked)
        self._check_name(asked.model)
        asked.check_offered()
        choice = choose(self._served, asked.tools or (), None, several=True)
        if asked.think and self._served.dialect.reasoning is None:
            why = "think: the model's chat template shows no reasoning"
            raise Refusal(400, why, param="think")
        talk = Talk(self._served, choice, held=bool(asked.format))
        chat = self._chat(asked, choice) if asked.messages else None
        return self._call(asked, chat, talk, lambda said: {"message": _message(said)})

    def _chat(self, asked: ChatAsked, choice: Choice) -> Chat:
        named = [
            {"name": message["tool_name"], **message} if "tool_name" in message else message
            for message in asked.messages
        ]
        said = as_said(self._served.dialect, named)
        return Chat(
            [beside(message, where) for where, message in zip(places_of(said), said, strict=True)],
            tools=choice.tools or None,
            variables=thinking(asked),
            continue_final_message=asked.messages[-1].get("role") == "assistant",
        )


class GenerateAnswers(Answers):
    """The protocol of ``/api/generate``."""

    def read(self, body: bytes) -> "AnswerCall":
        asked = self._served.fields(body, GenerateAsked)
        self._check_name(asked.model)
        asked.check_offered()
        prompt = self._prompt(asked) if asked.prompt else None
        talk = Talk(self._served, NO_TOOLS, held=True)  # it is text, and no conversation
        return self._call(asked, prompt, talk, lambda said: {"response": said.content})

    def _prompt(self, asked: GenerateAsked) -> Chat | Illustrated | str:
        """The prompt is what a user says, unless it is raw; or the model has no template for it."""
        tokenizer = self._served.model.tokenizer
        if asked.raw or tokenizer is None or tokenizer.chat is None:
            if asked.system:
                raise Refusal(400, "system needs a chat template, and is not raw", param="system")
            text = asked.prompt or ""
            images = [part["image"] for part in parts_of(asked.images or [], "the prompt")]
            return Illustrated(text, images) if images else text
        user = {"role": "user", "content": asked.prompt, "images": asked.images}
        said: list[Message] = [beside(user, "the prompt")]
        system = [{"role": "system", "content": asked.system}] if asked.system else []
        return Chat([*system, *said])


@dataclass(slots=True)
class AnswerCall:
    """One request, and its answer: in several lines unless it asks for one."""

    moves: ClassVar[bool] = False

    served: Served
    asked: Asked
    asks: Sequence[Ask]
    talk: Talk
    shape: Shape
    _spoken: Spoken = field(default_factory=lambda: Spoken(None))

    @property
    def stream(self) -> bool:
        return self.asked.stream is not False

    def whole(self, results: Sequence[Result]) -> object:
        entries = [e for result in results for e in result.completions[0].logprobs or ()]
        for result in results:
            self._spoken = self.talk.spoken(result.prompt_token_ids)
            self._spoken.push(result.text)
            self._spoken.end()
        return {**self._said(self._spoken, entries), **_ended(results)}

    def opening(self, prompts: Sequence[Sequence[int]]) -> Iterator[bytes]:
        self._spoken = self.talk.spoken(prompts[0] if prompts else ())
        yield from ()

    def piece(self, number: int, delta: Delta) -> Iterator[bytes]:
        pieces = self._spoken.push(delta.text)
        if delta.finish_reason is not None:
            pieces += self._spoken.end()
        said = Spoken(None)
        for _, piece in pieces:
            match piece:
                case Content(text):
                    said.content += text
                case Thought(text):
                    said.reasoning += text
        if said.content or said.reasoning or delta.logprobs:
            yield line({**self._said(said, delta.logprobs or ()), "done": False})

    def closing(self, results: Sequence[Result]) -> Iterator[bytes]:
        """Calls come whole, before the end."""
        if self._spoken.calls:
            calls = Spoken(None, calls=self._spoken.calls)
            yield line({**self._said(calls, ()), "done": False})
        yield line({**self._said(Spoken(None), ()), **_ended(results)})

    def _said(self, said: Spoken, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        head = {"model": self.asked.model, "created_at": datetime.now(UTC).isoformat()}
        if not self.asked.logprobs or not entries:
            return {**head, **self.shape(said)}
        top = self.asked.top_logprobs or 0
        return {**head, **self.shape(said), "logprobs": token_entries(self.served, entries, top)}


def _message(said: Spoken) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    if said.reasoning:
        message["thinking"] = said.reasoning
    if said.calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": call.data}} for call in said.calls
        ]
    return message


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
