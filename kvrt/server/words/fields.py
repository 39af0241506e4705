"""What may stand in a request, by a schema that bounds every number and every length."""

import re
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from kvrt.sampling import MAX_BIASES, MAX_COMPLETIONS, MAX_STOP_LENGTH, MAX_STOP_TOKENS, MAX_STOPS
from kvrt.server.errors import Refusal

MOST = 2**31 - 1
MAX_PROMPTS = 128

Tokens = Annotated[int, Meta(ge=0, le=MOST)]
"""A number of tokens."""

TokenId = Annotated[int, Meta(ge=0, le=MOST)]
Top = Annotated[int, Meta(ge=0, le=20)]
N = Annotated[int, Meta(ge=1, le=MAX_COMPLETIONS)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=MOST)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=100)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Meta(max_length=MAX_BIASES)]
StopText = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_LENGTH)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=MAX_STOPS)]
StopTokens = Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKENS)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Message = dict[str, Any]
Messages = Annotated[list[Message], Meta(min_length=1, max_length=4096)]

FIELD = re.compile(r"`\$?\.?([\w.\[\]]{1,100})(?:\[\.\.\.\])?`$", re.ASCII)
UNKNOWN = re.compile(r"Object contains unknown field `([\w]{1,64})`")

Fields = TypeVar("Fields", bound=msgspec.Struct)


class Named(msgspec.Struct, kw_only=True):
    """What is asked of a model.

    Args:
        model: its name; empty: the one that there is (`kvrt.server.served.Served.fields`).
    """

    model: Name = ""


class Sampling(Named, kw_only=True):
    """What several protocols have under the same names. Null is the same as nothing.

    The second half is what other servers than OpenAI's take.
    """

    temperature: Temperature | None = None
    top_p: Share | None = None
    n: N | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None

    top_k: TopK | None = None
    min_p: Share | None = None
    repetition_penalty: Repetition | None = None
    min_tokens: Tokens | None = None
    stop_token_ids: StopTokens | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None

    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


def decode(body: bytes, kind: type[Fields], *, strict: bool) -> Fields:
    """A request's fields.

    Args:
        strict: fields that are not known are refused, not passed over.

    Raises:
        Refusal: it is not JSON, or a field is not what it may be.
    """
    try:
        return msgspec.json.decode(body, type=_strict(kind) if strict else kind)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refusal(400, "the body is not JSON", code="invalid_json") from None
    except RecursionError:
        raise Refusal(400, "the body is nested too deeply", code="invalid_json") from None


_stricts: dict[type[msgspec.Struct], type[msgspec.Struct]] = {}


def _strict(kind: type[Fields]) -> type[Fields]:
    """The same, without room for other fields, at any depth."""
    if kind not in _stricts:
        hints = get_type_hints(kind, include_extras=True)
        fields = [
            (field.name, narrow, _default(field))
            for field in msgspec.structs.fields(kind)
            if (narrow := _narrow(hints[field.name])) is not hints[field.name]
        ]
        _stricts[kind] = msgspec.defstruct(
            kind.__name__, fields, bases=(kind,), kw_only=True, forbid_unknown_fields=True
        )
    return _stricts[kind]  # type: ignore[return-value]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    """Of a field, as it was declared."""
    name = field.encode_name
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory, name=name)
    return msgspec.field(default=field.default, name=name)


def _narrow(hint: Any) -> Any:
    """A type, with each struct in it strict; itself, where there is none."""
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _strict(hint)
    inner = get_args(hint)
    if get_origin(hint) is Literal or not inner:
        return hint
    narrowed = tuple(map(_narrow, inner))
    if all(new is old for new, old in zip(narrowed, inner, strict=True)):
        return hint
    if get_origin(hint) is Annotated:
        return Annotated[narrowed]
    if get_origin(hint) in (UnionType, Union):
        return reduce(or_, narrowed)
    return get_origin(hint)[narrowed]


def _refusal(message: str) -> Refusal:
    """In the library's words, as far as they quote nothing that was sent."""
    what, _, where = message.partition(" - at ")
    field = FIELD.search(where)
    name = field[1] if field else None
    if unknown := UNKNOWN.match(message):
        name = f"{name}.{unknown[1]}" if name else unknown[1]
        return Refusal(400, f"{name} is not a field that is known", param=name)
    if not re.fullmatch(r"(Expected|Object missing) [\w `.,|<>=/-]*", what):
        what = "it is not what it may be"
    return Refusal(400, f"{name or 'the body'}: {what}", param=name)
