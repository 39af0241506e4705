"""Options that say what is to be asked of a server, and when; and the plan that they make."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from kvrt.bench.arrivals import ARRIVALS
from kvrt.errors import ConfigError
from kvrt_cli.options import apply, file_path
from kvrt_cli.options.serving import duration

if TYPE_CHECKING:
    from kvrt.bench.plan import Plan

MOST = 1e9


def positive(value: str) -> float:
    """A number above 0."""
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not 0 < found <= MOST:
        raise click.BadParameter(f"{value!r:.60} is not a number above 0, and at most 1e9")
    return found


def time_above_0(value: str) -> float:
    """A time such as ``30s``."""
    found = duration(value)
    if not 0 < found <= MOST:
        raise click.BadParameter(f"{value!r:.60} is not a time above 0")
    return found


load_options = apply(
    [
        click.option(
            "-c", "--clients", type=click.IntRange(1, 100_000), metavar="N",
            help="A closed loop: so many clients, each of which asks when its last answer has"
            " ended. Default, without --rate: 8.",
        ),
        click.option(
            "-r", "--rate", type=positive, metavar="X",
            help="An open loop: so many conversations begin in a second, however many go on.",
        ),
        click.option(
            "--arrivals", type=click.Choice([*ARRIVALS, "trace"]), default="poisson",
            show_default=True,
            help="With --rate: at equal distances, as of clients that know nothing of each other,"
            " or in bursts. trace: at the file's own times, without --rate.",
        ),
        click.option(
            "--burstiness", type=positive, default="0.25", show_default=True, metavar="X",
            help="Of --arrivals bursty: the shape of the gaps' gamma distribution. 1 is poisson,"
            " less is burstier.",
        ),
        click.option(
            "--speed", type=positive, default="1", show_default=True, metavar="X",
            help="Of --arrivals trace: its time passes so many times as fast.",
        ),
        click.option(
            "--requests", type=click.IntRange(1, 10**7), metavar="N",
            help="Begin no conversation after so many requests. Default, without --seconds: 100,"
            " or all of the file.",
        ),
        click.option(
            "--seconds", type=time_above_0, metavar="TIME",
            help="Begin none after so long: 60s, 5m. Answers that have begun go on to their end.",
        ),
        click.option(
            "--warmup", type=click.IntRange(0, 10**6), default=2, show_default=True, metavar="N",
            help="Ask for so many before, which do not count.",
        ),
        click.option(
            "--cache", type=click.Choice(["cold", "warm"]), default="cold", show_default=True,
            help="cold: texts begin as none did before, so that nothing of them is cached but what"
            " they share. warm: what conversations begin with is asked before.",
        ),
        click.option(
            "--seed", type=click.IntRange(0, 2**63), default=1, show_default=True,
            help="Of lengths, gaps and texts.",
        ),
    ]
)  # fmt: skip
data_options = apply(
    [
        click.option(
            "--data", type=file_path, metavar="FILE",
            help="JSON lines with prompt, messages or input_length, in place of what is drawn.",
        ),
        click.option(
            "-p", "--prompt-tokens", default="256", show_default=True, metavar="N[-M]",
            help="Of what is said in each turn.",
        ),
        click.option(
            "-n", "--new-tokens", default="64", show_default=True, metavar="N[-M]",
            help="Of each answer.",
        ),
        click.option(
            "--turns", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N",
            help="Of each conversation; a turn has all that was said before in its prompt.",
        ),
        click.option(
            "--prefixes", type=click.IntRange(0, 10**6), default=0, show_default=True, metavar="N",
            help="Each conversation has one of so many beginnings; 0: no two begin alike.",
        ),
        click.option(
            "--prefix-tokens", type=click.IntRange(1, 10**6), default=512, show_default=True,
            metavar="N", help="Of each of --prefixes.",
        ),
    ]
)  # fmt: skip
cost_options = apply(
    [
        click.option(
            "--cost-per-hour", type=positive, metavar="X",
            help="What the machine costs: the result says what requests and tokens do, and how"
            " that follows.",
        ),
        click.option(
            "--cost-per-kwh", type=positive, metavar="X",
            help="What energy costs, where it is counted.",
        ),
        click.option(
            "--token-weights", default="1:0.1:4", show_default=True, metavar="P:C:N",
            help="How the cost is shared among computed, cached and new tokens.",
        ),
    ]
)  # fmt: skip


def plan_of(options: Mapping[str, Any]) -> "Plan":
    """The plan that they make.

    Raises:
        click.UsageError: two of them do not go together.
        ConfigError: a length is none.
    """
    from kvrt.bench.data import Drawn, Lengths
    from kvrt.bench.plan import Plan
    from kvrt.bench.prices import read_weights

    file, rate, trace = options["data"], options["rate"], options["arrivals"] == "trace"
    if options["clients"] is not None and (rate is not None or trace):
        raise click.UsageError("--clients is a closed loop; --rate and --arrivals trace are open")
    if trace and (file is None or rate is not None):
        raise click.UsageError(
            "--arrivals trace takes its times from a file: --data, and no --rate"
        )
    new = Lengths.read(options["new_tokens"])
    drawn = Drawn(
        prompt=Lengths.read(options["prompt_tokens"]),
        new=new,
        turns=options["turns"],
        prefixes=options["prefixes"],
        prefix=options["prefix_tokens"],
    )
    if file is not None and not file.is_file():
        raise ConfigError(f"--data: {str(file)!r:.200} is no file")
    requests = options["requests"]
    if requests is options["seconds"] is None and file is None:
        requests = 100
    closed = rate is None and not trace
    return Plan(
        name=options["name"] or "",
        data=drawn if file is None else file,
        new=new,
        clients=(options["clients"] or 8) if closed else 0,
        rate=rate,
        arrivals="poisson" if trace else options["arrivals"],
        burstiness=options["burstiness"],
        speed=options["speed"],
        requests=requests,
        seconds=options["seconds"],
        warmup=options["warmup"],
        warm=options["cache"] == "warm",
        seed=options["seed"],
        per_hour=options["cost_per_hour"],
        per_kwh=options["cost_per_kwh"],
        weights=read_weights(options["token_weights"]),
    )
