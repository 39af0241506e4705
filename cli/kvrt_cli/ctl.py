"""``kvrt ctl``: change what a model that runs may hold, and let it sleep."""

from pathlib import Path

import click

from kvrt.errors import ConfigError, KvrtError
from kvrt.sharing.orders import Outcome, Verb, post
from kvrt.sharing.share import ledger_folder
from kvrt.sharing.tenant import tenants_of
from kvrt.units import parse_bytes
from kvrt_cli.options import color_option, size
from kvrt_cli.terminal import Terminal

VERBS = [verb.name.lower() for verb in Verb]
SIZED = ("limit", "guarantee")


@click.command("ctl", short_help="Change what a model that runs may hold; let it sleep.")
@click.argument("verb", type=click.Choice(VERBS))
@click.argument("share")
@click.argument("tenant")
@click.argument("nbytes", required=False, metavar="[SIZE]", type=size)
@click.option(
    "--level",
    type=click.IntRange(1, 2),
    default=2,
    show_default=True,
    help="sleep: 1: KV memory goes; 2: the weights as well.",
)
@click.option(
    "--revision",
    type=click.IntRange(1, 2**62),
    show_default="the next",
    help="Numbers the changes of a tenant: one that comes late is ignored.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0.1, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@color_option
@click.pass_obj
def ctl(
    terminal: Terminal,
    /,
    verb: str,
    share: str,
    tenant: str,
    nbytes: str | None,
    level: int,
    revision: int | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Ask TENANT of SHARE, by its name or process as kvrt top shows them, for something.

    \b
      limit SHARE TENANT SIZE      hold no more than that, weights included
      guarantee SHARE TENANT SIZE  be due that, whatever others want
      reclaim SHARE TENANT         give back what is only cached
      sleep SHARE TENANT           give memory back until it is woken, or asked
      wake SHARE TENANT            take it again
    """
    if (verb in SIZED) != (nbytes is not None):
        raise click.UsageError(f"{verb} takes {'a' if verb in SIZED else 'no'} SIZE")
    path = _ledger(share)
    value = level
    if nbytes is not None:
        value = parse_bytes(nbytes, whole=tenants_of(path)[0])
    answer = post(path, tenant, Verb[verb.upper()], value, revision=revision, timeout=timeout)
    outcome = answer.outcome.name.lower()
    if answer.outcome is Outcome.REFUSED:
        raise KvrtError(f"{tenant} cannot {verb}: {answer.text}")
    if as_json:
        terminal.json({"outcome": outcome, "revision": answer.revision})
    else:
        click.echo(f"{outcome}, revision {answer.revision}")


def _ledger(share: str) -> Path:
    """Of a share, which may be named with its device."""
    paths = [path for path in ledger_folder().iterdir() if path.is_file()]
    found = [path for path in paths if share in (path.name, path.name.rpartition(".")[0])]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(sorted(path.name for path in found))
        raise ConfigError(f"{share} is shared on several devices", fix=f"name one of {names}")
    raise ConfigError(f"nobody shares {share}", fix="see kvrt top")
