"""``kvrt data version``: sets by what is in them."""

from dataclasses import asdict
from pathlib import Path

import click

from kvrt_cli.data.common import json_option
from kvrt_cli.data.looking import in_words
from kvrt_cli.extras import check_extra
from kvrt_cli.options import color_option, file_path, folder_path
from kvrt_cli.terminal import Terminal

store_option = click.option(
    "--store",
    type=folder_path,
    default=Path("data.store"),
    show_default=True,
    metavar="DIR",
    help="Where versions are kept.",
)
version_argument = click.argument("version")


@click.group("version", short_help="Sets by what is in them, and where they come from.")
@color_option
def version() -> None:
    """Keep versions of sets: by the SHA-256 of their bytes, with statistics and how they were made.

    VERSION is a number, or what the SHA-256 begins with.
    """
    check_extra("data", "data")


@version.command("add", short_help="Keep a file as a version.")
@click.argument("set", type=file_path)
@store_option
@click.option("-m", "--note", default="", metavar="TEXT", help="What there is to say of it.")
@json_option
@color_option
@click.pass_obj
def add(terminal: Terminal, /, set: Path, store: Path, note: str, as_json: bool) -> None:
    """Keep SET. Of one that kvrt data has made, it is known of which versions."""
    from kvrt.data.versions import Versions

    found = Versions(store).add(set, note)
    if as_json:
        terminal.json(asdict(found))
    else:
        terminal.say(f"{found.id}\n")


@version.command("list", short_help="All versions.")
@store_option
@json_option
@color_option
@click.pass_obj
def list_all(terminal: Terminal, /, store: Path, as_json: bool) -> None:
    """List versions, the last one last: with --json, an object a line."""
    from kvrt.data.versions import Versions

    for each in Versions(store).all():
        if as_json:
            terminal.json(asdict(each))
            continue
        made = each.made["command"] if each.made else "added"
        of = " of " + ", ".join(map(str, each.parents)) if each.parents else ""
        terminal.say(
            f"{each.id}  {each.at}  {each.stats.get('rows', 0):>9} rows  {made}{of}"
            f"  {each.name}  {each.note}".rstrip()
            + "\n"
        )


@version.command("show", short_help="One version, and what it was made of.")
@version_argument
@store_option
@click.option("-o", "--output", type=file_path, metavar="FILE", help="Write its set there.")
@json_option
@color_option
@click.pass_obj
def show(
    terminal: Terminal, /, version: str, store: Path, output: Path | None, as_json: bool
) -> None:
    """Print a version's statistics and lineage; the set is checked against its SHA-256."""
    from kvrt.data.versions import Versions, write_out
    from kvrt.errors import IntegrityError

    versions = Versions(store)
    found = versions.get(version)
    if versions.damaged(found):
        raise IntegrityError(
            f"the set of version {found.id} is missing, or not what was kept", fix="add it again"
        )
    if output is not None:
        write_out(versions.path(found), output)
    lineage = versions.lineage(found)
    if as_json:
        terminal.json({**asdict(found), "lineage": [each.number for each in lineage]})
        return
    terminal.say(f"{found.id}  {found.at}  {found.name}  {found.note}".rstrip() + "\n")
    terminal.say(f"sha256 {found.sha256}\n{in_words(found.stats)}")
    for each in lineage:
        if each.made:
            options = ", ".join(f"{k} {v}" for k, v in each.made["options"].items() if v)
            parents = ", ".join(map(str, each.parents)) or "a set that is not kept"
            terminal.say(f"{each.number} is {each.made['command']} ({options}) of {parents}\n")


@version.command("diff", short_help="What two versions have in common.")
@click.argument("before")
@click.argument("after")
@store_option
@json_option
@color_option
@click.pass_obj
def diff(terminal: Terminal, /, before: str, after: str, store: Path, as_json: bool) -> None:
    """Count rows that both versions have, and those that only one has, by what they say."""
    from kvrt.data.versions import Versions, changed

    versions = Versions(store)
    found = changed(*(versions.path(versions.get(name)) for name in (before, after)))
    if as_json:
        terminal.json(found)
    else:
        terminal.say(f"{found['kept']} kept, {found['gone']} gone, {found['new']} new\n")
