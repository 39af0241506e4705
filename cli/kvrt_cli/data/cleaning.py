"""``kvrt data dedupe`` and ``kvrt data filter``: fewer rows."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt_cli.beside import open_embedder
from kvrt_cli.data.common import (
    apart,
    content_of,
    json_option,
    output_option,
    part_option,
    reading,
    rejected_option,
    set_argument,
    told,
)
from kvrt_cli.extras import check_extra
from kvrt_cli.jsontext import to_json
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import backend_option, color_option, file_path, offline_option, quiet_option
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.data.duplicates import Finder


@click.command("dedupe", short_help="Rows that say what others say are left out.")
@set_argument
@output_option
@click.option(
    "--near",
    type=click.FloatRange(0.1, 1.0),
    metavar="S",
    help="Also rows whose runs of five words have at least so much in common (Jaccard), as 0.8.",
)
@click.option(
    "--meaning",
    type=click.FloatRange(0.1, 1.0),
    metavar="S",
    help="Also rows whose vectors, by --embed-model, have at least such a cosine, as 0.95.",
)
@click.option("--embed-model", type=model_name, metavar="MODEL", help="As MODEL of kvrt embed.")
@part_option
@click.option(
    "--duplicates",
    "listed",
    type=file_path,
    metavar="FILE",
    help="Takes what was left out, and of which line it is a duplicate: a JSON object a line.",
)
@rejected_option
@backend_option
@offline_option
@json_option
@quiet_option
@color_option
@click.pass_obj
def dedupe(
    terminal: Terminal,
    /,
    set: Path,
    output: Path,
    near: float | None,
    meaning: float | None,
    embed_model: str | None,
    part: Any,
    listed: Path | None,
    rejected: Path | None,
    backend: str,
    offline: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the rows of SET that say what none before them says.

    Those that say the very same are always left out. The order stays; of duplicates, the first one
    stays.
    """
    terminal.quiet = quiet
    check_extra("data", "data")
    if (meaning is None) != (embed_model is None):
        raise click.UsageError("--meaning and --embed-model go together")
    apart(set, output, listed, rejected)
    from kvrt.data.duplicates import duplicates
    from kvrt.data.meaning import Meaning
    from kvrt.data.writing import Made, note_made, whole

    counts = {"same": 0, "near": 0, "meaning": 0}
    with ExitStack() as stack:
        reader, rows = stack.enter_context(reading(terminal, set, rejected))
        further: list[Finder] = []
        if meaning is not None and embed_model is not None:
            embedder = stack.enter_context(_embedder(embed_model, backend, offline))
            finder = Meaning(embedder, part, meaning)
            stack.callback(finder.close)
            further.append(finder)
        found = stack.enter_context(duplicates(set, part, near, *further))
        made = stack.enter_context(whole(output))
        out = None if listed is None else stack.enter_context(whole(listed))
        for row in rows:
            duplicate = found.find(row)
            if duplicate is None:
                made.add(row.line)
                continue
            counts[duplicate.why] += 1
            if out is not None:
                said = {
                    "line": duplicate.line, "of": duplicate.of, "why": duplicate.why,
                    "similarity": round(duplicate.similarity, 4),
                }  # fmt: skip
                out.add(to_json(said).encode())
        before, after = content_of(reader), made.content(output.name)
    options = {"near": near, "meaning": meaning, "embed_model": embed_model, "on": part}
    all_counts = {**counts, "bad": reader.bad}
    note_made(output, Made("dedupe", options, [before], after, all_counts))
    gone = before.rows - after.rows
    told(
        terminal,
        {"rows": before.rows, "kept": after.rows, **all_counts, "sha256": after.sha256},
        f"{after.rows} of {before.rows} rows stay; {gone} are duplicates: {counts['same']} the"
        f" same, {counts['near']} nearly, {counts['meaning']} by their meaning",
        as_json=as_json,
    )


@click.command("filter", short_help="Rows that meet a condition.")
@set_argument
@output_option
@click.option(
    "--where",
    required=True,
    metavar="EXPRESSION",
    help="A condition on scores, as in 'chars > 20 and language == \"en\"'.",
)
@rejected_option
@json_option
@quiet_option
@color_option
@click.pass_obj
def filter_rows(
    terminal: Terminal,
    /,
    set: Path,
    output: Path,
    where: str,
    rejected: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the rows of SET for which a condition on their scores is true.

    Scores are those that kvrt data score has given them; shape, line and has_answer are known of
    all. There is == != < <= > >= in, not in, and, or, not, parentheses, numbers, texts in quotes,
    true, false, null. See docs/data.md.
    """
    terminal.quiet = quiet
    check_extra("data", "data")
    apart(set, output, rejected)
    from kvrt.data.expressions import expression
    from kvrt.data.writing import Made, note_made, whole

    stays = expression(where)
    with reading(terminal, set, rejected) as (reader, rows), whole(output) as made:
        for row in rows:
            if stays(row):
                made.add(row.line)
        before, after = content_of(reader), made.content(output.name)
    counts = {"gone": before.rows - after.rows, "bad": reader.bad}
    note_made(output, Made("filter", {"where": where}, [before], after, counts))
    told(
        terminal,
        {"rows": before.rows, "kept": after.rows, **counts, "sha256": after.sha256},
        f"{after.rows} of {before.rows} rows stay",
        as_json=as_json,
    )


def _embedder(model: str, backend: str, offline: bool) -> Any:
    from kvrt.config import RuntimeConfig

    return open_embedder(model, RuntimeConfig(model=TINY, backend=backend, offline=offline))
