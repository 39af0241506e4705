"""What a model that follows its chat template would say, written by the template itself."""

import json
from collections.abc import Sequence
from typing import Any

from kvrt.dialect.derive import derive
from kvrt.dialect.events import Arguments, Called, Content, Event, Thought
from kvrt.dialect.marks import Dialect
from kvrt.dialect.reader import DialectReader
from kvrt.errors import KvrtError
from kvrt.model.chat.templates import Chat, ChatTemplates

ASKED = {"role": "user", "content": "What is the weather like?"}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "description": "Where."},
        "days": {"type": "integer", "description": "How many."},
        "units": {"type": "array", "items": {"type": "string"}, "description": "Which."},
        "exact": {"type": "boolean", "description": "Really?"},
    },
    "required": ["city"],
}
NOTE = {"type": "object", "properties": {"text": {"type": "string", "description": "It."}},
        "required": ["text"]}  # fmt: skip
SCHEMAS = {"get_weather": WEATHER, "take_note": NOTE}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": "Does it.", "parameters": schema},
    }
    for name, schema in SCHEMAS.items()
]
VARIABLES = {"bos_token": "<BOS>", "datetime": "", "functions": "[]"}
"""What some templates want to be there."""
LONG = 60
"""Letters that a turn's end and a prompt's have in common by no chance."""
Said = tuple[str, dict[str, Any]]
CALLS: list[list[Said]] = [
    [("get_weather", {"city": "Paris"})],
    [("get_weather", {"city": "São Paulo, 5", "days": 3, "exact": True})],
    [("take_note", {"text": 'Tea, "black": 2 {cups}\n\n  and [one] more\\'})],
    [("get_weather", {"city": "27", "days": 1}), ("take_note", {"text": "a < b"})],
    [("take_note", {"text": "1"}), ("take_note", {"text": "2"}), ("get_weather", {"city": "雨"})],
    [("get_weather", {"city": "x", "units": ["c", "f"]})],
]


def templates(source: str) -> ChatTemplates:
    named = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
    return ChatTemplates({"default": (source, "a template")}, named)


class Script:
    """One template, and what a model says that follows it.

    Args:
        asked: what it is asked first.
        tools: that it has, in OpenAI's words.
    """

    def __init__(
        self,
        source: str,
        asked: dict[str, Any] = ASKED,
        tools: Sequence[dict[str, Any]] = TOOLS,
    ) -> None:
        self.templates = templates(source)
        self.dialect: Dialect = derive(self.templates)
        self.ask(asked, tools)

    def ask(self, asked: dict[str, Any], tools: Sequence[dict[str, Any]]) -> None:
        """Another conversation."""
        self._asked, self._tools = asked, tools
        self._schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools}

    def said(self, message: dict[str, Any]) -> str | None:
        """What stands behind the prompt in a conversation in which it said `message`; None: the
        template refuses that."""
        try:
            prompt = self.templates.render(self._chat())
            whole = self.templates.render(self._chat(message))
            bare = self.templates.render(self._chat({"content": "Zzz"}))
        except KvrtError:
            return None
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        if len(shared := _common_end(whole, prompt)) > LONG:  # the next prompt has begun
            whole = whole[: -len(shared)]
        header = bare.rpartition("Zzz")[0]  # some write reasoning that is empty into it
        while not whole.startswith(header):
            header = header[: header.rfind("<")] if "<" in header else ""
        return whole[len(header) :] if header else None

    def _chat(self, said: dict[str, Any] | None = None) -> Chat:
        answers = [] if said is None else [{"role": "assistant", **said}]
        return Chat(
            [self._asked, *answers],
            tools=self._tools,
            variables=VARIABLES,
            add_generation_prompt=said is None,
        )

    def calls(self, calls: Sequence[Said], content: str = "") -> str | None:
        given = [(name, json.dumps(args) if self.dialect.texts else args) for name, args in calls]
        listed = [
            {"id": f"call{n:05}", "type": "function", "function": {"name": name, "arguments": args}}
            for n, (name, args) in enumerate(given)
        ]
        return self.said({"content": content, "tool_calls": listed})

    @property
    def thinks(self) -> bool:
        """Whether each prompt begins the reasoning itself."""
        reasoning = self.dialect.reasoning
        prompt = self.templates.render(self._chat())
        return reasoning is not None and prompt.rstrip().endswith(reasoning.begin)

    def read(self, text: str, size: int, *, thinking: bool = False) -> list[Event]:
        """By so many characters at a time."""
        reader = DialectReader(
            self.dialect, self._schemas, thinking=thinking, special=frozenset({"<|im_end|>"})
        )
        events = []
        for at in range(0, len(text), size):
            events += reader.push(text[at : at + size])
        return events + reader.end()


def _common_end(first: str, second: str) -> str:
    size = 0
    while size < min(len(first), len(second)) and first[-size - 1] == second[-size - 1]:
        size += 1
    return first[len(first) - size :]


def called(events: Sequence[Event]) -> list[Said]:
    """The calls among events, their arguments read."""
    found: list[list[str]] = []
    for event in events:
        if isinstance(event, Called):
            found.append([event.name, ""])
        elif isinstance(event, Arguments):
            found[-1][1] += event.text
    return [(name, json.loads(text)) for name, text in found]


def content(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Content))


def thoughts(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Thought))
