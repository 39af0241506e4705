"""One call, or a list of them, as its text comes; a class for each kind of `kvrt.dialect.marks`."""

import ast
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

from kvrt.dialect.events import Arguments, Called, Event, Tools
from kvrt.dialect.marks import Calls
from kvrt.dialect.members import Members

NAME = re.compile(r"\s*([\w.-]+)(?=[^\w.-])")
CDATA = "<![CDATA["
BETWEEN = " \t\r\n,;["
PATIENCE = 400
"""Characters in which a name, or what follows it, must have come."""


class NoCall(Exception):
    """What looked like one is none."""


class Part:
    """A call from its trigger on. `push` until it is `over`; what is left then is the `rest`.

    Raises:
        NoCall: by `push` and `end`, as long as nothing was given out.
    """

    def __init__(self, calls: Calls, tools: Tools) -> None:
        self._calls = calls
        self._tools = tools
        self.rest = ""
        self.over = False
        self.begun = False

    def push(self, text: str) -> list[Event]:
        """What is certain with this further text."""
        self.rest += text
        events: list[Event] = []
        while not self.over and self._step(events):
            pass
        self.begun = self.begun or bool(events)
        return events

    def end(self) -> list[Event]:
        """No more comes."""
        if not self.begun:
            raise NoCall
        return []

    def _step(self, events: list[Event]) -> bool:
        """Go on by a step. False: more has to come."""
        raise NotImplementedError

    def _take(self, mark: str) -> bool:
        """Go on behind a mark, if it has come."""
        at = self.rest.find(mark)
        if at < 0:
            if len(self.rest) > PATIENCE:
                raise NoCall
            return False
        self.rest = self.rest[at + len(mark) :]
        return True

    def _name(self) -> str | None:
        """What stands behind what names stand behind, once it is whole."""
        at = self.rest.find(self._calls.before_name)
        found = None if at < 0 else NAME.match(self.rest, at + len(self._calls.before_name))
        if found is None:
            if len(self.rest) > PATIENCE:
                raise NoCall
            return None
        self.rest = self.rest[found.end() :]
        return found[1]


class JsonPart(Part):
    """``{"name": "f", "arguments": {"x": 1}}``: arguments are given out as they come."""

    def __init__(self, calls: Calls, tools: Tools) -> None:
        super().__init__(calls, tools)
        self._object: Members | None = None
        self._named = False
        self._given = 0
        self.rest = ""

    def _step(self, events: list[Event]) -> bool:
        if self._object is None:
            self.rest = self.rest.lstrip(BETWEEN)
            if not self.rest:
                return False
            if self.rest[0] != "{":
                raise NoCall
            self._object = Members()
        self.rest = self._object.push(self.rest)
        if len(self._calls.name) == len(self._calls.arguments) == 1:
            self._flat(self._object, events)
        elif self._object.end is not None:
            events += self._whole(self._object.text)
        if self._object.end is None:
            return False
        if not self._named and not events:
            raise NoCall
        self.over = True
        return False

    def _flat(self, members: Members, events: list[Event]) -> None:
        (name,), (key,) = self._calls.name, self._calls.arguments
        if not self._named and name in members.ends:
            said = _loaded(members.known(name))
            if not isinstance(said, str):
                raise NoCall
            events.append(Called(said))
            self._named = True
        if not self._named:
            return
        known = members.known(key)
        if known.startswith('"'):  # JSON within JSON
            known = _loaded(known) if key in members.ends else ""
        if len(known) > self._given:
            events.append(Arguments(known[self._given :]))
            self._given = len(known)
        if members.end is not None and not self._given:
            events.append(Arguments("{}"))

    def _whole(self, text: str) -> list[Event]:
        value = _loaded(text)
        if not isinstance(value, dict) or not value:
            raise NoCall
        if not self._calls.name:
            name, arguments = next(iter(value.items()))
        else:
            name, arguments = _at(value, self._calls.name), _at(value, self._calls.arguments)
        if not isinstance(name, str):
            raise NoCall
        return [Called(name), Arguments(_written(arguments))]


class NamedPart(Part):
    """``f<|args|>{"x": 1}``"""

    def __init__(self, calls: Calls, tools: Tools) -> None:
        super().__init__(calls, tools)
        self._called = False
        self._object: Members | None = None

    def _step(self, events: list[Event]) -> bool:
        if not self._called:
            name = self._name()
            if name is None:
                return False
            events.append(Called(name))
            self._called = True
        if self._object is None:
            mark = self._calls.before_arguments
            start = self.rest.find(mark)
            brace = -1 if start < 0 else self.rest.find("{", start + len(mark))
            if brace < 0:
                return False
            self.rest = self.rest[brace:]
            self._object = Members()
        before = len(self._object.text)
        self.rest = self._object.push(self.rest)
        if more := self._object.text[before:]:
            events.append(Arguments(more))
        self.over = self._object.end is not None
        return False


class TaggedPart(Part):
    """``<function=f><parameter=x>1</parameter></function>``: each argument is given out whole."""

    def __init__(self, calls: Calls, tools: Tools) -> None:
        super().__init__(calls, tools)
        self._schema: dict[str, Any] | None = None
        self._count = 0
        self._close = calls.tail[0] if calls.tail else "\0"

    def _step(self, events: list[Event]) -> bool:
        if self._schema is None:
            name = self._name()
            if name is None:
                return False
            schema = self._tools.get(name, {}).get("properties")
            self._schema = dict(schema) if isinstance(schema, dict) else {}
            events.append(Called(name))
        at, close = self.rest.find(self._calls.key), self.rest.find(self._close)
        if close >= 0 and (at < 0 or close < at):
            events.append(Arguments("}" if self._count else "{}"))
            self.rest = self.rest[close:]
            self.over = True
            return False
        value = self.rest.find(self._calls.value, at + len(self._calls.key))
        end = self.rest.find(self._calls.end, value)
        if at < 0 or value < 0 or end < 0:
            return False
        key = NAME.match(self.rest[at + len(self._calls.key) : value] + " ")
        said = self.rest[value + len(self._calls.value) : end]
        self.rest = self.rest[end + len(self._calls.end) :]
        if key is not None:
            events.append(Arguments(self._argument(key[1], said, self._schema)))
            self._count += 1
        return True

    def _argument(self, key: str, said: str, schema: dict[str, Any]) -> str:
        said = said.removeprefix("\n").removesuffix("\n")
        if said.startswith(CDATA) and said.endswith("]]>"):
            said = said[len(CDATA) : -3]
        wanted = schema.get(key)
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        value = _written(said) if kind == "string" else _as_json(said, typed=kind is not None)
        before = ", " if self._count else "{"
        return f"{before}{_written(key)}: {value}"

    def end(self) -> list[Event]:
        super().end()
        return [Arguments("}" if self._count else "{}")]


class QuotedPart(Part):
    """``call:f{x:<|"|>text<|"|>,y:1}``"""

    def __init__(self, calls: Calls, tools: Tools) -> None:
        super().__init__(calls, tools)
        self._called = False
        self._text = re.compile(f"{re.escape(calls.quote)}(.*?){re.escape(calls.quote)}", re.DOTALL)

    def _step(self, events: list[Event]) -> bool:
        if not self._called:
            name = self._name()
            if name is None:
                return False
            events.append(Called(name))
            self._called = True
        if "}" not in self.rest:
            return False
        written = self._text.sub(lambda text: _written(text[1]), self.rest)
        if self._calls.quote in written:
            return False  # within a text
        members = Members()
        start = written.find("{")
        rest = members.push(written[start:]) if start >= 0 else ""
        if members.end is None:
            return False
        pieces = re.split(r'("(?:[^"\\]|\\.)*")', members.text)
        pieces[::2] = [re.sub(r"([\w.-]+)(\s*):", r'"\1"\2:', piece) for piece in pieces[::2]]
        events.append(Arguments("".join(pieces)))
        self.rest, self.over = rest, True
        return False


class PythonPart(Part):
    """``[f(x=1), g(y='a')]``: all calls at once, when they are there."""

    def _step(self, events: list[Event]) -> bool:
        if any(mark in self.rest for mark in self._calls.tail):
            self._read(events)
            self.over = True
        return False

    def end(self) -> list[Event]:
        events: list[Event] = []
        self._read(events)
        return events

    def _read(self, events: list[Event]) -> None:
        ends = [at for mark in self._calls.tail if (at := self.rest.find(mark)) >= 0]
        text = self.rest[: min(ends)] if ends else self.rest
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            listed = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
            for call in listed:
                if not isinstance(call, ast.Call) or call.args:
                    raise NoCall
                given = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
                events += [Called(ast.unparse(call.func)), Arguments(_written(given))]
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise NoCall from None
        self.rest = self.rest[len(text) :]


PARTS: dict[str, Callable[[Calls, Tools], Part]] = {
    "json": JsonPart,
    "named": NamedPart,
    "tagged": TaggedPart,
    "quoted": QuotedPart,
    "python": PythonPart,
}


def _loaded(text: str) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _written(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _as_json(text: str, *, typed: bool) -> str:
    """As it stands, where it is JSON; as Python writes it, where it is known to be no text; else as
    a text."""
    stripped = text.strip()
    if stripped == "null" or _loaded(stripped) is not None:
        return stripped
    if typed:
        with contextlib.suppress(SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            return _written(ast.literal_eval(stripped))
    return _written(text)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
