"""A run as names and numbers."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kvrt.bench.figures import POINTS, TIMES, summary
from kvrt.bench.words import Record, Run

RATES = ("requests_per_s", "prompt_tokens_per_s", "output_tokens_per_s")


def figures(run: Run) -> dict[str, float]:
    """All figures that are known: those of `kvrt bench gate` by the names that they have there, and
    what there is of memory, energy and costs."""
    found = summary(run)
    return {name: float(value) for name, value in _figures(found) if value is not None}


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[str, float | None]]:
    for name in ("seconds", "errors", *RATES, "late_p99"):
        yield name, found[name]
    for kind, count in found["requests"].items():
        yield f"requests_{kind}", count
    for kind, count in found["tokens"].items():
        yield f"tokens_{kind}", count
    for time in TIMES:
        for point in ("mean", *(f"p{each}" for each in POINTS)):
            yield f"{time}_{point}", found[time][point]
    for name, size in found["memory"].items():
        if name != "why":
            yield f"kv_{name}_bytes", size
    for name in ("joules", "wh_per_1k_requests", "joules_per_output_token"):
        yield name, found["energy"][name]
    for name, cost in (found["costs"] or {}).items():
        yield f"cost_{name}", cost["value"]


def settings(run: Run) -> dict[str, str]:
    """What was asked, how, and of what: ``target.model`` and the like."""
    parts = {"target": run.target, "machine": run.machine, "load": run.load, "data": run.data}
    found = {"made_by": run.made_by, "date": run.date, "cut": str(run.cut).lower()}
    for part, values in parts.items():
        found.update(_settings(part, values))
    return found


def _settings(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _settings(f"{name}.{key}", inner)
    elif value is not None:
        yield name, str(value).lower() if isinstance(value, bool) else str(value)


def begun(run: Run) -> float:
    """When it began, in seconds since 1970; now, if it does not say."""
    try:
        return datetime.fromisoformat(run.date).timestamp()
    except ValueError:
        return datetime.now(UTC).timestamp()


def ended(run: Run) -> Sequence[Record]:
    """Requests in the order of their ends."""
    return sorted(run.records, key=lambda each: each.end)


def numbers(record: Record) -> dict[str, float]:
    """What is known of a request."""
    known = {
        "ttft": record.ttft,
        "tpot": record.tpot,
        "e2e": record.e2e if record.good else None,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.tokens,
    }
    return {name: float(value) for name, value in known.items() if value is not None}
