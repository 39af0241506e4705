"""What an answer may say: a value, checked for its size when it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kvrt.errors import RequestError

Kind = Literal["json_schema", "regex", "choice", "grammar"]

MAX_SOURCE = 256 << 10
"""Characters of a schema, a pattern, a grammar, or of all choices."""
MAX_CHOICES = 4096


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer may say. It ends when nothing more may follow.

    Made by `json_schema`, `json_object`, `regex`, `choice` and `grammar`, which raise
    `RequestError` for what cannot be one. Whether it means anything, a request finds out.

    Args:
        kind: what `source` is.
        source: the schema or the choices as JSON, the pattern, or the grammar.
    """

    kind: Kind
    source: str

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise _wrong(f"{self.kind} is empty, or no text")
        if len(self.source) > MAX_SOURCE:
            raise _wrong(f"{self.kind} has more than {MAX_SOURCE:,} characters")
        if any("\ud800" <= letter <= "\udfff" for letter in self.source):
            raise _wrong(f"{self.kind} is not valid Unicode text")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> "Constraint":
        """JSON that is valid under a JSON Schema (draft 2020-12), given as data or as text.

        Members come in the order of ``properties``. Keywords that cannot be enforced are refused
        when a request asks for them; references lead to places in the schema alone.
        """
        if isinstance(schema, str):
            import json  # only where it is used: it is a twentieth of `import kvrt`

            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError):
                raise _wrong("json_schema is not JSON") from None
        if not isinstance(schema, Mapping | bool):
            raise _wrong("json_schema must be an object, or true or false")
        return cls("json_schema", _written(schema, "json_schema"))

    @classmethod
    def json_object(cls) -> "Constraint":
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> "Constraint":
        """Text that as a whole matches a pattern: Rust's syntax, without look-around."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> "Constraint":
        """One of some texts."""
        listed = isinstance(choices, list | tuple) and 1 <= len(choices) <= MAX_CHOICES
        if not listed or not all(isinstance(text, str) and text for text in choices):
            raise _wrong(f"choice must be a list of 1 to {MAX_CHOICES} texts, none of them empty")
        return cls("choice", _written(list(choices), "choice"))

    @classmethod
    def grammar(cls, text: str) -> "Constraint":
        """Text of a grammar: llguidance's variant of Lark, or GBNF, as llama.cpp has it."""
        return cls("grammar", text)


def _written(value: object, kind: str) -> str:
    import json

    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise _wrong(f"{kind} holds what JSON cannot, or is nested too deeply") from None


def _wrong(reason: str) -> RequestError:
    return RequestError(reason, param="constraint")
