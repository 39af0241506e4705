"""What clients say an answer may be, in the words of several APIs, as one constraint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kvrt.errors import RequestError
from kvrt.server.errors import Refusal
from kvrt.server.words.fields import Sampling
from kvrt.structured.constraint import Constraint

MAKE: Mapping[str, Callable[[Any], Constraint]] = {
    "json": Constraint.json_schema,
    "json_object": lambda wanted: Constraint.json_object(),
    "regex": Constraint.regex,
    "choice": Constraint.choice,
    "grammar": Constraint.grammar,
}
"""As vLLM's ``structured_outputs`` names them; ``guided_`` stood before that."""


@dataclass(frozen=True, slots=True)
class Held:
    """What an answer is held to.

    Args:
        constraint: as the runtime takes it.
        field: where the client said so.
        yields: where the answer is held to something else, it is not to this.
    """

    constraint: Constraint | None = None
    field: str = ""
    yields: bool = False


FREE = Held()


def held_to(fields: Sampling, form: Mapping[str, Any] | None = None, field: str = "") -> Held:
    """What a request holds its answer to.

    Args:
        form: a ``response_format`` of OpenAI's, or what stands in its place.
        field: its name.

    Raises:
        Refusal: there is more than one, or one that cannot be.
    """
    found = [] if form is None else _of_form(form, field)
    for kind, wanted in (fields.structured_outputs or {}).items():
        if wanted is not None and wanted is not False:
            found.append(_made(kind, wanted, "structured_outputs"))
    for kind in ("json", "regex", "choice", "grammar"):
        if (wanted := getattr(fields, f"guided_{kind}")) is not None:
            found.append(_made(kind, wanted, f"guided_{kind}"))
    if len(found) > 1:
        names = " and ".join(each.field for each in found)
        raise Refusal(400, f"{names} do not go together", param=found[-1].field)
    return found[0] if found else FREE


def both(first: Held, second: Held) -> Held:
    """The one that holds; raises `Refusal` if both do."""
    if first.constraint is not None and second.yields:
        return first
    if first.constraint is not None and second.constraint is not None:
        raise Refusal(
            400, f"{first.field} and tools that must be called do not go together", first.field
        )
    return first if second.constraint is None else second


def _of_form(form: Mapping[str, Any], field: str) -> list[Held]:
    """OpenAI's: of chats with the schema inside of ``json_schema``, of responses beside it."""
    kind = form.get("type", "text")
    if kind == "text":
        return []
    if kind == "json_object":
        schema = form.get("schema")
        return [_made("json_object" if schema is None else "json", schema, field)]
    if kind != "json_schema":
        raise Refusal(400, f"{field}: such a type is not offered by this server", param=field)
    inner = form.get("json_schema", form)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if schema is None:
        raise Refusal(400, f"{field} has no schema", param=field)
    return [_made("json", schema, field)]


def _made(kind: str, wanted: object, field: str) -> Held:
    if kind not in MAKE:
        raise Refusal(400, f"{field} is not offered by this server in this way", param=field)
    try:
        return Held(MAKE[kind](wanted), field)
    except RequestError as error:
        raise Refusal(400, f"{field}: {error}", param=field) from None
