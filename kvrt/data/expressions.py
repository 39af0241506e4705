"""Which rows stay, in words about their scores.

    chars > 20 and (language == "en" or language_p < 0.5)
    not (repetition >= 0.3) and shape in ("messages", "pair")

    either   = both ("or" both)*
    both     = one ("and" one)*
    one      = "not" one | "(" either ")" | value (sign value | ["not"] "in" "(" value, ... ")")
    sign     = "==" | "!=" | "<" | "<=" | ">" | ">="
    value    = a score's name | a number | a text in quotes | true | false | null

Nothing of it is run as a program. `shape`, `line` and `has_answer` are known of any row. What has
no value (null) is equal to null alone, and neither smaller nor greater than anything.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from kvrt.data.rows import Row, Score
from kvrt.errors import RequestError

TOKEN = re.compile(
    r"""\s*(?:(?P<number>-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<text>"(?:[^"\\]|\\["\\])*"|'(?:[^'\\]|\\['\\])*')
    |(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)
    |(?P<sign>==|!=|<=|>=|<|>|[(),])
    |(?P<end>$))""",
    re.VERBOSE | re.ASCII,
)
SIGNS: Mapping[str, Callable[[float | str, float | str], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
CONSTANTS: Mapping[str, Score] = {"true": True, "false": False, "null": None}
WORDS = ("and", "or", "not", "in")
LONGEST, DEEPEST = 10_000, 100

Value = Callable[[Row], Score]
Test = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class Token:
    """A word of an expression, and where it begins."""

    kind: str
    text: str
    at: int


def expression(text: str) -> Test:
    """Whether a row stays. What it gives raises `RequestError` for a row that has not been given a
    score which the expression names, or where what it compares cannot be compared.

    Raises:
        RequestError: it is no such expression; says where.
    """
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise RequestError(f"an expression has {LONGEST} characters at most", param="where")
        self._text = text
        self._tokens = list(self._split())
        self._next = 0
        self._depth = 0

    def read(self) -> Test:
        found = self._either()
        if self._token.kind != "end":
            self._wrong("and, or, or the end belongs there")
        return found

    def _split(self) -> Iterator[Token]:
        at = 0
        while True:
            match = TOKEN.match(self._text, at)
            if match is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise _error("that is no part of an expression", at)
            kind = match.lastgroup or "end"
            yield Token(kind, match[kind], match.start(kind))
            if kind == "end":
                return
            at = match.end()

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> bool:
        """Go on, if the next word is one of these."""
        found = self._token.kind in ("name", "sign") and self._token.text in texts
        self._next += found
        return found

    def _wrong(self, what: str) -> NoReturn:
        raise _error(what, self._token.at)

    def _either(self) -> Test:
        tests = [self._both()]
        while self._take("or"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._take("and"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def _one(self) -> Test:
        self._depth += 1
        if self._depth > DEEPEST:
            self._wrong(f"it is nested more than {DEEPEST} times")
        try:
            if self._take("not"):
                inner = self._one()
                return lambda row: not inner(row)
            if self._take("("):
                found = self._either()
                if not self._take(")"):
                    self._wrong(") is missing")
                return found
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Test:
        left = self._value()
        sign = self._token.text
        if self._take("==", "!="):
            right = self._value()
            if sign == "==":
                return lambda row: left(row) == right(row)
            return lambda row: left(row) != right(row)
        if self._take(*SIGNS):
            right, compare, at = self._value(), SIGNS[sign], self._token.at
            return lambda row: _ordered(left(row), right(row), compare, at)
        outside = self._take("not")
        if self._take("in"):
            among = self._values()
            return lambda row: (left(row) in [value(row) for value in among]) != outside
        return self._wrong("==, !=, <, <=, >, >= or in belongs there")

    def _values(self) -> list[Value]:
        if not self._take("("):
            self._wrong("( belongs behind in")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        if not self._take(")"):
            self._wrong(") is missing")
        return values

    def _value(self) -> Value:
        token = self._token
        constant: Score
        if token.kind == "number":
            constant = float(token.text)
        elif token.kind == "text":
            constant = re.sub(r"\\(.)", r"\1", token.text[1:-1])
        elif token.kind == "name" and token.text in CONSTANTS:
            constant = CONSTANTS[token.text]
        elif token.kind == "name" and token.text not in WORDS:
            self._next += 1
            return lambda row: _score(row, token.text)
        else:
            self._wrong("a score, a number or a text in quotes belongs there")
        self._next += 1
        return lambda row: constant


def _score(row: Row, name: str) -> Score:
    if name in row.scores:
        return row.scores[name]
    match name:
        case "shape":
            return row.shape
        case "line":
            return row.number
        case "has_answer":
            return row.answer is not None
        case _:
            known = ", ".join(sorted(row.scores)) or "none yet"
            raise RequestError(
                f"line {row.number} has no score {name}; it has {known}",
                param="where",
                fix="kvrt data score gives rows their scores",
            )


def _ordered(
    left: Score, right: Score, compare: Callable[[float | str, float | str], bool], at: int
) -> bool:
    if left is None or right is None:
        return False
    if isinstance(left, str) != isinstance(right, str):
        raise _error("a number and a text are neither smaller nor greater", at)
    return compare(left, right)


def _error(what: str, at: int) -> RequestError:
    return RequestError(
        f"--where, character {at + 1}: {what}",
        param="where",
        fix="""as in --where 'chars > 20 and language == "en"'""",
    )
