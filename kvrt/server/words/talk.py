"""Conversations with tools and reasoning, in OpenAI's words: what all chat protocols share."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kvrt.dialect.events import Arguments, Called, Content, Event, Reader, Thought, Tools
from kvrt.dialect.marks import Calls, Dialect
from kvrt.dialect.reader import DialectReader
from kvrt.errors import RequestError
from kvrt.server.errors import Refusal
from kvrt.server.served import Served
from kvrt.server.words.pictures import places_of, with_images
from kvrt.server.words.strict import held_calls, holds
from kvrt.server.words.structured import FREE, Held
from kvrt.structured.constraint import Constraint

MAX_TOOLS = 512
MAX_NAME = 256
MAX_FORCED = 16
"""Calls, at most, where at least one is required."""

Must = Literal["may", "one", "any"]
"""Calls are free to come; this one must; at least one must."""

LISTED = Calls(kind="json", trigger="[", name=("name",), arguments=("arguments",))
"""How calls are written that a constraint demands, whatever else the model is used to."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which tools there are, and what must be called.

    Args:
        tools: as a template takes them; none: calls are not looked for.
        must: see `Must`.
        name: of the one that must be called.
        several: an answer may have more calls than one.
        calls: how calls are written that are held to the schemas of strict functions, where none
            must be made; None: they are not.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    must: Must = "may"
    name: str = ""
    several: bool = True
    calls: Calls | None = None

    @property
    def schemas(self) -> Tools:
        return {
            tool["function"]["name"]: tool["function"].get("parameters") or {"type": "object"}
            for tool in self.tools
        }

    def held(self) -> Held:
        """What the answer is held to, so that what must be called is, and strict functions are as
        they should be."""
        schemas = self.schemas
        if self.must == "may":
            return self._held_calls(schemas)
        if self.must == "one":
            return Held(_constraint(schemas[self.name]), "tools")
        items = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": schema},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, schema in schemas.items()
        ]
        most = MAX_FORCED if self.several else 1
        listed = {"type": "array", "items": {"anyOf": items}, "minItems": 1, "maxItems": most}
        return Held(_constraint(listed), "tools")

    def _held_calls(self, schemas: Tools) -> Held:
        functions = [tool["function"] for tool in self.tools]
        strict = {each["name"] for each in functions if each.get("strict") is True}
        if self.calls is None or not strict:
            return FREE
        try:
            held = held_calls(self.calls, schemas, strict, several=self.several)
        except RequestError as error:
            raise Refusal(400, f"tools: {error}", param="tools") from None
        return Held(held, "tools", yields=True)


NO_TOOLS = Choice()


def _constraint(schema: Mapping[str, Any]) -> Constraint:
    try:
        return Constraint.json_schema(schema)
    except RequestError as error:
        raise Refusal(400, f"tools: {error}", param="tools") from None


def choose(
    served: Served,
    tools: Sequence[Mapping[str, Any]],
    choice: str | Mapping[str, Any] | None,
    *,
    several: bool,
) -> Choice:
    """What a request says of tools.

    Args:
        tools: of OpenAI's chats.
        choice: ``auto``, ``none``, ``required``, or the one function to be called.

    Raises:
        Refusal: a tool is none, the choice cannot be, or the model's template writes no calls.
    """
    if not tools or choice == "none":
        return NO_TOOLS
    _check_tools(tools)
    if choice in (None, "auto"):
        if served.dialect.calls is None and served.readers is None:
            raise Refusal(
                400,
                "tools: the model's chat template does not show how it writes calls",
                param="tools",
            )
        held = holds(served.dialect, served.special_texts) and served.readers is None
        return Choice(tools, several=several, calls=served.dialect.calls if held else None)
    if choice == "required":
        return Choice(tools, "any", several=several)
    name = None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        name = choice.get("function", choice)
        name = name.get("name") if isinstance(name, Mapping) else None
    found = Choice(tools, "one", name or "")
    if name not in found.schemas:
        raise Refusal(
            400,
            "tool_choice must be auto, none, required, or a function that is among the tools",
            param="tool_choice",
        )
    return found


def _check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    if len(tools) > MAX_TOOLS:
        raise Refusal(400, f"tools: there are more than {MAX_TOOLS}", param="tools")
    for place, tool in enumerate(tools):
        function = tool.get("function") if tool.get("type", "function") == "function" else None
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise Refusal(400, f"tools[{place}] is no function with a name", param="tools")
        if not isinstance(function.get("parameters"), Mapping | None):
            raise Refusal(400, f"tools[{place}] has parameters that are no schema", param="tools")


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME


def as_said(
    dialect: Dialect, messages: Sequence[Mapping[str, Any]], places: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Messages as the model's template takes them: arguments as data, results with names, images
    as parts.

    Args:
        places: what the client calls each, for errors; empty: ``messages[0]`` and so on.

    Raises:
        Refusal: there is no role, arguments are no JSON, or an image is none.
        RequestError: a part is neither image nor text.
    """
    names: dict[str, str] = {}
    found = []
    places = places or places_of(messages)
    for where, said in zip(places, with_images(messages, places), strict=True):
        if not isinstance(said.get("role"), str):
            raise Refusal(400, f"{where} must have a role that is a string", param=where)
        if said.get("tool_calls"):
            said["tool_calls"] = [_call(call, where, dialect) for call in _listed(said, where)]
            said["content"] = said.get("content") or ""
            names |= {str(c.get("id")): c["function"]["name"] for c in said["tool_calls"]}
        elif said.get("role") == "tool" and (name := names.get(str(said.get("tool_call_id")))):
            said.setdefault("name", name)
        found.append(said)
    return found


def _listed(message: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise _no_call(where)
    return calls


def _call(call: Mapping[str, Any], where: str, dialect: Dialect) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise _no_call(where)
    arguments = function.get("arguments") or {}
    try:
        if isinstance(arguments, str) and not dialect.texts:
            arguments = json.loads(arguments)
        elif not isinstance(arguments, str) and dialect.texts:
            arguments = json.dumps(arguments)
    except (ValueError, RecursionError):
        raise _no_call(where) from None
    return {**call, "function": {**function, "arguments": arguments}}


def _no_call(where: str) -> Refusal:
    why = "has tool_calls that are not functions with names and arguments that are JSON"
    return Refusal(400, f"{where} {why}", param=where)


# --- answers ---------------------------------------------------------------------------------


def new_id() -> str:
    """Of a call: nine letters, as Mistral's templates insist on."""
    return secrets.token_hex(5)[:9]


@dataclass(slots=True)
class Call:
    """One call: its arguments are JSON, as far as they have come."""

    name: str
    arguments: str = ""
    id: str = field(default_factory=new_id)

    @property
    def data(self) -> dict[str, Any]:
        """Its arguments, where they have come whole; else none."""
        try:
            found = json.loads(self.arguments, strict=False)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}


Piece = tuple[int, Event]
"""Of an answer, and the number of the call that it is of, if it is of one."""


@dataclass(slots=True)
class Spoken:
    """One answer as it comes.

    Args:
        reader: takes it apart; None: all of it is content.
        choice: of tools.
    """

    reader: Reader | None
    choice: Choice = NO_TOOLS
    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)
    _dropped: bool = False

    def push(self, text: str) -> list[Piece]:
        """What is certain with this text."""
        if self.reader is not None:
            return self._kept(self.reader.push(text))
        return self._kept([Content(text)] if text else [])

    def end(self) -> list[Piece]:
        """What is left."""
        return self._kept([] if self.reader is None else self.reader.end())

    def _kept(self, events: Sequence[Event]) -> list[Piece]:
        """Note them; where one call is all there may be, others are dropped."""
        kept = []
        for event in events:
            if isinstance(event, Called):
                self._dropped = bool(self.calls) and not self.choice.several
            if self._dropped and isinstance(event, Called | Arguments):
                continue
            self._note(event)
            kept.append((len(self.calls) - 1, event))
        return kept

    def _note(self, event: Event) -> None:
        match event:
            case Content(text):
                self.content += text
            case Thought(text):
                self.reasoning += text
            case Called(name):
                self.calls.append(Call(name))
            case Arguments(text):
                self.calls[-1].arguments += text


class Talk:
    """How the answers of one request are taken apart.

    Args:
        served: the model.
        choice: of tools.
        held: the answer is held to something, and so is content as a whole.
    """

    def __init__(self, served: Served, choice: Choice, *, held: bool = False) -> None:
        self._served = served
        self.choice = choice
        dialect = served.dialect
        known = dialect.reasoning is not None or served.readers is not None
        self._reads = not held and bool(choice.tools or known)
        self._texts = served.special_texts
        marked = any(text in mark for mark in dialect.marks for text in self._texts)
        self._shows = self._reads and choice.must == "may" and marked

    def skips_special(self, wanted: bool | None) -> bool | None:
        """Whether special tokens are left out, by what the request says: where some of them are
        marks, they have to be seen, and are left out afterwards."""
        return False if self._shows else wanted

    def spoken(self, prompt: Sequence[int]) -> Spoken:
        """For one answer.

        Args:
            prompt: its tokens; how they end says whether reasoning has begun.
        """
        if not self._reads:
            return Spoken(None)
        return Spoken(self._reader(prompt), self.choice)

    def _reader(self, prompt: Sequence[int]) -> Reader:
        choice = self.choice
        if choice.must == "one":
            return _One(choice.name)
        if choice.must == "any":
            listed = Dialect(LISTED)
            return DialectReader(listed, choice.schemas, thinking=False, special=frozenset())
        tools = choice.schemas if choice.tools else None
        thinking = self._served.thinks(prompt)
        if self._served.readers is not None:
            return self._served.readers(tools, thinking)
        return DialectReader(self._served.dialect, tools, thinking=thinking, special=self._texts)


class _One:
    """All that comes are the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun = False

    def push(self, text: str) -> list[Event]:
        if not text:
            return []
        begun, self._begun = self._begun, True
        return [Arguments(text)] if begun else [Called(self._name), Arguments(text)]

    def end(self) -> list[Event]:
        return []
