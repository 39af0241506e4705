"""Runs engines turn by turn, so that whatever changes the machine's speed meets all alike."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from subprocess import CalledProcessError
from typing import IO, Any

from tests.bench.peers.child import Refused, Worker, print_error, worker
from tests.bench.peers.convert import prepare
from tests.bench.peers.engines import Engine
from tests.bench.peers.install import python_of
from tests.bench.peers.work import WARMING, Answer, Work, agreement, figures, variety

Row = dict[str, Any]
"""Of one engine with one shape: `shape`, `engine`, `format`; `skipped` why there is nothing; else
`versions` and `cells`, by the work's name: the median rate, `runs`, `peak_bytes`,
`foreign_cores`; `agreement` and `variety` of its tokens with those of the format's first engine."""

Tokens = dict[tuple[str, int], list[list[int]]]
"""Of one engine, by work and repeat."""


def compare(
    engines: Sequence[Engine], shape: str, works: Sequence[Work], repeats: int, threads: int,
    work: Path, log: IO[str],
) -> list[Row]:  # fmt: skip
    """Engines of one format on one shape, all loaded at once."""
    rows: list[Row] = []
    with ExitStack() as open_:
        ready: dict[str, Worker] = {}
        for engine in engines:
            row: Row = {"shape": shape, "engine": engine.name, "peer": engine.peer,
                        "format": engine.format}  # fmt: skip
            rows.append(row)
            try:
                python = python_of(engine.peer, work)
                path = prepare(engine, shape, work / "models", python)
                there = open_.enter_context(worker(python, engine.peer, threads, log))
                said = there.ask("load", path=str(path), options=dict(engine.options))
                ask(there, WARMING, 0)
            except (CalledProcessError, OSError, Refused) as error:
                row["skipped"] = str(error)
                print_error(f"{shape}: {engine.name} is left out: {error}")
                continue
            row |= {"versions": said["versions"], "load_seconds": said["seconds"]}
            ready[engine.name] = there
        run_turns(ready, rows, works, repeats)
    return rows


def run_turns(
    ready: dict[str, Worker], rows: Sequence[Row], works: Sequence[Work], repeats: int
) -> None:
    """Each repeat begins with another engine; one that fails is out, with its words."""
    runs: dict[tuple[str, str], list[Row]] = defaultdict(list)
    tokens: dict[str, Tokens] = defaultdict(dict)
    for work in works:
        for repeat in range(repeats):
            for name in rotated(list(ready), repeat):
                try:
                    run, tokens[name][work.name, repeat] = ask(ready[name], work, repeat)
                except (Refused, ValueError) as error:
                    of_name(rows, name)["skipped"] = f"{work.name}: {error}"
                    del ready[name]
                    print_error(f"{name} is out: {work.name}: {error}")
                    continue
                runs[name, work.name].append(run)
                print_error(f"  {work.name} {repeat + 1}: {name}: {run[work.figure]:.1f}")
    for name in ready:
        row = of_name(rows, name)
        row["cells"] = {work.name: cell(runs[name, work.name], work.figure) for work in works}
        first = tokens[next(iter(ready))]
        keys = [key for key in first if key in tokens[name]]
        pairs = [[each for key in keys for each in mine[key]] for mine in (tokens[name], first)]
        row["agreement"], row["variety"] = agreement(*pairs), variety(pairs[0])


def of_name(rows: Iterable[Row], name: str) -> Row:
    return next(row for row in rows if row["engine"] == name)


def rotated(names: list[str], turns: int) -> list[str]:
    at = turns % max(1, len(names))
    return names[at:] + names[:at]


def ask(there: Worker, work: Work, repeat: int) -> tuple[Row, list[list[int]]]:
    requests = work.requests(repeat)
    said = there.ask("run", requests=[asdict(request) for request in requests])
    answers = [Answer(**each) for each in said.pop("answers")]
    return figures(requests, answers) | said, [answer.tokens for answer in answers]


def cell(runs: Sequence[Row], figure: str) -> Row:
    return {
        "rate": statistics.median(run[figure] for run in runs),
        "runs": [run[figure] for run in runs],
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "foreign_cores": max(run["foreign_cores"] for run in runs),
    }
