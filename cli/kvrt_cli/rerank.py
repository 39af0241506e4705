"""``kvrt rerank``: texts sorted by how much they say about a question."""

from typing import Any

import click

from kvrt_cli.naming import model_name
from kvrt_cli.options import OPENING, color_option, opening_options
from kvrt_cli.stdin import given_texts, valid_text
from kvrt_cli.terminal import Terminal


@click.command("rerank", short_help="Texts sorted by what they say about a question.")
@click.argument("model", type=model_name)
@click.argument("query")
@click.argument("texts", nargs=-1)
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the best N.")
@click.option(
    "--instruction",
    metavar="TEXT",
    help="What is looked for, for models that are told so. Default: what it was trained with.",
)
@click.option("--truncate", is_flag=True, help="Leave out what is beyond the longest text.")
@opening_options
@color_option
@click.pass_obj
def rerank(
    terminal: Terminal, /, model: str, query: str, texts: tuple[str, ...], **options: Any
) -> None:
    """Print how much each of the TEXTS says about QUERY, as MODEL tells: one JSON object a line,
    the best first.

    Without TEXTS, each line of standard input is one.
    """
    from kvrt.embedding.reranker import Reranker

    given = given_texts(terminal, texts)
    asked = valid_text(query, "the question")
    with Reranker(model, **{name: options[name] for name in OPENING}) as reranker:
        ranking = reranker.rank(
            asked, given, instruction=options["instruction"], truncate=options["truncate"]
        )
    for index in ranking.order[: options["top"]]:
        score, tokens = ranking.scores[index], ranking.tokens[index]
        terminal.json({"index": index, "score": score, "tokens": tokens, "text": given[index]})
