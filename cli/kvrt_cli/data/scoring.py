"""``kvrt data score``: numbers on rows."""

from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt_cli.data.common import (
    apart,
    content_of,
    json_option,
    output_option,
    reading,
    rejected_option,
    set_argument,
    told,
)
from kvrt_cli.extras import check_extra
from kvrt_cli.naming import model_name
from kvrt_cli.options import color_option, quiet_option
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import DATA, SectionedCommand
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvrt.data.rows import Row, Score
    from kvrt.runtime import Runtime

BLOCK = 64
"""Rows that are scored together, and kept then."""


@click.command(
    "score", cls=SectionedCommand, sections=DATA, short_help="Rows are given numbers to choose by."
)
@set_argument
@output_option
@click.option("--language", is_flag=True, help="Tell the language of each row, too.")
@click.option(
    "--perplexity",
    "model",
    type=model_name,
    metavar="MODEL",
    help="How likely MODEL finds each answer after its prompt, too. MODEL is as of kvrt run.",
)
@rejected_option
@model_options(prefix_cache=False, text="Keep pages of prompts for others, or not (default).")
@json_option
@quiet_option
@color_option
@click.pass_obj
def score(
    terminal: Terminal,
    /,
    set: Path,
    output: Path,
    language: bool,
    model: str | None,
    rejected: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Write the rows of SET with a member "scores": lengths, repetition, compression, letters, and
    what else is asked for. Scores that rows have already stay, but for those of the same names.

    Stopped by Ctrl-C or a kill, the same command goes on where it was.
    """
    terminal.quiet = quiet
    check_extra("data", "data")
    apart(set, output, rejected)
    from kvrt.data.reading import sha256_of
    from kvrt.data.scores import language_teller, lengths, quality
    from kvrt.data.writing import Made, Part, note_made

    measures = [lengths, quality, *([language_teller()] if language else [])]
    config = None if model is None else runtime_config(model, options)
    how = {"language": language, "perplexity": model}
    unscored = 0
    with ExitStack() as stack:
        part = stack.enter_context(
            closing(Part(output, {"command": "score", "set": sha256_of(set), **how}))
        )
        if part.rows:
            terminal.note(f"going on: {part.rows} rows have been scored")
        reader, rows = stack.enter_context(reading(terminal, set, rejected, part.rows))
        runtime = None
        while block := list(islice(rows, BLOCK)):
            if config is not None and runtime is None:
                runtime = stack.enter_context(open_runtime(terminal, config))
            likely = _likely(runtime, block)
            part.add(
                [
                    row.with_members(scores={**row.scores, **_merged(measures, row), **more})
                    for row, more in zip(block, likely, strict=True)
                ]
            )
            unscored += sum(more.get("perplexity", 0) is None for more in likely)
        before, after = content_of(reader), part.finish()
    counts = {"without_perplexity": unscored, "bad": reader.bad}
    note_made(output, Made("score", how, [before], after, counts))
    words = f"{after.rows} rows have scores"
    if unscored:
        words += f"; {unscored} have no perplexity, as they have no answer or are too long"
    told(terminal, {"rows": after.rows, **counts, "sha256": after.sha256}, words, as_json=as_json)


def _merged(measures: "Sequence[Any]", row: "Row") -> "dict[str, Score]":
    return {name: value for measure in measures for name, value in measure(row).items()}


def _likely(runtime: "Runtime | None", rows: "Sequence[Row]") -> "list[dict[str, Score]]":
    """What a model has to say of rows."""
    if runtime is None:
        return [{} for _ in rows]
    from kvrt.data.likelihood import NO_SCORES, Likely, answer_of, likelihoods

    found = likelihoods(runtime, [answer_of(row) for row in rows])
    return [each.as_scores() if isinstance(each, Likely) else NO_SCORES for each in found]
