"""Gives commands their --profile, and their variables of the environment.

click then takes an option's value from the command line, else from the environment, else from the
profile (its `default_map`), else its default.
"""

from collections.abc import Mapping, Sequence

import click

from kvrt_cli.profiles.find import find
from kvrt_cli.profiles.keys import children, settable, variable, variables_of
from kvrt_cli.profiles.origins import remember
from kvrt_cli.profiles.settings import Reader, problem_error

NAME = "profile"
WIDER: Mapping[str, tuple[str, ...]] = {"backend": ("KVRT_BACKEND",)}
"""Variables that are about every command, by the parameter that they set."""


def configurable(
    command: click.Command, words: Sequence[str], commands: Mapping[str, click.Command]
) -> click.Command:
    """The command, which then has --profile and variables, and so have those in it.

    Args:
        words: its name, after those of its groups.
        commands: all that profiles may be about, by name.
    """
    for name, below in children(command).items():
        configurable(below, [*words, name], commands)
    options = [param for param in settable(command) if isinstance(param, click.Option)]
    if any(param.name == NAME for param in command.params) or not options:
        return command
    option = _ProfileOption(words, commands)
    for param in (option, *options):
        wider = WIDER.get(param.name or "", ())
        param.envvar = [variable(words, param), *variables_of(param), *wider]
    command.params.insert(0, option)
    return command


class _ProfileOption(click.Option):
    """``--profile``, which is read before the other options.

    It remembers the context of the call, too, from which errors tell where a value comes from.
    """

    def __init__(self, words: Sequence[str], commands: Mapping[str, click.Command]) -> None:
        super().__init__(
            ["--profile"],
            metavar="FILE|NAME",
            is_eager=True,
            expose_value=False,
            callback=self._load,
            help="Take what no option and no variable says from a file, or from a built-in profile"
            " (kvrt profile-config list): docs/profiles.md.",
        )
        self._words = tuple(words)
        self._reader = Reader(commands)

    def _load(self, ctx: click.Context, param: click.Parameter, name: str | None) -> None:
        remember(ctx, self._words)
        if name is None or ctx.resilient_parsing:
            return
        profile = find(name)
        found = self._reader.of_command(profile, self._words, ctx)
        if found.problems:
            raise problem_error(profile, found.problems)
        ctx.default_map = {key: setting.value for key, setting in found.settings.items()}
        remember(ctx, self._words, profile, found.settings)
