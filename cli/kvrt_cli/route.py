"""``kvrt route``: several servers of one model behind one address."""

import asyncio
from typing import Any

import click

from kvrt.integrations.choosing import POLICIES
from kvrt_cli.extras import check_extra
from kvrt_cli.options import color_option, file_path, quiet_option
from kvrt_cli.options.serving import listening_options
from kvrt_cli.terminal import Terminal


@click.command("route", short_help="Several servers of one model behind one address.")
@click.argument("servers", nargs=-1, metavar="URL[,EVENTS[,REPLAY]]...")
@listening_options(port=8080)
@click.option(
    "--prefill",
    multiple=True,
    metavar="URL[,EVENTS[,REPLAY]]",
    help="A server that computes long prompts for the others, which share a store of pages with it"
    " (kvrt store). May be given several times.",
)
@click.option(
    "--policy",
    type=click.Choice(POLICIES),
    default="prefix",
    show_default=True,
    help="prefix: where the answer is expected first, by what is cached there, how much there is to"
    " do and how fast it is; least-loaded: likewise without what is cached; round-robin: in turns.",
)
@click.option(
    "--keys",
    type=file_path,
    metavar="FILE",
    help="Clients need a key of this file, which the servers are given, too. Needed at an address"
    " that others reach.",
)
@click.option(
    "--max-requests",
    type=click.IntRange(1, 100_000),
    default=1024,
    show_default=True,
    metavar="N",
    help="On their way at once; more are refused for now.",
)
@click.option(
    "--answer-seconds",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="A request of whose answer nothing came for so long is given up (504).",
)
@quiet_option
@color_option
@click.pass_obj
def route(terminal: Terminal, /, servers: tuple[str, ...], quiet: bool, **options: Any) -> None:
    """Several servers of one model behind one address.

    Each URL is the root of a server, such as http://10.0.0.7:8000. With the address where it
    publishes what is cached (EVENTS, as its --kv-events), and where it answers who missed some
    (REPLAY), a request goes where most of its prompt is cached already:

    \b
      kvrt route http://a:8000,tcp://a:5557,tcp://a:5558 \\
                 http://b:8000,tcp://b:5557,tcp://b:5558

    A server that fails is left out until it is ready again, and a request that it had not begun to
    answer goes to another. Servers join and leave while it runs: docs/route.md.
    """
    terminal.quiet = quiet
    check_extra("route", "route")
    from kvrt.routing.config import RouterConfig
    from kvrt.routing.route import route as serve
    from kvrt.server.wire.listener import bind, url_of

    names = ("prefill", "host", "port", "policy", "keys", "without_keys", "max_requests",
             "answer_seconds", "drain_seconds")  # fmt: skip
    config = RouterConfig(servers=servers, **{name: options[name] for name in names})
    bound = bind(config.host, config.port)

    def begun() -> None:
        terminal.note(f"routing at {url_of(bound)}; Ctrl-C ends it")

    try:
        asyncio.run(serve(config, bound, begun))
    finally:
        bound.close()
