"""``kvrt data export`` and ``import``: tasks of Label Studio."""

from collections.abc import Iterator
from pathlib import Path

import click

from kvrt_cli.data.common import (
    apart,
    json_option,
    output_option,
    reading,
    rejected_option,
    set_argument,
    told,
)
from kvrt_cli.errors import of_the_system
from kvrt_cli.extras import check_extra
from kvrt_cli.options import color_option, file_path, quiet_option
from kvrt_cli.terminal import Terminal

label_studio_option = click.option(
    "--label-studio",
    "tasks",
    required=True,
    type=file_path,
    metavar="FILE",
    help="Its tasks, as its import takes them and its export (JSON) gives them.",
)


@click.command("export", short_help="A set as tasks for people.")
@set_argument
@label_studio_option
@click.option(
    "--config",
    type=file_path,
    metavar="FILE",
    help="Write the labelling configuration that the tasks are for, too.",
)
@rejected_option
@json_option
@quiet_option
@color_option
@click.pass_obj
def export_tasks(
    terminal: Terminal,
    /,
    set: Path,
    tasks: Path,
    config: Path | None,
    rejected: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the rows of SET as tasks of Label Studio.

    A task has the line as it was, so kvrt data import gives the same bytes back.
    """
    terminal.quiet = quiet
    check_extra("data", "data")
    apart(set, tasks, config, rejected)
    from kvrt.data.labels import CONFIG, task_of, write_tasks
    from kvrt.data.writing import whole

    with reading(terminal, set, rejected) as (reader, rows), whole(tasks) as file:
        for piece in write_tasks(map(task_of, rows)):
            file.write(piece)
    if config is not None:
        with whole(config) as file:
            file.write(CONFIG.encode())
    told(
        terminal, {"tasks": reader.rows, "bad": reader.bad}, f"{reader.rows} tasks",
        as_json=as_json,
    )  # fmt: skip


@click.command("import", short_help="A set from tasks that people have worked on.")
@label_studio_option
@output_option
@click.option(
    "--apply",
    is_flag=True,
    help="An answer that somebody has written takes the place of the row's; rows that are flagged"
    ' "leave out" are left out.',
)
@json_option
@quiet_option
@color_option
@click.pass_obj
def import_tasks(
    terminal: Terminal, /, tasks: Path, output: Path, apply: bool, as_json: bool, quiet: bool
) -> None:
    """Write a set from tasks of Label Studio, with what people have said in a member
    "label_studio". Rows that nobody has looked at are what they were, byte for byte."""
    terminal.quiet = quiet
    check_extra("data", "data")
    apart(tasks, output)
    from kvrt.data.reading import sha256_of
    from kvrt.data.writing import Content, Made, note_made, whole

    counts = {"tasks": 0, "annotated": 0, "left_out": 0}
    with whole(output) as made:
        for line in _lines(tasks, counts, apply):
            made.add(line)
        after = made.content(output.name)
    before = Content(tasks.name, sha256_of(tasks), counts["tasks"], tasks.stat().st_size)
    note_made(output, Made("import", {"apply": apply}, [before], after, counts))
    words = f"{after.rows} rows, {counts['annotated']} of them annotated"
    told(terminal, {"rows": after.rows, **counts, "sha256": after.sha256}, words, as_json=as_json)


def _lines(path: Path, counts: dict[str, int], apply: bool) -> Iterator[bytes]:
    from kvrt.data.labels import line_of, read_tasks
    from kvrt.data.rows import Unreadable
    from kvrt.errors import RequestError

    try:
        file = path.open("rb")
    except OSError as error:
        raise click.UsageError(f"--label-studio: {of_the_system(error)}") from None
    with file:
        for number, task in enumerate(read_tasks(file), start=1):
            try:
                line = line_of(task, apply=apply)
            except Unreadable as problem:
                raise RequestError(f"{path}, task {number}: {problem}", param="tasks") from None
            counts["tasks"] += 1
            counts["annotated"] += bool(task.get("annotations"))
            counts["left_out"] += line is None
            if line is not None:
                yield line
