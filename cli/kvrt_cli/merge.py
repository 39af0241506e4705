"""``kvrt merge``: several fine-tuned models become one."""

from pathlib import Path
from typing import Any, get_args

import click

from kvrt.model.merging import Method
from kvrt_cli.naming import model_name
from kvrt_cli.options import color_option, offline_option, quiet_option
from kvrt_cli.progress import loading_bar
from kvrt_cli.terminal import Terminal


@click.command("merge", short_help="Several fine-tuned models become one.")
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("models", nargs=-1, required=True, type=model_name)
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="linear",
    show_default=True,
    help="The weighted mean; of two, along the arc between them (slerp); of what each adds to"
    " --base, the largest, where most agree on the sign (ties), or a random part (dare).",
)
@click.option("--base", type=model_name, metavar="MODEL", help="What all were made from.")
@click.option(
    "--weight",
    "weights",
    type=click.FloatRange(0),
    multiple=True,
    metavar="X",
    help="Of each model, in their order; given as often as there are models. Default: all alike.",
)
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    metavar="X",
    help="How much is kept of what a model adds (ties, dare).",
)
@click.option(
    "--scale",
    type=click.FloatRange(0, 10),
    default=1.0,
    show_default=True,
    metavar="X",
    help="Multiplies what is added to --base (ties, dare).",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of what is left out (dare).",
)
@offline_option
@quiet_option
@color_option
@click.pass_obj
def merge(
    terminal: Terminal, /, out: Path, models: tuple[str, ...], quiet: bool, **options: Any
) -> None:
    """Write the MODELS, merged into one, to the new folder OUT, as safetensors.

    They are checkpoints that were made from one model by training: directories or hub ids. Tensors
    are merged one at a time, so memory is taken for the largest of them alone. Configuration and
    tokenizer are those of --base, or of the first.
    """
    from kvrt.model.files.resolve import resolve
    from kvrt.model.merging.files import merge as merge_files
    from kvrt.model.merging.methods import Recipe

    terminal.quiet = quiet
    recipe = Recipe(
        options["method"],
        options["weights"] or (1.0,) * len(models),
        options["density"],
        options["scale"],
        options["seed"],
    )
    base = options["base"]
    recipe.check(len(models), base=base is not None)
    with loading_bar(terminal) as progress:
        folders = [
            resolve(model, offline=options["offline"], progress=progress) for model in models
        ]
        root = None
        if base is not None:
            root = resolve(base, offline=options["offline"], progress=progress)
        merge_files(folders, root, recipe, out, progress=progress)
    terminal.note(f"{out} has the merged model")
