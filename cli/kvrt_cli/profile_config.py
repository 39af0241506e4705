"""``kvrt profile-config``: the profiles there are, new ones, and whether one fits this machine."""

import sys
from pathlib import Path
from typing import Any

import click

from kvrt.errors import ConfigError
from kvrt_cli.checks.check import Check, Mark
from kvrt_cli.doctor import print_check
from kvrt_cli.errors import of_the_system
from kvrt_cli.naming import model_name
from kvrt_cli.options import color_option, file_path
from kvrt_cli.profiles.calling import would_call
from kvrt_cli.profiles.find import TEMPLATES, find, known
from kvrt_cli.profiles.keys import children
from kvrt_cli.profiles.preflight import preflight
from kvrt_cli.profiles.settings import RUNTIME, SCHEMA, Problem, Reader
from kvrt_cli.terminal import Terminal

SHORT_HELP = "Profiles: which there are, new ones, and whether one fits this machine."


@click.group("profile-config", short_help=SHORT_HELP)
@color_option
def profile_config() -> None:
    """Settings of commands in a file, for their --profile: docs/profiles.md."""


@profile_config.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@color_option
@click.pass_obj
def list_(terminal: Terminal, /, as_json: bool) -> None:
    """Print the profiles that have a name: built-in ones, and those in ~/.config/kvrt/profiles."""
    rows: list[dict[str, Any]] = []
    for name, path in sorted(known().items()):
        try:
            profile = find(name)
        except ConfigError as error:
            terminal.warn(str(error))
            continue
        about = [word for word in profile.entries if word != "description"]
        rows.append(
            {
                "name": name,
                "description": profile.description,
                "about": about,
                "path": str(path),
                "built_in": path.parent == TEMPLATES,
            }
        )
    if as_json:
        terminal.json(rows, indent=2)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        own = "" if row["built_in"] else f" ({row['path']})"
        click.echo(f"{row['name']:{width}}  {row['description']}{own}")


@profile_config.command("new")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=file_path,
    metavar="FILE",
    help="Write it there, where nothing is yet; default: standard output.",
)
@color_option
@click.pass_obj
def new(terminal: Terminal, /, name: str, output: Path | None) -> None:
    """Print a profile, to be changed: NAME is one of kvrt profile-config list."""
    text = find(name).path.read_text(encoding="utf-8")
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{output} is there already", fix="name another file") from None
    except OSError as error:
        raise ConfigError(f"--output: {of_the_system(error)}") from None
    terminal.note(f"{output}: change it, then kvrt profile-config check {output}")


@profile_config.command("check")
@click.argument("name", metavar="FILE|NAME")
@click.option("--model", type=model_name, metavar="MODEL", help="In place of the profile's own.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@color_option
@click.pass_context
def check(ctx: click.Context, /, name: str, model: str | None, as_json: bool) -> None:
    """Check all of a profile, and whether what it asks for is here and fits this machine.

    Nothing is loaded or downloaded. Exits with 2 for what commands would refuse, and with 1 for
    what does not work or fit here.
    """
    terminal: Terminal = ctx.find_object(Terminal) or Terminal()
    profile = find(name)
    root = ctx.find_root()
    about, problems = Reader(children(root.command)).of_all(profile)
    found = [_problem(profile.name, problem) for problem in problems]
    if not problems:
        for words in about or [(SCHEMA,)]:
            try:
                call, _ = would_call(root, [*words, "--profile", name])
            except click.UsageError as error:  # a variable of the environment says what cannot be
                found.append(Check(" ".join(words), "values", Mark.BAD, error.format_message()))
                continue
            found += preflight(words, call.ctx.command, call.ctx.params, model)
        if not found:
            found = [Check(RUNTIME, "profile", Mark.OK, "it sets what its commands have")]
    code = 2 if problems else 1 if any(each.mark is Mark.BAD for each in found) else 0
    if as_json:
        terminal.json(
            {"profile": profile.name, "path": str(profile.path), "exit_code": code,
             "about": [" ".join(words) for words in about],
             "checks": list(map(_plain, found))},
            indent=2,
        )  # fmt: skip
    else:
        console = terminal.console(sys.stdout)
        for before, each in zip([None, *found], found, strict=False):
            new_group = before is None or before.group != each.group
            print_check(console, each, new_group=new_group, verbose=False)
    ctx.exit(code)


def _problem(where: str, problem: Problem) -> Check:
    return Check(
        where, "profile", Mark.BAD, f"line {problem.line}: {problem.reason}", problem.fix,
        data={"line": problem.line},
    )  # fmt: skip


def _plain(each: Check) -> dict[str, Any]:
    found = {"group": each.group, "name": each.name, "mark": each.mark.value, "text": each.text}
    return {**found, "fix": each.fix, "data": dict(each.data)}
