"""Options about KV pages that outlive their request, and about sharing a device."""

from pathlib import Path
from typing import Any, get_args

import click

from kvrt.errors import ConfigError
from kvrt.kv.index.cost import Preemption
from kvrt.kv.index.eviction import EvictionName
from kvrt.kv.tiers.config import parse_tiers
from kvrt.net.address import parse_address
from kvrt_cli.options import Decorator, apply, file_path, size


def tiers(value: str) -> str:
    """``host:8GiB``, ``disk:PATH:64GiB``, or both with a comma between."""
    try:
        folder = parse_tiers(value).disk_path
    except ConfigError as error:
        raise click.BadParameter(f"{error}: {error.fix}" if error.fix else str(error)) from None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise click.BadParameter(f"{str(folder)!r} is not a folder: name one, or a new one")
    return value


def store(value: str) -> str:
    """``HOST:PORT``."""
    try:
        parse_address(value)
    except ConfigError as error:
        raise click.BadParameter(f"{error}: {error.fix}") from None
    return value


def folder(value: str) -> Path:
    """A folder that is there or can be made; ``~`` is one's home."""
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:  # no such user
        raise click.BadParameter(f"{value!r}: {error}") from None
    if not value or (path.exists() and not path.is_dir()):
        raise click.BadParameter(f"{value!r} is not a folder: name one, or a new one")
    return path


def seconds(value: str) -> float:
    """A number from 0 on; ``inf`` is for ever."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not number >= 0:
        raise click.BadParameter(f"{value!r} is not a number of seconds from 0 on, or inf")
    return number


def prefix_cache_option(*, default: bool, text: str) -> Decorator[Any]:
    return click.option("--prefix-cache/--no-prefix-cache", default=default, help=text)


memory_options = apply(
    [
        click.option(
            "--prefix-cache-policy",
            type=click.Choice(get_args(EvictionName)),
            default="lru",
            show_default=True,
            help="Which cached pages go first when memory is needed: the least recently used, the"
            " least often used, or those worth least by reuse and by what they take to compute.",
        ),
        click.option(
            "--offload",
            type=tiers,
            metavar="TIERS",
            help="Where pages go that have no room on the device: host:8GiB, disk:PATH:64GiB, or"
            " both with a comma between. Default: nowhere, they are computed again.",
        ),
        click.option(
            "--offload-write",
            type=click.Choice(["back", "through"]),
            default="back",
            show_default=True,
            help="Move a page when its memory is needed (back), or when its request ends"
            " (through).",
        ),
        click.option(
            "--remote-store",
            type=store,
            metavar="HOST:PORT",
            help="A store of pages that several machines share (kvrt store): pages go there as soon"
            " as they are computed, and come from there if others have computed them.",
        ),
        click.option(
            "--remote-key",
            type=file_path,
            metavar="FILE",
            help="With --remote-store: the key that all who share pages have. Needed but for a"
            " store on this machine.",
        ),
        click.option(
            "--preemption",
            type=click.Choice(get_args(Preemption)),
            default="auto",
            show_default=True,
            help="With --offload: move the pages of a request that has to stop for others,"
            " recompute them, or what is cheaper by what was measured while running (auto).",
        ),
    ]
)
"""For every command that loads a model."""

lasting_options = apply(
    [
        click.option(
            "--prefix-cache-ttl",
            type=seconds,
            metavar="SECONDS",
            default="300",
            show_default=True,
            help="While nothing runs, give memory of cached pages back that were not used for so"
            " long; inf: never.",
        ),
        click.option(
            "--cache-dir",
            type=folder,
            metavar="DIR",
            help="Keep cached pages in DIR over restarts: what is there is used, and what is"
            " cached at the end is added. Made if need be, for you alone: pages tell what prompts"
            " said.",
        ),
    ]
)
"""For commands whose pages may outlive the process."""

share_options = apply(
    [
        click.option(
            "--share",
            metavar="NAME[:SIZE]",
            help="Share the device's memory with all that name the same share: weights and KV"
            " memory of all together keep within SIZE (24GiB, 80%; default: as those have it that"
            " run, else all of it), and what others need more is given back.",
        ),
        click.option(
            "--guarantee",
            type=size,
            metavar="SIZE",
            help="With --share: this model is due so much, whatever others want.",
        ),
        click.option(
            "--lend",
            is_flag=True,
            help="With --guarantee: others may have what is not used of it, until it is.",
        ),
        click.option(
            "--weight",
            type=click.FloatRange(0.001, 1000),
            metavar="X",
            help="With --share: its part of what is not guaranteed, beside others'. Default: 1.",
        ),
        click.option(
            "--share-priority",
            type=click.IntRange(-1000, 1000),
            metavar="N",
            help="With --share: models of a higher one come first. Default: 0.",
        ),
    ]
)
"""For every command that loads a model."""
