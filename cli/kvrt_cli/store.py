"""``kvrt store``: KV pages that several machines share."""

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvrt.errors import ConfigError
from kvrt_cli.options import color_option, file_path, quiet_option
from kvrt_cli.options.memory import folder
from kvrt_cli.options.serving import nbytes
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.kv.tiers.remote.shelves import Shelves
    from kvrt.net.address import Address


@click.command("store", short_help="KV pages that several servers share.")
@click.option("--memory", type=nbytes, metavar="SIZE", help="Keep so much in memory.")
@click.option(
    "--dir",
    "directory",
    type=folder,
    metavar="DIR",
    help="Keep pages in DIR, where they outlive the process. Made if need be, for you alone.",
)
@click.option(
    "--size", type=nbytes, metavar="SIZE", help="With --dir: keep so much on disk for each model."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7707,
    show_default=True,
    help="0: any that is free.",
)
@click.option(
    "--key",
    type=file_path,
    metavar="FILE",
    help="The key that all who share pages have. Needed at an address that other machines reach.",
)
@quiet_option
@color_option
@click.pass_obj
def store(
    terminal: Terminal,
    /,
    memory: int | None,
    directory: Path | None,
    size: int | None,
    host: str,
    port: int,
    key: Path | None,
    quiet: bool,
) -> None:
    """KV pages that several servers share, each with --remote-store HOST:PORT.

    \b
      head -c 32 /dev/urandom | base64 > pages.key
      kvrt store --memory 64GiB --host 10.0.0.7 --key pages.key
      kvrt serve MODEL --remote-store 10.0.0.7:7707 --remote-key pages.key

    What one has computed, the others begin with. Whatever happens to the store or on the way costs
    computing, and never an answer: docs/shared-pages.md.
    """
    terminal.quiet = quiet
    if (memory is None) == (directory is None):
        raise click.UsageError("give either --memory SIZE, or --dir DIR and --size SIZE")
    if (directory is None) != (size is None):
        raise click.UsageError("--dir and --size go together")
    from kvrt.kv.tiers.remote.key import store_key
    from kvrt.kv.tiers.remote.shelves import FolderShelves, MemoryShelves
    from kvrt.net.address import Address

    address = Address(host, port)
    secret = store_key(key, address)
    shelves: Shelves
    if directory is not None and size is not None:
        shelves = FolderShelves(directory, size)
    else:
        shelves = MemoryShelves(memory or 0)
    try:
        asyncio.run(_serve(shelves, secret, address, terminal))
    finally:
        shelves.close()


async def _serve(shelves: "Shelves", key: bytes, address: "Address", terminal: Terminal) -> None:
    """Until SIGTERM or Ctrl-C."""
    from kvrt.kv.tiers.remote.server import StoreServer

    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    server = StoreServer(shelves, key)
    try:
        async with server.listening(address) as bound:
            terminal.note(f"keeping pages at {bound}; Ctrl-C ends it")
            await ended.wait()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{address} cannot be had: {getattr(error, 'strerror', None) or error}",
            fix="give another with --host and --port; --port 0 takes one that is free",
        ) from None
