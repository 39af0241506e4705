"""``kvrt models``: which architectures run."""

import click

from kvrt_cli.options import color_option
from kvrt_cli.terminal import Terminal


@click.command("models", short_help="Which architectures of models run.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@color_option
@click.pass_obj
def models(terminal: Terminal, /, as_json: bool) -> None:
    """List the architectures that run, as config.json names them, and as GGUF files do."""
    from kvrt.model.families.decoders import FAMILIES, NESTED
    from kvrt.model.gguf.architectures import ARCHITECTURES

    rows = []
    for name in (*FAMILIES, *NESTED):
        families = {*NESTED[name].values()} if name in NESTED else {name}
        gguf = [
            own for own, a in ARCHITECTURES.items() if families & {a.family, a.mixture, *a.also}
        ]
        rows.append({"architecture": name, "gguf": gguf})
    if as_json:
        terminal.json(rows, indent=2)
        return
    width = max(len(str(row["architecture"])) for row in rows)
    for row in rows:
        click.echo(f"{row['architecture']:{width}}  {', '.join(row['gguf'])}".rstrip())
