"""``kvrt data``: sets of prompts and answers, a JSON object a line."""

import click

from kvrt_cli.data.cleaning import dedupe, filter_rows
from kvrt_cli.data.comparing import compare
from kvrt_cli.data.labelling import export_tasks, import_tasks
from kvrt_cli.data.looking import stats
from kvrt_cli.data.scoring import score
from kvrt_cli.data.versions import version
from kvrt_cli.options import color_option


@click.group("data", short_help="Sets of prompts and answers: clean, score, keep, compare.")
@color_option
def data() -> None:
    """Clean, score, keep and compare sets of prompts and answers.

    A set is a file of JSON objects, one a line: conversations (messages), pairs (prompt and
    completion, answer or response), instructions, texts, or the lines of batches. Memory does not
    grow with it. See docs/data.md.
    """


for command in (
    dedupe, score, filter_rows, stats, version, export_tasks, import_tasks, compare
):  # fmt: skip
    data.add_command(command)
