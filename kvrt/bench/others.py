"""Results of other programs as runs: those of guidellm, and of aiperf.

Both tell of a request when its first and its last piece came, and not of those between, so that
there is no `itl`.

    guidellm  JSON of version 0.8: each benchmark in it is a run
    aiperf    ``profile_export.jsonl`` of version 0.13, or the folder that it is in
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvrt.bench.words import CUT, SCHEMA, Record, Run, load_json, of_object
from kvrt.errors import ConfigError

AIPERF_FILE = "profile_export.jsonl"
NS = 1e9


class Ends(Record):
    """A request of whose pieces only the first and the last are known."""

    __slots__ = ()

    @property
    def gaps(self) -> tuple[float, ...]:
        """Not known."""
        return ()


def read_runs(path: Path) -> list[Run]:
    """The runs that a file, or a folder of aiperf, tells of.

    Raises:
        ConfigError: it cannot be read, or is of none of these programs.
    """
    if path.is_dir():
        path = path / AIPERF_FILE
        if not path.is_file():
            raise ConfigError(f"{path.parent} is no folder of aiperf: it has no {AIPERF_FILE}")
    if path.suffix == ".jsonl":
        return [_aiperf(path)]
    found = load_json(path)
    if isinstance(found, dict) and isinstance(found.get("benchmarks"), list):
        return _guidellm(found["benchmarks"], path)
    if isinstance(found, dict) and found.get("schema") == SCHEMA:
        return [of_object(found, str(path))]
    raise ConfigError(
        f"{path} is no result that is known",
        fix="it reads what kvrt bench serve -o, guidellm (JSON) and aiperf (its folder) write",
    )


def _guidellm(benchmarks: Sequence[Any], path: Path) -> list[Run]:
    runs = []
    for number, each in enumerate(benchmarks):
        name = path.stem if len(benchmarks) == 1 else f"{path.stem} {number + 1}"
        try:
            requests = each["requests"]
            records = [_of_guidellm(one, None) for one in requests["successful"]]
            records += [_of_guidellm(one, "it failed") for one in requests.get("errored") or ()]
            records += [_of_guidellm(one, CUT) for one in requests.get("incomplete") or ()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path} is not as guidellm 0.8 writes it: {type(error).__name__} {error}"
            ) from None
        runs.append(_run(name, "guidellm", records))
    return runs


def _of_guidellm(found: Mapping[str, Any], error: str | None) -> Record:
    sent, end = found.get("request_start_time"), found.get("request_end_time")
    sent = end if sent is None else sent
    tokens, first, gap = (
        found.get(name)
        for name in ("output_tokens", "time_to_first_token_ms", "inter_token_latency_ms")
    )
    pieces = _pieces(_s(first, 1e3), _s(gap, 1e3), tokens)
    return _ends(sent or 0.0, end or 0.0, pieces, found.get("prompt_tokens"), tokens, error)


def _aiperf(path: Path) -> Run:
    records = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    records += _of_aiperf(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise ConfigError(
                        f"{path}, line {number} is not as aiperf 0.13 writes it:"
                        f" {type(error).__name__} {error}"
                    ) from None
    except OSError as error:
        raise ConfigError(f"{path}: it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text in UTF-8") from None
    name = path.parent.name if path.name == AIPERF_FILE else path.stem
    return _run(name, "aiperf", records)


def _of_aiperf(found: Mapping[str, Any]) -> list[Record]:
    about, metrics = found["metadata"], found["metrics"]
    if about.get("benchmark_phase", "profiling") != "profiling":
        return []
    sent, end = about["request_start_ns"] / NS, about["request_end_ns"] / NS
    told = {
        name: _in_seconds(metrics[name]) for name in ("time_to_first_token", "inter_token_latency")
        if name in metrics
    }  # fmt: skip
    tokens, prompt = (
        int(metrics[name]["value"]) if name in metrics else None
        for name in ("output_sequence_length", "input_sequence_length")
    )
    pieces = _pieces(told.get("time_to_first_token"), told.get("inter_token_latency"), tokens)
    error = None
    if found.get("error") is not None:
        error = CUT if about.get("was_cancelled") else str(found["error"])[:300]
    return [_ends(sent, end, pieces, prompt, tokens, error)]


def _in_seconds(metric: Mapping[str, Any]) -> float:
    per_second = {"ns": NS, "us": 1e6, "ms": 1e3, "sec": 1.0, "s": 1.0}[metric["unit"]]
    return float(metric["value"]) / per_second


def _pieces(first: float | None, gap: float | None, tokens: int | None) -> tuple[float, ...]:
    """When the first piece came, and when the last."""
    if first is None:
        return ()
    if gap is None or tokens is None or tokens < 2:
        return (first,)
    return (first, first + gap * (tokens - 1))


def _ends(
    sent: float, end: float, pieces: tuple[float, ...], prompt: int | None, tokens: int | None,
    error: str | None,
) -> Record:  # fmt: skip
    return Ends(
        talk=0, turn=0, due=sent, sent=sent, end=end, pieces=pieces, prompt_tokens=prompt,
        output_tokens=tokens, error=error,
    )  # fmt: skip


def _run(name: str, program: str, records: list[Record]) -> Run:
    """A run that begins with its first request."""
    begun = min((each.sent for each in records), default=0.0)
    moved = [
        _ends(each.sent - begun, each.end - begun, each.pieces, each.prompt_tokens,
              each.output_tokens, each.error)
        for each in sorted(records, key=lambda each: each.sent)
    ]  # fmt: skip
    return Run(
        name=name,
        made_by=program,
        date="",
        target={},
        machine={},
        load={},
        data={},
        seconds=max((each.end for each in moved if each.good), default=0.0),
        cut=False,
        records=moved,
        held_why=f"{program} does not say",
    )


def _s(value: float | None, per_second: float) -> float | None:
    return None if value is None else float(value) / per_second
