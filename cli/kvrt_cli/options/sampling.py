"""Which sampling parameters apply: the user's, else the model's own, else greedy."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

from kvrt.errors import ModelError, RequestError
from kvrt.sampling import SamplingParams
from kvrt_cli.options import apply
from kvrt_cli.options.structured import constraint_of
from kvrt_cli.stdin import valid_text

if TYPE_CHECKING:
    from kvrt.model.generation import GenerationDefaults

NAMES = tuple(field.name for field in fields(SamplingParams))
DRAWS = ("top_k", "top_p", "min_p")
"""Parameters that mean nothing unless tokens are drawn."""

FROM_MODEL = ("temperature", "repetition_penalty", *DRAWS)
"""What a model's author may recommend, in its generation_config.json."""

PLAIN_MAX_TOKENS = 256
"""Default of max_tokens without a chat template: such a model rarely ends by itself."""


def biases(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[str, float], ...]:
    """What several ``ID=X`` say; `SamplingParams` checks the ids and their bounds."""
    pairs = []
    for text in values:
        token, _, bias = text.partition("=")
        try:
            pairs.append((token, float(bias)))
        except ValueError:
            raise click.BadParameter("it is ID=X, as in 42=-100") from None
    return tuple(pairs)


sampling_options = apply(
    [
        click.option(
            "-n",
            "--max-tokens",
            type=int,
            metavar="TOKENS",
            help=f"At most so many new tokens; default: {PLAIN_MAX_TOKENS}, or with a chat template"
            " what the context has room for.",
        ),
        click.option(
            "--temperature",
            "--temp",
            type=float,
            metavar="T",
            help="0 is greedy. Default: what the model's generation_config.json asks for, else 0;"
            " 1 if --top-p, --top-k or --min-p is given.",
        ),
        click.option(
            "--top-p", type=float, metavar="P", help="Keep the likeliest, up to this sum."
        ),
        click.option(
            "--top-k", type=int, metavar="K", help="Keep the K likeliest tokens; 0 or -1: all."
        ),
        click.option(
            "--min-p",
            type=float,
            metavar="P",
            help="Keep tokens at least this fraction as likely as the likeliest.",
        ),
        click.option(
            "--repetition-penalty",
            type=float,
            metavar="X",
            help="Above 1, makes tokens that have occurred less likely.",
        ),
        click.option(
            "--min-tokens",
            type=int,
            metavar="TOKENS",
            help="Neither an end token nor a stop text ends the answer before so many.",
        ),
        click.option(
            "--logit-bias",
            multiple=True,
            metavar="ID=X",
            callback=biases,
            help="Add X to the score of the token with this id, -100 to 100; -100 bans it. May be"
            " given several times.",
        ),
        click.option(
            "--bad-word",
            "bad_words",
            multiple=True,
            metavar="TEXT",
            help="Never say this, as the tokenizer writes it; may be given several times.",
        ),
        click.option("--seed", type=int, metavar="N", help="Makes the draws repeatable."),
        click.option(
            "--stop",
            multiple=True,
            metavar="TEXT",
            help="Stop before this text appears; may be given several times.",
        ),
        click.option(
            "--beam-width",
            type=int,
            metavar="K",
            help="Beam search: follow the K likeliest texts at once, and answer, at the end, with"
            " the likeliest as a whole. Draws no tokens.",
        ),
        click.option(
            "--length-penalty",
            type=float,
            metavar="X",
            help="With --beam-width: a text's log-probability is divided by its length to this"
            " power (1); more prefers longer ones.",
        ),
        click.option(
            "--ignore-eos", is_flag=True, default=None, help="Go on past the model's end tokens."
        ),
        click.option(
            "--skip-special-tokens/--no-skip-special-tokens",
            default=None,
            help="Leave special tokens out of the text (default), or not.",
        ),
    ]
)


def asked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters that the user named on the command line.

    Raises:
        RequestError: a stop string or a bad word is not UTF-8, or what is to constrain the answer
            cannot be read.
    """
    named = {name: options[name] for name in NAMES if options.get(name) is not None}
    if (constraint := constraint_of(options)) is not None:
        named["constraint"] = constraint
    for name, option in (("stop", "--stop"), ("bad_words", "--bad-word")):
        if texts := named.get(name):
            named[name] = [valid_text(text, option) for text in texts]
    return {name: value for name, value in named.items() if value != ()}


def resolve(
    wishes: Mapping[str, Any], model: "GenerationDefaults", *, chat: bool
) -> SamplingParams:
    """The parameters of one request.

    Args:
        wishes: what the user asked for, by `SamplingParams`' names.
        model: what its author recommends. Where that is to draw tokens, temperature, top_k, top_p
            and min_p are taken from it; the repetition penalty always is. Beams take nothing.
        chat: the prompt is a conversation, so the model ends by itself.

    Raises:
        RequestError: a value is out of range.
        ModelError: one that nobody asked for is.
    """
    params: dict[str, Any] = {} if chat else {"max_tokens": PLAIN_MAX_TOKENS}
    if wishes.get("beam_width", 1) != 1:
        return SamplingParams(**{**params, **wishes})
    if model.sample or ("temperature" not in wishes and any(name in wishes for name in DRAWS)):
        params["temperature"] = 1.0
    names = FROM_MODEL if model.sample else ("repetition_penalty",)
    params |= _recommended(model, [name for name in names if name not in wishes])
    resolved = SamplingParams(**{**params, **wishes})
    if resolved.greedy or resolved.seed is not None:
        return resolved
    # Drawn here, and not in the runtime, so that the output can name it.
    return replace(resolved, seed=secrets.randbits(32))


def _recommended(model: "GenerationDefaults", names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(model, name) for name in names if getattr(model, name) is not None}
    try:
        SamplingParams(**values)
    except RequestError as error:
        raise ModelError(
            f"{model.file} recommends something that cannot be: {error}",
            fix="give a value yourself, which goes before, or correct the file",
        ) from None
    return values
