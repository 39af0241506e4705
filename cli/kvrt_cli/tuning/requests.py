"""The requests that `kvrt profile` and `kvrt tune` measure with: those of a file, or made ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvrt.sampling import SamplingParams
from kvrt_cli.asking import asking
from kvrt_cli.benching.workload import Workload
from kvrt_cli.errors import of_the_system
from kvrt_cli.options import apply
from kvrt_cli.prompts import Item, read_items

if TYPE_CHECKING:
    from kvrt.engine.prompts import Prompt
    from kvrt.runtime import Runtime

LARGEST = 10**6
"""Of anything that is counted: prompts are made before they are measured."""

load_options = apply(
    [
        click.option(
            "-p",
            "--prompt-tokens",
            type=click.IntRange(1, LARGEST),
            default=256,
            show_default=True,
            metavar="N",
            help="Without PROMPTS: tokens of each prompt.",
        ),
        click.option(
            "-n",
            "--new-tokens",
            type=click.IntRange(1, LARGEST),
            default=64,
            show_default=True,
            metavar="N",
            help="Tokens of each answer; with PROMPTS, at most.",
        ),
        click.option(
            "-b",
            "--batch",
            type=click.IntRange(1, LARGEST),
            default=4,
            show_default=True,
            metavar="N",
            help="Without PROMPTS: so many requests at once.",
        ),
    ]
)
"""For a command whose other argument may be a file of prompts."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that come together.

    Args:
        prompts: what is asked.
        params: how each is answered: greedily, or with a seed, so that every run is the same.
        name: for people.
        made: its prompts are random token ids, and no texts.
    """

    prompts: "Sequence[Prompt]"
    params: Sequence[SamplingParams]
    name: str
    made: bool


def read_prompts(path: Path | None) -> list[Item] | None:
    """The lines of a file of prompts, as of ``kvrt run --prompts``; None: there is none.

    Raises:
        click.UsageError: it cannot be read, has no prompts, or one that cannot be asked.
    """
    if path is None:
        return None
    try:
        items = read_items(path.read_bytes())
    except OSError as error:
        raise click.UsageError(f"PROMPTS: {of_the_system(error)}") from None
    for item in items:
        if item.error is not None:
            raise click.UsageError(f"PROMPTS, line {item.line}: {item.error}")
    if not items:
        raise click.UsageError("PROMPTS: the file is empty")
    return items


def load_of(runtime: "Runtime", items: Sequence[Item] | None, options: dict[str, Any]) -> Load:
    """What is measured with.

    Raises:
        RequestError: a line's sampling parameter is out of range.
    """
    if items is None:
        work = Workload(options["prompt_tokens"], options["new_tokens"], options["batch"])
        prompts = work.prompts(runtime.model.spec.vocab)
        name = f"{work.sequences} requests of {work.prompt} tokens, {work.answer} each in answer"
        return Load(prompts, [work.params] * work.sequences, name, made=True)
    wishes = {"max_tokens": options["new_tokens"], "seed": 0}
    how = asking(runtime, wishes, chat=None, system=None, variables={})
    asked = [how.prepare(item.prompt, item.wishes) for item in items]
    name = f"{len(asked)} requests of a file, at most {options['new_tokens']} tokens in answer"
    return Load([p for p, _ in asked], [params for _, params in asked], name, made=False)
