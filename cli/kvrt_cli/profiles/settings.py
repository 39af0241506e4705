"""What a profile says about a command, checked as the command's own flags are."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from kvrt.errors import ConfigError, KvrtError
from kvrt_cli.errors import shortened
from kvrt_cli.profiles.document import Entry
from kvrt_cli.profiles.find import Profile
from kvrt_cli.profiles.keys import (
    children,
    has_runtime,
    key_of,
    keys_of,
    nearest,
    of_runtime,
)

RUNTIME, DESCRIPTION = "runtime", "description"
ABOUT_PROFILES = ("config", "profile-config")
"""Commands that take none themselves."""
SCHEMA = "run"
"""The command whose options about runtimes are all there are."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a parameter, as a flag would be given it, and the line that says so."""

    value: Any
    line: int


@dataclass(frozen=True, slots=True)
class Problem:
    """What cannot be in a profile, and how it is mended."""

    line: int
    reason: str
    fix: str


@dataclass(slots=True)
class Read:
    """What was read of a profile: settings by the parameters' names, and what is wrong."""

    settings: dict[str, Setting] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def problem_error(profile: Profile, problems: Sequence[Problem]) -> ConfigError:
    """The first problem as an error, which says how many others there are."""
    first = min(problems, key=lambda problem: problem.line)
    more = len(problems) - 1
    others = f" (and {more} more: kvrt profile-config check {profile.name})" if more else ""
    return ConfigError(f"{profile.name}, line {first.line}: {first.reason}{others}", fix=first.fix)


class Reader:
    """Reads what profiles say about the commands of a tree.

    Args:
        commands: of the tree's root, by name; one that is not asked for is not loaded.
    """

    def __init__(self, commands: Mapping[str, click.Command]) -> None:
        self._commands = commands

    def of_command(self, profile: Profile, words: Sequence[str], ctx: click.Context) -> Read:
        """What a profile says about one command.

        Args:
            words: the command's name, after those of its groups.
            ctx: its context.
        """
        found = Read()
        self._check_names(profile, found)
        if has_runtime(ctx.command):
            self._take(self._table(profile.entries, RUNTIME, found), ctx, found)
        entries, node = profile.entries, self._commands
        for depth, word in enumerate(words, 1):
            entries, command = self._table(entries, word, found), node[word]
            node = children(command)
            own = {key: entry for key, entry in entries.items() if key not in node}
            if depth == len(words):
                self._take(own, ctx, found, words, node)
            else:
                keys = [*node, *keys_of(command)]
                for key in own.keys() - set(keys):
                    found.problems.append(self._unknown(key, own[key], keys, words[:depth]))
        return found

    def of_all(self, profile: Profile) -> tuple[list[tuple[str, ...]], list[Problem]]:
        """The commands that a profile has settings for, and all that is wrong in it."""
        problems: dict[Problem, None] = {}
        commands = list(self._named(profile.entries, self._commands, ()))
        for words, command in commands or [((SCHEMA,), self._commands[SCHEMA])]:
            ctx = context_of(command, words)
            problems |= dict.fromkeys(self.of_command(profile, words, ctx).problems)
        schema = context_of(self._commands[SCHEMA], [SCHEMA])
        whole = Read()
        self._take(self._table(profile.entries, RUNTIME, whole), schema, whole)
        problems |= dict.fromkeys(whole.problems)
        ordered = sorted(problems, key=lambda problem: problem.line)
        return [words for words, _ in commands], ordered

    def _named(
        self,
        entries: Mapping[str, Entry],
        commands: Mapping[str, click.Command],
        above: tuple[str, ...],
    ) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        """The commands that tables are about."""
        for name, entry in entries.items():
            if name not in commands or name in ABOUT_PROFILES:
                continue
            command, words = commands[name], (*above, name)
            own, below = entry.value if isinstance(entry.value, dict) else {}, children(command)
            yield from self._named(own, below, words)
            if not own or own.keys() - below.keys():
                yield words, command

    def _check_names(self, profile: Profile, found: Read) -> None:
        commands = [name for name in self._commands if name not in ABOUT_PROFILES]
        names = (RUNTIME, DESCRIPTION, *commands)
        for name, entry in profile.entries.items():
            if name == DESCRIPTION:
                if not isinstance(entry.value, str):
                    found.problems.append(Problem(entry.line, "description is not a text", ""))
                continue
            if name in names:
                continue
            like = nearest(name, names)
            fix = f"did you mean {like}?" if like else ""
            if not like and name in keys_of(self._commands[SCHEMA]):
                fix = f"put it under the command that it is for, or under {RUNTIME}"
            reason = f"{name:.60} is neither a command nor {RUNTIME}"
            found.problems.append(Problem(entry.line, reason, fix or f"use {', '.join(names)}"))

    def _table(self, entries: Mapping[str, Entry], name: str, found: Read) -> dict[str, Entry]:
        entry = entries.get(name)
        if entry is None:
            return {}
        if not isinstance(entry.value, dict):
            reason = f"{name} has no options under it"
            fix = f"indent them, one a line; or delete {name}"
            found.problems.append(Problem(entry.line, reason, fix))
            return {}
        return entry.value

    def _take(
        self,
        entries: Mapping[str, Entry],
        ctx: click.Context,
        found: Read,
        words: Sequence[str] = (),
        below: Iterable[str] = (),
    ) -> None:
        """Add what the entries of a command say, which has other commands `below` it. Without
        `words` they are those of runtimes: a command takes those that it has."""
        keys = keys_of(ctx.command)
        if not words:
            keys = {key: param for key, param in keys.items() if of_runtime(param)}
        seen: dict[str, Entry] = {}
        for key, entry in entries.items():
            param = keys.get(key)
            if param is None:
                if words or key not in self._shared():
                    known = [*keys, *below] if words else self._shared()
                    found.problems.append(self._unknown(key, entry, known, words))
                continue
            name = param.name or ""
            if name in seen:
                reason = f"{key} is another name of {key_of(param)}, of line {seen[name].line}"
                found.problems.append(Problem(entry.line, reason, "delete one of them"))
                continue
            seen[name] = entry
            try:
                value = _checked(param, entry, ctx)
            except _Refused as error:
                reason = shortened(f"{key}: {error.reason}")
                fix = error.fix or f"{_help(words)} has what it may be"
                found.problems.append(Problem(entry.line, reason, fix))
                continue
            found.settings[name] = Setting(value, entry.line)

    def _shared(self) -> list[str]:
        params = keys_of(self._commands[SCHEMA]).items()
        return [key for key, param in params if of_runtime(param)]

    def _unknown(
        self, key: str, entry: Entry, known: Sequence[str], words: Sequence[str]
    ) -> Problem:
        what = f"an option of kvrt {' '.join(words)}" if words else "a setting of runtimes"
        fix = f"{_help(words)} lists them"
        if not words and key in keys_of(self._commands[SCHEMA]):
            fix = "put it under the command that it is for"
        elif like := nearest(key, known):
            fix = f"did you mean {like}?"
        return Problem(entry.line, f"{key:.60} is not {what}", fix)


def _help(words: Sequence[str]) -> str:
    return f"kvrt {' '.join(words or (SCHEMA,))} --help"


def context_of(command: click.Command, words: Sequence[str]) -> click.Context:
    """A context of a command that is not being called."""
    return click.Context(command, info_name=" ".join(words))


class _Refused(Exception):
    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


def _checked(param: click.Parameter, entry: Entry, ctx: click.Context) -> Any:
    """What click is to make the parameter's value of; it has tried."""
    value, several = entry.value, getattr(param, "multiple", False) or param.nargs != 1
    if value is None:
        raise _Refused("it has no value", "give it one, or leave the key out to have its default")
    if isinstance(value, dict):
        raise _Refused("it has keys under it, and takes a value")
    if isinstance(value, str) and several:
        value = (value,)
    if isinstance(value, tuple) and not several:
        raise _Refused(
            "it takes one value, and this is a list",
            f"write {key_of(param)}: {','.join(value):.60}" if "," in (param.metavar or "") else "",
        )
    try:
        made = param.type_cast_value(ctx, value)
        if param.callback is not None:
            param.callback(ctx, param, made)
    except click.ClickException as error:
        raise _Refused(getattr(error, "message", str(error))) from None
    except KvrtError as error:
        raise _Refused(str(error), error.fix) from None
    return value
