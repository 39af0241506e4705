"""A JSON object as it comes: where its members are, before it is whole."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Members:
    """One object, from its brace on.

    Args:
        text: so far.
        starts: where the value of each member of the object itself begins.
        ends: where it ends, once it has.
        end: where the object ends; None: it has not.
    """

    text: str = ""
    starts: dict[str, int] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    end: int | None = None
    _at: int = 0
    _depth: int = 0
    _string: int | None = None  # where it began
    _escaped: bool = False
    _last: str = ""  # the last text at the object's own depth, a key perhaps
    _key: str | None = None  # of the value that is coming

    def push(self, text: str) -> str:
        """Take what belongs to the object; returns the rest."""
        self.text += text
        while self._at < len(self.text) and self.end is None:
            self._take(self.text[self._at])
            self._at += 1
        if self.end is None:
            return ""
        rest, self.text = self.text[self.end :], self.text[: self.end]
        return rest

    def known(self, key: str) -> str:
        """What has come of a member's value."""
        start = self.starts.get(key)
        return "" if start is None else self.text[start : self.ends.get(key, self._at)]

    def _take(self, letter: str) -> None:
        if self._string is not None:
            self._within(letter)
        elif letter == '"':
            self._string = self._at
            self._begin()
        elif letter in "{[":
            self._begin()
            self._depth += 1
        elif letter in "}]":
            if self._depth == 1:
                self._finish()
            self._depth -= 1
            if self._depth == 0:
                self.end = self._at + 1
        elif self._depth == 1 and letter == ":":
            self._key = self._last
        elif self._depth == 1 and letter == ",":
            self._finish()
        elif not letter.isspace():
            self._begin()

    def _within(self, letter: str) -> None:
        assert self._string is not None
        if self._escaped:
            self._escaped = False
        elif letter == "\\":
            self._escaped = True
        elif letter == '"':
            if self._depth == 1 and self._key is None:
                self._last = self.text[self._string + 1 : self._at]
            self._string = None

    def _begin(self) -> None:
        """A value of the object begins, if one is due."""
        if self._depth == 1 and self._key is not None:
            self.starts.setdefault(self._key, self._at)

    def _finish(self) -> None:
        if self._key is not None:
            start = self.starts.get(self._key, self._at)
            value = self.text[start : self._at].rstrip()
            self.ends[self._key] = start + len(value)
            self._key = None
