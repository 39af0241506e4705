"""Readers of others, for models whose way of writing their templates do not show."""

import importlib.metadata
from collections.abc import Callable

from kvrt.dialect.events import Reader, Tools
from kvrt.errors import ConfigError

GROUP = "kvrt.readers"
"""Entry points: each is a `MakeReader`."""

MakeReader = Callable[[Tools | None, bool], Reader]
"""A reader for one answer, by the tools there are (None: calls are not looked for), and whether the
prompt has begun the reasoning."""


def find_reader(name: str) -> MakeReader:
    """The reader of that name.

    Raises:
        ConfigError: there is none, or it cannot be loaded.
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        there = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            f"no reader of that name is installed; there are: {there}",
            fix=f"install a package that has it among its entry points {GROUP}",
        )
    try:
        make: MakeReader = found[name].load()
    except Exception as error:
        raise ConfigError(
            f"the reader {name:.60} cannot be loaded: {type(error).__name__}",
            fix="update or remove the package that it is from",
        ) from None
    return make
