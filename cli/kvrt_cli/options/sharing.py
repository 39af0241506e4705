"""What the options about sharing a device say."""

from collections.abc import Mapping
from typing import Any

import click

from kvrt.sharing.share import Share

TERMS = ("guarantee", "lend", "weight", "share_priority")


def share_of(options: Mapping[str, Any]) -> Share | None:
    """The share that the options name.

    Raises:
        click.UsageError: there are terms without a share, or is a loan of nothing.
        ConfigError: a name or a size cannot be used.
    """
    terms = {name: options[name] for name in TERMS if options[name] not in (None, False)}
    if options["share"] is None:
        if terms:
            option = next(iter(terms)).replace("_", "-")
            raise click.UsageError(f"--{option} is about a share: add --share NAME")
        return None
    if options["lend"] and options["guarantee"] is None:
        raise click.UsageError("--lend is about what is guaranteed: add --guarantee SIZE")
    if "share_priority" in terms:
        terms["priority"] = terms.pop("share_priority")
    name, colon, whole = options["share"].partition(":")
    return Share(name=name, size=whole if colon else None, **terms)
