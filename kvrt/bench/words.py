"""A run and its requests, as values, and the file that keeps them.

The file is one JSON object. What a newer kvrt adds are further fields, which a reader passes over;
`VERSION` grows when a field changes its meaning.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvrt.errors import ConfigError

SCHEMA = "kvrt-bench-serve"
VERSION = 1

CUT = "the run was stopped"
"""The error of a request that did not end because the run did."""

DIGITS = 6
"""Of seconds: microseconds."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request. All times are seconds; `due`, `sent` and `end` since the run began.

    Args:
        talk, turn: which conversation, and which of its turns, from 0.
        due: when it should have been sent. For clients that ask in turn, when their last answer
            had ended.
        sent: when it was.
        pieces: when each piece of the answer came, since it was sent. A piece is a token, or
            several where the target sends them together.
        end: when it was over.
        prompt_tokens, cached_tokens, output_tokens: as the target counts them; None: it does not
            say. Without `output_tokens`, each piece counts as one.
        finish: the target's reason for the end.
        error: why there is no whole answer; None: there is.
    """

    talk: int
    turn: int
    due: float
    sent: float
    end: float
    pieces: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish: str | None = None
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether there is a whole answer."""
        return self.error is None

    @property
    def ttft(self) -> float | None:
        """Seconds to the first piece."""
        return self.pieces[0] if self.pieces else None

    @property
    def e2e(self) -> float:
        """Seconds to the end."""
        return self.end - self.sent

    @property
    def tokens(self) -> int:
        """Of the answer."""
        return len(self.pieces) if self.output_tokens is None else self.output_tokens

    @property
    def tpot(self) -> float | None:
        """Seconds for each token after the first: (last piece - first) / (tokens - 1)."""
        if len(self.pieces) < 2 or self.tokens < 2:
            return None
        return (self.pieces[-1] - self.pieces[0]) / (self.tokens - 1)

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between two pieces that follow each other."""
        return tuple(
            later - earlier for earlier, later in zip(self.pieces, self.pieces[1:], strict=False)
        )


@dataclass(frozen=True, slots=True)
class Held:
    """KV memory at a moment, in bytes.

    Args:
        at: seconds since the run began.
        pinned: of pages that requests hold.
        cached: of pages that are kept for requests to come.
        held: what is taken from the device, for both and for pages to come.
        limit: on it.
    """

    at: float
    pinned: int
    cached: int
    held: int
    limit: int


@dataclass(frozen=True, slots=True)
class Counter:
    """What one counter of energy has counted.

    Args:
        name: such as ``processors``.
        joules: None: it could not be counted, and `why`.
    """

    name: str
    joules: float | None
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """What was measured.

    Args:
        name: that it goes by beside others.
        made_by, date: of kvrt, and in UTC.
        target: what was asked: ``kind``, ``model``, and more by kind.
        machine: that asked.
        load, data: how, and what.
        seconds: from the first request sent to the last end.
        cut: it was stopped before its end.
        records: all requests, as they ended.
        held: KV memory over time; `held_why`: why there is none.
        clocks: what the target itself knows of its times (`kvrt.bench.clocks`): ``first_mean`` and
            ``queued_mean``, or ``why`` they are not known.
        energy: of each counter, over `seconds`.
        per_hour, per_kwh: prices that were given, in whatever money; None: none was.
        weights: see `kvrt.bench.prices`.
    """

    name: str
    made_by: str
    date: str
    target: Mapping[str, Any]
    machine: Mapping[str, Any]
    load: Mapping[str, Any]
    data: Mapping[str, Any]
    seconds: float
    cut: bool
    records: Sequence[Record]
    held: Sequence[Held] = ()
    held_why: str | None = None
    clocks: Mapping[str, Any] = field(default_factory=dict)
    energy: Sequence[Counter] = field(default_factory=tuple)
    per_hour: float | None = None
    per_kwh: float | None = None
    weights: Sequence[float] = (1.0, 0.1, 4.0)

    @property
    def good(self) -> list[Record]:
        return [each for each in self.records if each.good]


def to_object(run: Run) -> dict[str, Any]:
    """As the file has it, without what is computed from it."""
    given = asdict(run)
    records = [_rounded(each) for each in given.pop("records")]
    return {"schema": SCHEMA, "version": VERSION, **given, "records": records}


def of_object(found: Any, where: str) -> Run:
    """The other way round.

    Args:
        where: it comes from, for errors.

    Raises:
        ConfigError: it is none, or of a newer version.
    """
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ConfigError(
            f"{where} is no result of kvrt bench serve",
            fix="make one with kvrt bench serve -o FILE",
        )
    if found.get("version") != VERSION:
        raise ConfigError(
            f"{where} has version {found.get('version')!s:.20} of the format, and this is"
            f" version {VERSION}",
            fix="use the kvrt that made it",
        )
    try:
        parts: dict[str, Any] = {
            "records": [_of(Record, each) for each in found["records"]],
            "held": [_of(Held, each) for each in found.get("held", ())],
            "energy": [_of(Counter, each) for each in found.get("energy", ())],
        }
        run: Run = _of(Run, {**found, **parts})
        _check(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where} is damaged: {error}", fix="make it again with kvrt bench serve -o FILE"
        ) from None
    return run


def save(run: Run, path: Path, summary: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all.

    Args:
        summary: for people who read it; a reader computes its own.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({**to_object(run), "summary": summary}, separators=(",", ":"))
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)


def load_json(path: Path) -> Any:
    """What a file of JSON says.

    Raises:
        ConfigError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None


def load(path: Path) -> Run:
    """Read the file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    return of_object(load_json(path), str(path))


def _of(kind: Any, found: Mapping[str, Any]) -> Any:
    """A value of a class, of the fields that it knows."""
    known = {name: found[name] for name in kind.__dataclass_fields__ if name in found}
    if "pieces" in known:
        known["pieces"] = tuple(map(float, known["pieces"]))
    return kind(**known)


def _check(run: Run) -> None:
    """Raise `TypeError` or `ValueError` for numbers that are none, or no times."""
    for each in run.records:
        if not 0 <= float(each.sent) <= float(each.end):
            raise ValueError("a request ends before it was sent")
        int(each.tokens)
    for moment in run.held:
        float(moment.at + moment.pinned + moment.cached + moment.held + moment.limit)
    for part in (run.target, run.machine, run.load, run.data, run.clocks):
        part.keys()
    if not float(run.seconds) >= 0:
        raise ValueError("it took no time")


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    for name in ("due", "sent", "end"):
        record[name] = round(record[name], DIGITS)
    record["pieces"] = [round(each, DIGITS) for each in record["pieces"]]
    return record
