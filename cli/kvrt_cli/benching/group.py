"""A command that has commands: its first argument is one of them, or it is a command itself."""

from collections.abc import Mapping
from typing import Any

import click

from kvrt_cli.options.sections import SectionedCommand


class OneOrMore(click.Group):
    """A group that is a command where its first argument names none of its own.

    ``bench MODEL`` is the command, ``bench serve`` is one of its own, and a model whose folder has
    such a name is called ``./serve``.

    Args:
        default: the command; its parameters count as the group's.
    """

    def __init__(
        self, name: str, *, commands: Mapping[str, click.Command], default: SectionedCommand
    ) -> None:
        super().__init__(
            name,
            commands=commands,  # type: ignore[arg-type]  # it is only read
            params=default.params,  # the same list: what it gains, both have
            help=default.help,
            short_help=default.short_help,
        )
        self._default = default

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Of one of its own commands, or of the command that it is."""
        if args and args[0] in self.commands:
            context = click.Context(self, parent, info_name, **extra)
            name, *rest = args
            return self.commands[name].make_context(name, rest, context)
        if {"--help", "-h"} & set(args):
            return super().make_context(info_name, ["--help"], parent, **extra)
        return self._default.make_context(info_name, args, parent, **extra)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self._default.format_usage(ctx, formatter)
        for name in self.commands:
            formatter.write_text(f"   or: {ctx.command_path} {name} ...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        self._default.format_options(ctx, formatter)
