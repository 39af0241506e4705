"""``kvrt data compare``: two models on one set."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt_cli.data.common import apart, json_option, set_argument
from kvrt_cli.extras import check_extra
from kvrt_cli.naming import model_name
from kvrt_cli.options import color_option, file_path, quiet_option
from kvrt_cli.options.runtime import model_options, runtime_config
from kvrt_cli.options.sections import DATA, SectionedCommand
from kvrt_cli.progress import counting_bar
from kvrt_cli.run import open_runtime
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt.data.compare import Comparison
    from kvrt.runtime import Runtime


@click.command(
    "compare", cls=SectionedCommand, sections=DATA, short_help="Which of two models is better."
)
@set_argument
@click.option("--model-a", "a", type=model_name, required=True, metavar="MODEL", help="The one.")
@click.option("--model-b", "b", type=model_name, required=True, metavar="MODEL", help="The other.")
@click.option(
    "--judge",
    type=model_name,
    metavar="MODEL",
    help="Says which of their answers is better, asked in both orders. Without it, they are"
    " compared by how likely they find the answers that the set has.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=file_path,
    metavar="FILE",
    help="The verdicts, a JSON object a line. FILE.state keeps answers, and where it stands.",
)
@click.option(
    "--pairs",
    type=file_path,
    metavar="FILE",
    help="With --judge: write both answers as tasks of Label Studio, for people to judge.",
)
@click.option(
    "--config",
    type=file_path,
    metavar="FILE",
    help="With --pairs: write the labelling configuration that the tasks are for, too.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N rows alone.")
@click.option(
    "-n", "--max-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
    help="Of an answer.",
)  # fmt: skip
@click.option(
    "--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, metavar="T",
    help="Of answers; 0 is greedy.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
              help="Of what is drawn.")  # fmt: skip
@model_options(
    text="Keep the pages of prompts for those that begin with the same tokens (default), or not."
)
@json_option
@quiet_option
@color_option
@click.pass_obj
def compare(
    terminal: Terminal,
    /,
    set: Path,
    a: str,
    b: str,
    judge: str | None,
    output: Path,
    pairs: Path | None,
    config: Path | None,
    limit: int | None,
    max_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare two models on SET, and say how sure that is.

    The models are loaded one after the other. Stopped by Ctrl-C or a kill, the same command goes on
    where it was.
    """
    terminal.quiet = quiet
    check_extra("data", "data")
    apart(set, output, pairs, config)
    if pairs is not None and judge is None:
        raise click.UsageError("--pairs are answers, which models give with --judge alone")
    if config is not None and pairs is None:
        raise click.UsageError("--config is for tasks, which --pairs writes")
    for model in (a, b, judge):
        if model is not None:
            runtime_config(model, options)  # bad values are refused before anything is begun
    from kvrt.data.compare import Comparison, Contest, report
    from kvrt.data.writing import whole
    from kvrt.sampling import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    contest = Contest(set, a, b, judge, params, limit)
    total = sum(1 for _ in contest.rows)

    @contextmanager
    def open(model: str) -> "Iterator[Runtime]":
        with open_runtime(terminal, runtime_config(model, options)) as runtime:
            yield runtime

    with counting_bar(terminal, "rows", 3 * total) as tell:
        done = 0

        def more(step: str, rows: int) -> None:
            nonlocal done
            done += rows
            tell(done)

        comparison = Comparison(contest, output.with_name(f"{output.name}.state"), open, more)
        comparison.go_on()
    verdicts = comparison.verdicts()
    with whole(output) as file:
        for number, verdict in zip((row.number for row in contest.rows), verdicts, strict=True):
            file.add(_line({"line": number, **verdict.as_json()}))
    if pairs is not None:
        _write_pairs(comparison, pairs, config)
    found = report(verdicts)
    if as_json:
        terminal.json(found)
    else:
        terminal.say(_in_words(found, a, b))


def _line(value: Mapping[str, Any]) -> bytes:
    from kvrt_cli.jsontext import to_json

    return to_json(value).encode()


def _write_pairs(comparison: "Comparison", path: Path, config: Path | None) -> None:
    from kvrt.data.labels import PAIRS_CONFIG, pair_of, write_tasks
    from kvrt.data.writing import whole

    sides = {"a": "left", "b": "right"}
    tasks = (
        pair_of(number, pair.prompt, pair.a, pair.b, sides.get(verdict.winner or ""))
        for number, pair, verdict in comparison.pairs()
    )
    with whole(path) as file:
        for piece in write_tasks(tasks):
            file.write(piece)
    if config is not None:
        with whole(config) as file:
            file.write(PAIRS_CONFIG.encode())


def _in_words(found: Mapping[str, Any], a: str, b: str) -> str:
    lines = [
        f"a is {a}, b is {b}",
        f"{found['judged']} of {found['rows']} rows: a wins {found['a_wins']}, b wins"
        f" {found['b_wins']}, {found['ties']} are ties",
    ]
    if (rate := found["win_rate"]) is not None:
        lines.append(f"of those that one has won, a has {_share(rate)}")
    if (score := found["score"]) is not None:
        lines.append(f"with a tie as half a win, a has {_share(score)}")
    if (place := found.get("position")) is not None:
        lines.append(
            f"the judge finds what stands first better with {place['first_likely']:.1%}: in"
            f" {place['first_always']} of {place['asked']} rows the first in both orders, in"
            f" {place['second_always']} the second"
        )
    if found["not_judged"]["rows"]:
        reason = found["not_judged"]["first_reason"]
        lines.append(f"{found['not_judged']['rows']} have no verdict, the first because {reason}")
    better = {"a": f"{a} is better", "b": f"{b} is better", None: "neither is shown to be better"}
    return "\n".join([*lines, better[found["better"]]]) + "\n"


def _share(interval: Mapping[str, float]) -> str:
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    return f"{value:.1%} (95 %: {low:.1%} to {high:.1%})"
