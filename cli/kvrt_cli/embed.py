"""``kvrt embed``: texts as vectors."""

from typing import Any

import click

from kvrt.embedding.recipe import POOLINGS
from kvrt_cli.naming import model_name
from kvrt_cli.options import OPENING, color_option, opening_options
from kvrt_cli.stdin import given_texts
from kvrt_cli.terminal import Terminal


@click.command("embed", short_help="Texts as vectors.")
@click.argument("model", type=model_name)
@click.argument("texts", nargs=-1)
@click.option(
    "--prompt",
    metavar="NAME",
    help="What the model puts before texts of a kind, by its name, such as query.",
)
@click.option(
    "--pooling",
    type=click.Choice(POOLINGS),
    help="From the states of a text's tokens to its vector. Default: as the model's files say.",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Vectors of length 1, or as they are. Default: as the model's files say.",
)
@click.option(
    "--dimensions",
    type=click.IntRange(1),
    metavar="N",
    help="The first N of a vector, for models that are trained for that.",
)
@click.option("--truncate", is_flag=True, help="Leave out what is beyond the longest text.")
@opening_options
@color_option
@click.pass_obj
def embed(terminal: Terminal, /, model: str, texts: tuple[str, ...], **options: Any) -> None:
    """Print the vector of each of the TEXTS, which MODEL makes: one JSON object a line.

    Without TEXTS, each line of standard input is one.
    """
    from kvrt.embedding.embedder import Embedder

    given = given_texts(terminal, texts)
    names = (*OPENING, "pooling", "normalize")
    with Embedder(model, **{name: options[name] for name in names}) as embedder:
        made = embedder.embed(
            given,
            prompt=options["prompt"],
            truncate=options["truncate"],
            dimensions=options["dimensions"],
        )
    for index, (vector, tokens) in enumerate(zip(made.vectors, made.tokens, strict=True)):
        terminal.json({"index": index, "tokens": tokens, "embedding": vector.tolist()})
