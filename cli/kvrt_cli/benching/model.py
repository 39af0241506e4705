"""``kvrt bench``: tokens per second of a whole model, in the manner of llama-bench."""

from collections.abc import Iterator
from typing import Any

import click

from kvrt.config import RuntimeConfig
from kvrt_cli.benching.tables import FORMATS, write_rows
from kvrt_cli.benching.workload import Row, Workload, measure
from kvrt_cli.naming import TINY, model_name
from kvrt_cli.options import color_option, dtype
from kvrt_cli.options.memory import memory_options, prefix_cache_option, share_options
from kvrt_cli.options.runtime import runtime_config, runtime_options
from kvrt_cli.options.sections import BENCH, SectionedCommand
from kvrt_cli.progress import BenchBar
from kvrt_cli.terminal import Terminal

MOST = 10**7
"""Of anything that is counted: prompts are made before they are measured."""


def numbers(value: str, *, least: int = 1) -> tuple[int, ...]:
    """Whole numbers, separated by commas: ``128,512``."""
    try:
        found = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r:.60} is not a list of whole numbers: 128,512") from None
    for number in found:
        if not least <= number <= MOST:
            raise click.BadParameter(f"{number} is not from {least} to {MOST}")
    return found


def numbers_from_0(value: str) -> tuple[int, ...]:
    return numbers(value, least=0)


def prompt_and_answer(value: str) -> tuple[int, int]:
    """Two whole numbers, the tokens of a prompt and of its answer: ``512,128``."""
    found = numbers(value)
    if len(found) != 2:
        raise click.BadParameter(f"{value!r} is not two numbers such as 512,128")
    return found[0], found[1]


def dtypes(value: str) -> tuple[str, ...]:
    """Names of dtypes, separated by commas."""
    return tuple(dtype(name) for name in value.split(","))


@click.command(
    "bench", cls=SectionedCommand, sections=BENCH, short_help="Tokens per second of a whole model."
)
@click.argument("model", default=TINY, type=model_name)
@click.option(
    "-p",
    "--prompt-tokens",
    type=numbers_from_0,
    metavar="N,...",
    default="512",
    show_default=True,
    help="Test prompts of so many tokens (pp); 0: none.",
)
@click.option(
    "-n",
    "--new-tokens",
    type=numbers_from_0,
    metavar="N,...",
    default="128",
    show_default=True,
    help="Test answers of so many tokens, to a prompt of one (tg); 0: none.",
)
@click.option(
    "-pg",
    "pairs",
    type=prompt_and_answer,
    metavar="P,N",
    multiple=True,
    help="Test a prompt and its answer together (pp+tg); may be given several times.",
)
@click.option(
    "-b",
    "--batch",
    type=numbers,
    metavar="N,...",
    default="1",
    show_default=True,
    help="So many sequences at a time.",
)
@click.option(
    "-r",
    "--repetitions",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    metavar="N",
    help="Measure each test so often.",
)
@click.option("--no-warmup", is_flag=True, help="Count the first run of each test, too.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(list(FORMATS)),
    default="md",
    show_default=True,
    help="How the rows are printed.",
)
@click.option(
    "--dtype",
    "dtype_names",
    type=dtypes,
    metavar="NAME,...",
    default="auto",
    help="Of the weights; auto: the model's.",
)
@click.option(
    "-t",
    "--threads",
    type=numbers,
    metavar="N,...",
    help="Host threads; default: the backend's choice.",
)
@runtime_options
@prefix_cache_option(
    default=False,
    text="Let prompts begin with pages that an earlier run has computed, or not (default): every"
    " run of a test has the same prompts, so that with it most of pp is not computed.",
)
@memory_options
@share_options
@click.option("-q", "--quiet", is_flag=True, help="Print only the rows, and errors.")
@color_option
@click.pass_obj
def bench_model(
    terminal: Terminal,
    /,
    model: str,
    prompt_tokens: tuple[int, ...],
    new_tokens: tuple[int, ...],
    pairs: tuple[tuple[int, int], ...],
    batch: tuple[int, ...],
    repetitions: int,
    no_warmup: bool,
    output: str,
    dtype_names: tuple[str, ...],
    threads: tuple[int, ...] | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure how many tokens a second MODEL reads and writes.

    Options that take lists (128,512) multiply: every combination is one row.

    \b
    pp512        a prompt of 512 tokens, until its first new token
    tg128        128 new tokens after a prompt of one, each in its own step
    pp512+tg128  both, from the beginning to the end

    With -b, so many sequences run at a time, and their tokens are added up.

    Prompts are made of token ids from a fixed seed, so tokenizing is not measured. Scheduling, page
    tables, sampling (greedy) and detokenizing are: they are what a user of the runtime waits for.
    Every run computes all of its prompt; --prefix-cache changes that, and the JSON column
    cached_tokens says how much.

    With --load-format dummy, MODEL may be a folder that holds only a config.json.
    """
    terminal.quiet = quiet
    shapes = [(p, 0) for p in prompt_tokens if p] + [(0, n) for n in new_tokens if n] + list(pairs)
    loads = [(name, count) for name in dtype_names for count in threads or (None,)]
    if not shapes:
        raise click.UsageError("nothing to measure: -p and -n are both 0, and there is no -pg")
    configs = [
        runtime_config(model, {**options, "dtype": name, "threads": count}) for name, count in loads
    ]
    runs = repetitions + (0 if no_warmup else 1)
    bar = BenchBar(terminal, len(configs) * len(batch) * len(shapes) * runs)
    try:
        write_rows(_rows(configs, shapes, batch, repetitions, bar, warmup=not no_warmup), output)
    finally:
        bar.hide()


def _rows(
    configs: list[RuntimeConfig],
    shapes: list[tuple[int, int]],
    batch: tuple[int, ...],
    repetitions: int,
    bar: BenchBar,
    *,
    warmup: bool,
) -> Iterator[Row]:
    from kvrt.runtime import Runtime

    for config in configs:
        with Runtime(config=config) as runtime:
            for sequences in batch:
                for prompt, answer in shapes:
                    work = Workload(prompt, answer, sequences)
                    row = measure(runtime, work, repetitions, bar, warmup=warmup)
                    bar.hide()
                    yield row
