"""Options of commands that listen for clients."""

from pathlib import Path
from typing import Any

import click

from kvrt.errors import ConfigError
from kvrt.units import parse_bytes, parse_seconds
from kvrt_cli.options import Decorator, apply, file_path, folder_path


def nbytes(value: str) -> int:
    """A size such as ``64MiB``."""
    try:
        found = parse_bytes(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None
    if not 1 <= found <= 2**40:
        raise click.BadParameter(f"{value!r:.60} is not a size from 1 byte to 1 TiB")
    return found


def duration(value: str) -> float:
    """A time such as ``5m``; with a minus before it, for ever."""
    try:
        return parse_seconds(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def listening_options(*, port: int) -> Decorator[Any]:
    """Where clients find it, and how it ends."""
    return apply(
        [
            click.option(
                "--host", default="127.0.0.1", show_default=True, help="Address to listen at."
            ),
            click.option(
                "--port",
                type=click.IntRange(0, 65535),
                default=port,
                show_default=True,
                help="0: any that is free.",
            ),
            click.option(
                "--without-keys",
                is_flag=True,
                help="Listen at an address that others reach, although nobody needs a key.",
            ),
            click.option(
                "--drain-seconds",
                type=click.FloatRange(0),
                default=30.0,
                show_default=True,
                metavar="S",
                help="At the end (SIGTERM, Ctrl-C), answers may go on for so long; a second"
                " signal ends all.",
            ),
        ]
    )


fleet_options = apply(
    [
        click.option(
            "--models",
            "models_dir",
            type=click.Path(path_type=Path, file_okay=False, exists=True),
            metavar="DIR",
            help="Serve the models in DIR as well: its folders and GGUF files, by their names;"
            " those that come later, too.",
        ),
        click.option(
            "--keep-alive",
            type=duration,
            default="5m",
            show_default=True,
            metavar="TIME",
            help="Of several models: one goes when it was not asked for so long; 0: at once, -1:"
            " never.",
        ),
        click.option(
            "--max-waiting",
            type=click.IntRange(1, 100_000),
            default=512,
            show_default=True,
            metavar="N",
            help="Of several models: requests that may wait for one to be loaded.",
        ),
        click.option(
            "--slo",
            metavar="ttft_p95=TIME",
            help="Of several models: those stay loaded first that would miss this time to the"
            " first token otherwise, as in ttft_p95=500ms.",
        ),
        click.option(
            "--devices",
            metavar="DEVICE[=SIZE],...",
            help="Of several models: they may be on any of these, as in cuda:0,cuda:1=20GiB,cpu,"
            " each on one; SIZE is as --memory-limit, for that device.",
        ),
    ]
)
"""Several models in one server."""

key_options = apply(
    [
        click.option(
            "--keys",
            type=file_path,
            metavar="FILE",
            help="Clients need a key of this file. Needed at an address that others reach.",
        ),
        click.option(
            "--new-key",
            metavar="NAME",
            help="Add a key of NAME to --keys FILE, print it, and exit. The file keeps its hash"
            " alone.",
        ),
        click.option(
            "--role",
            type=click.Choice(["user", "admin", "metrics"]),
            default="user",
            show_default=True,
            help="Of --new-key: user asks, metrics sees /metrics alone, admin does both, or in a"
            " workspace is in charge of that one.",
        ),
        click.option(
            "--workspace",
            metavar="NAME",
            help="Of --new-key: whose files, batches, cached pages and limits the key shares;"
            " default: it has its own.",
        ),
        click.option(
            "--jwt-issuer",
            metavar="URL",
            help="Take tokens that this OpenID provider has signed, in place of keys or beside"
            " them.",
        ),
        click.option(
            "--jwt-audience",
            metavar="TEXT",
            help="What such tokens have to call this server: their aud.",
        ),
        click.option(
            "--jwt-keys",
            metavar="URL|FILE",
            help="The issuer's keys, as a JWK set; default: where its discovery document says.",
        ),
        click.option(
            "--jwt-role",
            metavar="CLAIM",
            help="The claim that has the role, as of --role, or a list of roles; default: all are"
            " users.",
        ),
        click.option(
            "--jwt-workspace",
            metavar="CLAIM",
            help="The claim that names the workspace, also one of --keys, or for an admin *: all;"
            " default: each subject has its own.",
        ),
        click.option(
            "--limit",
            "limits",
            multiple=True,
            metavar="NAME=N",
            help="Of --new-key, or of each key that has none of its own: requests or tokens a"
            " minute, concurrent requests, or daily_ or monthly_ requests or tokens; may be given"
            " several times.",
        ),
        click.option(
            "--usage",
            type=file_path,
            metavar="FILE",
            help="Keep who has asked what and how many tokens it took, for kvrt usage and for"
            " limits of days and months.",
        ),
        click.option(
            "--usage-days",
            type=click.IntRange(1, 36_500),
            default=400,
            show_default=True,
            metavar="N",
            help="It forgets a request after so many days.",
        ),
        click.option(
            "--audit",
            type=file_path,
            metavar="FILE",
            help="Append a line of JSON for each request: when, whose key, route, status, tokens;"
            " never what was said.",
        ),
        click.option(
            "--audit-size",
            type=nbytes,
            metavar="SIZE",
            help="The audit log begins anew when it has so much; what was there is FILE.TIME then.",
        ),
        click.option(
            "--audit-days",
            type=click.IntRange(1, 36_500),
            metavar="N",
            help="It begins anew each day, and what is older than so many days is deleted.",
        ),
    ]
)
"""Who may ask, how much, and what is written down of it."""

batch_options = apply(
    [
        click.option(
            "--batches",
            type=folder_path,
            metavar="DIR",
            help="Take files and batches of OpenAI's API, and keep them here; one server has a"
            " folder.",
        ),
        click.option(
            "--batch-database",
            metavar="URL",
            help="Several servers have it: what is to be done stands in this database of"
            " PostgreSQL, as in postgresql://HOST/NAME. All of them see DIR.",
        ),
        click.option(
            "--batch-space",
            type=nbytes,
            default="4GiB",
            show_default=True,
            metavar="SIZE",
            help="What the files of one key may take.",
        ),
        click.option(
            "--batch-lines",
            type=click.IntRange(1, 10_000_000),
            default=50_000,
            show_default=True,
            metavar="N",
            help="Lines of a batch, at most.",
        ),
        click.option(
            "--batch-price",
            metavar="PRICE",
            help="What the work costs, such as 1.20/h of the machine, or 0.30/kWh of its"
            " processors: the progress of batches has the cost.",
        ),
        click.option(
            "--batch-webhook",
            metavar="URL",
            help="Post an event there when a batch is over, as OpenAI's webhooks do.",
        ),
        click.option(
            "--batch-webhook-secret",
            type=file_path,
            metavar="FILE",
            help="What it is signed with: whsec_ and base64.",
        ),
    ]
)
"""Files of requests."""

kept_options = apply(
    [
        click.option(
            "--response-cache",
            type=nbytes,
            metavar="SIZE",
            help="Keep so much of answers for who asks the very same again with x-kvrt-cache: on;"
            " greedy requests and those with a seed.",
        ),
        click.option(
            "--response-cache-all",
            is_flag=True,
            help="Also for requests that do not say so, unless they say x-kvrt-cache: off.",
        ),
        click.option(
            "--semantic-cache",
            type=click.FloatRange(0, 1, min_open=True),
            metavar="X",
            help="Who says x-kvrt-cache: similar may be told the answer to another question of"
            " the same conversation, of the same workspace, if the vectors of --embed-model are"
            " so near, such as 0.95. Near is not the same: docs/serve.md.",
        ),
        click.option(
            "--semantic-cache-size",
            type=nbytes,
            default="64MiB",
            show_default=True,
            metavar="SIZE",
            help="What these answers may take.",
        ),
        click.option(
            "--semantic-cache-seconds",
            type=click.FloatRange(0, min_open=True),
            default=3600.0,
            show_default=True,
            metavar="S",
            help="They are told for so long.",
        ),
    ]
)
"""Answers that are told again."""
