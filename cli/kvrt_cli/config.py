"""``kvrt config``: which values a command would have, and why."""

from pathlib import Path
from typing import Any

import click

from kvrt_cli.options import color_option
from kvrt_cli.profiles.calling import would_call
from kvrt_cli.profiles.keys import HIDDEN, is_secret, key_of, settable, without_passwords
from kvrt_cli.profiles.origins import Call
from kvrt_cli.terminal import Terminal


@click.group("config", short_help="Which values a command would have, and where they come from.")
@color_option
def config() -> None:
    """What commands are told by options, variables and profiles."""


@config.command(
    "show", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@color_option
@click.argument("words", metavar="COMMAND [OPTIONS]...", nargs=-1, required=True,
                type=click.UNPROCESSED)  # fmt: skip
@click.pass_context
def show(ctx: click.Context, /, words: tuple[str, ...], as_json: bool) -> None:
    """Print the value that each option of COMMAND would have, and its source: the command line, the
    environment, the profile, or the default, in this order.

    \b
      kvrt config show serve --profile server --port 9000
      kvrt config show --json batch run

    Secrets are not shown. Options of COMMAND come after it; nothing is begun.
    """
    terminal: Terminal = ctx.find_object(Terminal) or Terminal()
    call, last = would_call(ctx.find_root(), words)
    as_json |= last
    rows = [_row(call, param) for param in settable(call.ctx.command)]
    profile = None
    if call.profile is not None:
        profile = {"name": call.profile.name, "path": str(call.profile.path)}
    if as_json:
        command = " ".join(call.words)
        terminal.json({"command": command, "profile": profile, "values": rows}, indent=2)
        return
    if profile is not None:
        terminal.note(f"the profile is {profile['path']}")
    cells = [(row["option"], _text(row["value"]), _source(row)) for row in rows]
    widths = [max(len(cell[column]) for cell in cells) for column in (0, 1)]
    widest = [widths[0], min(widths[1], 40)]
    for option, value, source in cells:
        click.echo(f"{option:<{widest[0]}}  {value:<{widest[1]}}  {source}")


def _row(call: Call, param: click.Parameter) -> dict[str, Any]:
    value: Any = call.ctx.params[param.name or ""]
    if is_secret(param) and value not in (None, (), ""):
        value = HIDDEN
    source, place = call.origin(param)
    option = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(call.ctx)
    option = next((opt for opt in param.opts if opt.startswith("--")), option)
    return {
        "key": key_of(param),
        "option": option,
        "value": _plain(value),
        "source": source,
        "place": place,
    }


def _plain(value: Any) -> Any:
    """A value as JSON can have it."""
    match value:
        case None | bool() | int() | float():
            return value
        case tuple() | list():
            return [_plain(each) for each in value]
        case dict():
            return {str(name): _plain(each) for name, each in value.items()}
        case Path():
            return str(value)
        case _:
            return without_passwords(str(value))


def _text(value: Any) -> str:
    """A value as a person reads it, in one line."""
    match value:
        case None | []:
            return "-"
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(_text, value))
        case dict():
            return ", ".join(f"{name}={_text(each)}" for name, each in value.items())
        case float():
            return f"{value:g}"
        case _:
            return repr(value) if "\n" in str(value) or value == "" else str(value)


def _source(row: dict[str, Any]) -> str:
    return " ".join(filter(None, [row["source"], row["place"]]))
