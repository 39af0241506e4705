"""``kvrt bench``: a model's tokens per second, or, by its commands, a server under load."""

import importlib
from collections.abc import Iterator, Mapping

import click

from kvrt_cli.benching.group import OneOrMore
from kvrt_cli.benching.model import bench_model


class Commands(Mapping[str, click.Command]):
    """Each in the module of its name, which is loaded when it is asked for."""

    NAMES = ("compare", "export", "gate", "serve", "startup")

    def __getitem__(self, name: str) -> click.Command:
        if name not in self.NAMES:
            raise KeyError(name)
        command: click.Command = getattr(importlib.import_module(f"kvrt_cli.benching.{name}"), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)


bench = OneOrMore("bench", commands=Commands(), default=bench_model)
