"""Options of a model that several processes compute, and what a machine does that is not the first
of several."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from kvrt.config import MAX_RANKS, ParallelMode

Function = TypeVar("Function", bound=Callable[..., Any])

RANK_OPTIONS = [
    click.option(
        "--tensor-parallel",
        "--tp",
        type=click.IntRange(1, MAX_RANKS),
        default=1,
        show_default=True,
        metavar="N",
        help="So many processes, each with a device, have a part of every layer each: the same"
        " text, and 1/N of the weights and of the KV cache on each.",
    ),
    click.option(
        "--tensor-parallel-mode",
        type=click.Choice(get_args(ParallelMode)),
        default="exact",
        show_default=True,
        help="exact: the text of one process, byte for byte. fast: these processes say each other"
        " less, and where two tokens are all but equally likely, the other one may come.",
    ),
    click.option(
        "--pipeline-parallel",
        "--pp",
        type=click.IntRange(1, MAX_RANKS),
        default=1,
        show_default=True,
        metavar="N",
        help="So many stages, one after the other, have some of the layers each; of as many"
        " processes each as --tensor-parallel says.",
    ),
    click.option(
        "--nodes",
        type=click.IntRange(1, MAX_RANKS),
        default=1,
        show_default=True,
        envvar="LWS_GROUP_SIZE",
        metavar="N",
        help="So many machines have as many of these processes each. Each is started with the same"
        " command, and its own --node-rank. [env: LWS_GROUP_SIZE]",
    ),
    click.option(
        "--node-rank",
        type=click.IntRange(0, MAX_RANKS - 1),
        default=0,
        show_default=True,
        envvar="LWS_WORKER_INDEX",
        metavar="N",
        help="Which of them this is. 0 answers; the others say nothing, and end with it. [env:"
        " LWS_WORKER_INDEX]",
    ),
    click.option(
        "--master",
        envvar="LWS_LEADER_ADDRESS",
        metavar="HOST[:PORT]",
        help="The first machine's address, by which the others reach it (port 7708). [env:"
        " LWS_LEADER_ADDRESS]",
    ),
    click.option(
        "--master-key",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="The key that all machines have.",
    ),
    click.option(
        "--rank-timeout",
        type=click.FloatRange(0.1, 86400.0),
        default=120.0,
        show_default=True,
        metavar="S",
        help="One of these processes may keep the others waiting for so long.",
    ),
]


def elsewhere(command: Function) -> Function:
    """On a machine that is not the first, run its ranks in place of the command."""

    @functools.wraps(command)
    def maybe(*args: Any, **options: Any) -> Any:
        node_rank = options.pop("node_rank")
        if not node_rank:
            return command(*args, **options)
        from kvrt.ranks.node import serve_node

        if options["master"] is None:
            raise click.UsageError("--node-rank needs --master, the first machine's address")
        ranks = options["tensor_parallel"] * options["pipeline_parallel"]
        return serve_node(
            options["master"], options["master_key"],
            node_rank=node_rank, nodes=options["nodes"], ranks=ranks,
        )  # fmt: skip

    return maybe  # type: ignore[return-value]
