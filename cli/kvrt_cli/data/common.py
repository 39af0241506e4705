"""What the commands of ``kvrt data`` have in common."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from kvrt_cli.options import file_path
from kvrt_cli.progress import counting_bar
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.data.reading import Reader
    from kvrt.data.rows import Row
    from kvrt.data.writing import Content

set_argument = click.argument("set", type=file_path)
output_option = click.option(
    "-o", "--output", required=True, type=file_path, metavar="FILE", help="The set that is made."
)
rejected_option = click.option(
    "--rejected",
    type=file_path,
    metavar="FILE",
    help="Takes lines that are no rows. Without it, the first such line ends the command.",
)
part_option = click.option(
    "--on",
    "part",
    type=click.Choice(["all", "prompt", "answer"]),
    default="all",
    show_default=True,
    help="What of a row is compared.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def apart(*paths: Path | None) -> None:
    """Raise `click.UsageError` where two of some files are the same, or one's folder is missing."""
    given = [path.absolute() for path in paths if path is not None]
    if len(set(given)) < len(given):
        raise click.UsageError("the files that are read and written are different ones")
    for path in given[1:]:
        if not path.parent.is_dir():
            raise click.UsageError(f"{path.parent} is no folder")


@contextmanager
def reading(
    terminal: Terminal, path: Path, rejected: Path | None = None, skip: int = 0
) -> Iterator[tuple["Reader", Iterator["Row"]]]:
    """The rows of a set, with a bar that says how far it is.

    Args:
        rejected: takes lines that are no rows.
        skip: rows that are passed over.
    """
    from kvrt.data.reading import Reader

    with ExitStack() as stack:
        bad: BinaryIO | None = None
        if rejected is not None:
            try:
                bad = stack.enter_context(rejected.open("wb"))
            except OSError as error:
                raise click.UsageError(f"--rejected: {error.strerror}") from None
        reader = stack.enter_context(Reader(path, bad, skip))
        tell = stack.enter_context(counting_bar(terminal, path.name, reader.size, of_bytes=True))
        yield reader, _told(reader, tell)


def _told(reader: "Reader", tell: Callable[[int], object]) -> Iterator["Row"]:
    for row in reader:
        tell(reader.done)
        yield row


def content_of(reader: "Reader") -> "Content":
    """What a set was that has been read to its end."""
    from kvrt.data.reading import sha256_of
    from kvrt.data.writing import Content

    return Content(reader.path.name, sha256_of(reader.path), reader.rows, reader.size)


def told(terminal: Terminal, found: dict[str, Any], words: str, *, as_json: bool) -> None:
    """What a command has to say, as JSON or in words."""
    if as_json:
        terminal.json(found)
    else:
        terminal.note(words)
