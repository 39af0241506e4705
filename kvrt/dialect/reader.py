"""An answer as it comes, taken apart by its model's dialect.

thought --reasoning.end--> content --trigger--> call --> behind calls --trigger--> call
   ^-------reasoning.begin---|
"""

import re
from collections.abc import Callable

from kvrt.dialect.calls import PARTS, NoCall, Part
from kvrt.dialect.events import Content, Event, Thought, Tools
from kvrt.dialect.marks import Dialect, segments

HEADER = 300
"""Characters, at most, of what stands between a marker that begins a header and its end."""


class DialectReader:
    """One answer.

    Args:
        dialect: how its model writes.
        tools: what may be called; None: calls are content.
        thinking: the answer begins within reasoning, which the prompt has opened.
        special: texts of special tokens: none of them is content.
    """

    def __init__(
        self, dialect: Dialect, tools: Tools | None, *, thinking: bool, special: frozenset[str]
    ) -> None:
        self._calls = None if tools is None else dialect.calls
        self._tools = tools or {}
        self._reasoning = dialect.reasoning
        self._openings = dialect.openings
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self._strips = bool(special)
        self._buffer = ""
        self._state: Callable[[list[Event], bool], bool]
        self._state = self._thought if thinking and self._reasoning else self._content
        self._fresh = True  # nothing was said in this state
        self._part: Part | None = None
        begins = dialect.reasoning.begin if dialect.reasoning is not None else ""
        self._words = [word for word in self._openings if not word.startswith(("<", "["))]
        self._marks = [m for m in (*self._openings, begins) if m and m not in self._words]
        names = "|".join(map(re.escape, self._tools))
        self._named = re.compile(rf"(?:{names})\s*{{") if names else re.compile(r"(?!)")
        if self._calls is not None and self._calls.trigger:
            self._marks.append(self._calls.trigger)
        firsts = {segments(mark)[0] for mark in self._openings}
        self._headers = [first for first in firsts if first.startswith("<")]

    def push(self, text: str) -> list[Event]:
        """See `Reader`."""
        return self._go(text, last=False)

    def end(self) -> list[Event]:
        """See `Reader`."""
        return self._go("", last=True)

    def _go(self, text: str, *, last: bool) -> list[Event]:
        self._buffer += text
        events: list[Event] = []
        while self._state(events, last):
            pass
        return events

    # --- each returns whether it is worth going on at once -----------------------------------

    def _thought(self, events: list[Event], last: bool) -> bool:
        assert self._reasoning is not None, "else there is no such state"
        if self._fresh:
            self._buffer = self._buffer.lstrip().removeprefix(self._reasoning.begin).lstrip()
            if not last and self._reasoning.begin.startswith(self._buffer):
                return False
        before, mark, behind = self._buffer.partition(self._reasoning.end)
        if mark:
            self._say(events, Thought, before.rstrip())
            self._enter(self._content, behind)
            return True
        self._release(events, Thought, [self._reasoning.end], last)
        return False

    def _content(self, events: list[Event], last: bool) -> bool:
        if self._fresh:
            self._buffer = self._buffer.lstrip()
            if self._bare() or self._opened():
                return True
            if not last and self._may_be_bare():
                return False
        found = [
            (at, -len(mark), mark) for mark in self._marks if (at := self._buffer.find(mark)) >= 0
        ]
        headers = [at for first in self._headers if (at := self._buffer.find(first)) >= 0]
        header = min(headers, default=len(self._buffer))
        if not found:
            if last or len(self._buffer) - header > HEADER:
                header = len(self._buffer)
            self._release(events, Content, self._marks, last, header)
            return False
        at, _, mark = min(found)
        if not last and any(
            other.startswith(self._buffer[at:]) for other in self._marks if other != mark
        ):
            return False  # it may be a longer one
        before = self._buffer[: min(at, header)]
        self._say(events, Content, before.rstrip())
        behind = self._buffer[at + len(mark) :]
        if self._calls is not None and mark == self._calls.trigger:
            self._call(self._buffer[at:], space=before[len(before.rstrip()) :])
        elif self._reasoning is not None and mark == self._reasoning.begin:
            self._enter(self._thought, behind)
        else:
            self._enter(self._content, behind)
        return True

    def _bare(self) -> bool:
        """Whether a call begins that nothing announces."""
        calls = self._calls
        if calls is None or calls.trigger or not self._buffer:
            return False
        if calls.kind == "json":
            starts = self._buffer.startswith("{")
        else:
            starts = self._named.match(self._buffer) is not None
        if starts:
            self._call(self._buffer)
        return starts

    def _may_be_bare(self) -> bool:
        """Whether the name of a tool may have begun, which nothing announces."""
        calls, text = self._calls, self._buffer
        if calls is None or calls.kind != "named" or calls.trigger:
            return False
        return any(name.startswith(text.rstrip()) for name in self._tools)

    def _opened(self) -> bool:
        """Drop a word that stands before content, such as whom it is for."""
        for word in self._words:
            if self._buffer.startswith(word + "\n"):
                self._buffer = self._buffer[len(word) :].lstrip()
                self._words = []
                return True
        return False

    def _call(self, text: str, space: str = "") -> None:
        assert self._calls is not None, "else nothing begins one"
        skipped = len(self._calls.trigger) if self._calls.kind in ("json", "python") else 0
        self._part = PARTS[self._calls.kind](self._calls, self._tools)
        self._looked = space + text[:skipped]  # what is said if it is none
        self._enter(self._within, text[skipped:])

    def _within(self, events: list[Event], last: bool) -> bool:
        assert self._part is not None, "it has begun"
        text, self._buffer = self._buffer, ""
        self._looked += text
        try:
            events += self._part.push(text)
            if last and not self._part.over:
                events += self._part.end()
        except NoCall:
            if self._part.begun:
                self._enter(self._behind, self._part.rest)
            else:
                assert self._calls is not None, "one was looked for"
                self._marks = [mark for mark in self._marks if mark != self._calls.trigger]
                self._calls = None  # it is content, and so is what follows
                self._enter(self._content, self._looked)
                self._fresh = False
            return True
        if self._part.over or last:
            self._enter(self._behind, self._part.rest if self._part.over else "")
            return True
        return False

    def _behind(self, events: list[Event], last: bool) -> bool:
        """What ends calls is no content; another may follow."""
        assert self._calls is not None, "one has been there"
        text = self._buffer
        if self._calls.kind == "json" and (next_one := text.lstrip(" \t\r\n,;")).startswith("{"):
            self._call(self._calls.trigger + next_one)
            return True
        starts = [self._calls.trigger, self._calls.before_name]
        places = [at for mark in starts if mark and (at := text.find(mark)) >= 0]
        if not any(starts) and (another := self._named.search(text)):
            places = [another.start()]
        if places:
            self._call(text[min(places) :])
            return True
        if last:
            known = {*self._calls.tail, *self._openings, "]", "}", "```"}
            parts = [
                part for part in segments(text) if part.strip().strip("]}`") not in {*known, ""}
            ]
            self._say(events, Content, "".join(parts).strip())
            self._buffer = ""
        return False

    # --- what they share ---------------------------------------------------------------------

    def _enter(self, state: Callable[[list[Event], bool], bool], text: str) -> None:
        self._state, self._buffer, self._fresh = state, text, True

    def _release(
        self,
        events: list[Event],
        kind: type[Content | Thought],
        marks: list[str],
        last: bool,
        until: int | None = None,
    ) -> None:
        """Give out what can neither begin a mark nor stand in front of one as white space."""
        text = self._buffer[:until]
        if not last:
            held = max((_begun(text, mark) for mark in marks), default=0)
            text = text[: len(text) - held].rstrip()
        self._say(events, kind, text)
        self._buffer = self._buffer[len(text) :]

    def _say(self, events: list[Event], kind: type[Content | Thought], text: str) -> None:
        said = self._special.sub("", text) if self._strips else text
        if said:
            events.append(kind(said))
        if text:
            self._fresh = False


def _begun(text: str, mark: str) -> int:
    """How many of the last characters begin a mark."""
    longest = min(len(mark) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
