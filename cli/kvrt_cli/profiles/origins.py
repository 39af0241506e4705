"""Where each value of a call comes from."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import click
from click.core import ParameterSource

from kvrt_cli.profiles.find import Profile
from kvrt_cli.profiles.keys import variables_of
from kvrt_cli.profiles.settings import Setting

Source = Literal["command line", "environment", "profile", "default"]
CALL = "kvrt.call"
SERVICE = re.compile(r"(?:tcp|udp)://\S+:\d+")
"""What Kubernetes sets KVRT_SERVE_PORT to, where a service is called kvrt-serve."""


@dataclass(frozen=True, slots=True)
class Call:
    """A command that was called, with what a profile says about it."""

    ctx: click.Context
    words: tuple[str, ...]
    profile: Profile | None = None
    settings: Mapping[str, Setting] = field(default_factory=dict)

    def origin(self, param: click.Parameter) -> tuple[Source, str]:
        """The source of a parameter's value, and its place there: a variable, or a line."""
        name = param.name or ""
        match self.ctx.get_parameter_source(name):
            case ParameterSource.COMMANDLINE | ParameterSource.PROMPT:
                return "command line", ""
            case ParameterSource.ENVIRONMENT:
                return "environment", next(filter(os.environ.get, variables_of(param)), "")
            case ParameterSource.DEFAULT_MAP if self.profile is not None:
                return "profile", f"{self.profile.name}, line {self.settings[name].line}"
            case _:
                return "default", ""

    def explained(self, cause: str, fix: str) -> tuple[str, str]:
        """An error's cause with where the values of the options that it names come from, if that is
        not the command line; and its fix."""
        for param in self.ctx.command.params:
            source, place = self.origin(param)
            option = next((opt for opt in param.opts if _names(cause, opt)), "")
            if not option or not place:
                continue
            cause = f"{cause} ({option} is from {place})"
            if source == "environment" and SERVICE.fullmatch(os.environ.get(place, "")):
                fix = (
                    f"unset {place}: Kubernetes sets it for a service of this name, unless the pod"
                    " says enableServiceLinks: false"
                )
        return cause, fix


def _names(text: str, option: str) -> bool:
    return option.startswith("-") and bool(
        re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text)
    )


def remember(
    ctx: click.Context,
    words: Sequence[str],
    profile: Profile | None = None,
    settings: Mapping[str, Setting] | None = None,
) -> None:
    """Keep for later what is called."""
    ctx.meta[CALL] = Call(ctx, tuple(words), profile, settings or {})


def call_of(meta: Mapping[str, object]) -> Call | None:
    """What was called, if it came so far. `meta` is of any context of it."""
    call = meta.get(CALL)
    return call if isinstance(call, Call) else None
