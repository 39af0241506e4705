"""``kvrt show``: what a model is, what it takes, and how much of it fits here."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from kvrt.config import RuntimeConfig
from kvrt.units import format_bytes
from kvrt_cli.facts import facts_of
from kvrt_cli.naming import model_name
from kvrt_cli.options import (
    backend_option,
    color_option,
    device_option,
    dtype_option,
    kv_dtype_option,
    offline_option,
    quantize_option,
    revision_option,
    size,
)
from kvrt_cli.terminal import Terminal

NAMES = ("backend", "device", "dtype", "kv_cache_dtype", "quantize", "offline", "revision")
"""Options that are a `RuntimeConfig`'s as they are."""


@click.command("show", short_help="What a model is, what it takes, and how much of it fits here.")
@click.argument("model", type=model_name)
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(2),
    multiple=True,
    metavar="TOKENS",
    help="Plan for texts of this length; may be given several times. Default: some lengths up to"
    " the longest.",
)
@click.option(
    "--memory",
    type=size,
    metavar="SIZE",
    help="Plan for so much free memory (24GiB, 50%), in place of what is free on the device.",
)
@backend_option
@device_option
@dtype_option
@kv_dtype_option
@quantize_option
@offline_option
@revision_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@color_option
@click.pass_obj
def show(terminal: Terminal, /, model: str, as_json: bool, **options: Any) -> None:
    """Show what MODEL is, how much memory its weights and a token's keys and values take, and how
    many texts fit at once.

    MODEL is as for kvrt run, or a config.json alone. No weights are loaded, and of a hub id none
    are downloaded.
    """
    contexts = sorted(set(options["contexts"]))
    config = RuntimeConfig(
        model=model,
        max_model_len=contexts[-1] if contexts else None,
        **{name: options[name] for name in NAMES},
    )
    facts = facts_of(config, contexts, options["memory"])
    if as_json:
        terminal.json(facts, indent=2)
    else:
        for line in _lines(facts):
            click.echo(line)


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    def line(title: str, text: str) -> str:
        return f"{title:<14}{text}"

    groups = facts["groups"]
    yield line("model", facts["model"])
    if facts["path"] != facts["model"]:
        yield line("path", facts["path"])
    yield line("architecture", facts["architecture"])
    yield line("parameters", f"{facts['parameters']:,}")
    yield line("layers", f"{facts['layers']}: " + ", ".join(map(_group, groups)))
    read = f"{facts['kv_heads']} of keys and values, each {facts['head_dim']} wide"
    if latent := facts["latent"]:
        read = f"one latent of {latent['rank']} with a rotated key of {latent['rotated']}"
    yield line("attention", f"{facts['heads']} query heads and {read}")
    if facts["experts"]:
        yield line(
            "experts",
            f"{facts['experts']}, of which a token has {facts['experts_of_a_token']}, and"
            f" {facts['parameters_of_a_token']:,} parameters in all",
        )
    yield line("widths", f"{facts['hidden']} hidden, {facts['intermediate']} feed-forward")
    yield line("vocabulary", f"{facts['vocab']:,} tokens")
    yield line("context", f"{facts['context']:,} tokens")
    for kind, stored in facts["stored"].items():
        size = format_bytes(stored["bytes"])
        yield line("in its files", f"{size} in {stored['tensors']} tensors of {kind}")
    if facts["without_weights"]:
        yield line("in its files", f"no weights, so these are plans: {facts['without_weights']}")
    packed = facts["packed_matrices"]
    kept = f"{packed} matrices as codes, the rest in" if packed else "in"
    taken = format_bytes(facts["weight_bytes"])
    yield line("weights", f"{taken} in memory, {kept} {facts['dtype']}")
    if facts["experts"]:
        experts, fewest = map(format_bytes, (facts["expert_bytes"], facts["fewest_expert_bytes"]))
        yield line(
            "experts",
            f"{experts} of that; --offload-experts keeps as little as {fewest} of them in memory",
        )
    for group in groups:
        size = format_bytes(round(group["bytes_per_token"]))
        yield line("KV memory", f"{size} a token for {_group(group)}, in {facts['kv_cache_dtype']}")
    device = facts["device"]
    yield ""
    yield (
        f"{device['backend']}: {device['name']}, {format_bytes(device['free_bytes'])} free of"
        f" {format_bytes(device['total_bytes'])}; beside the weights, {_left(facts)}"
    )
    yield ""
    lengths = [f"{row['context']:,}" for row in facts["fits"]]
    yield _row("texts at once", "weights", "KV memory", lengths)
    yield _row("a text takes", "", "", [format_bytes(row["bytes"]) for row in facts["fits"]])
    yield _planned("as above", facts)
    for other in facts["weights_as"]:
        yield _planned(other["weights"], other)


def _group(group: Mapping[str, Any]) -> str:
    if group["keeps"] != "keys and values":
        return f"{group['layers']} that keep {group['keeps']}"
    sees = f"see {group['window']:,} tokens back" if group["window"] else "see all"
    return f"{group['layers']} that {sees}"


def _left(facts: Mapping[str, Any]) -> str:
    if not facts["kv_bytes"]:
        return "which do not fit, nothing is left"
    return f"{format_bytes(facts['kv_bytes'])} are for keys and values"


def _planned(name: str, facts: Mapping[str, Any]) -> str:
    texts = [f"{row['texts']:,}" if row["texts"] else "-" for row in facts["fits"]]
    return _row(name, format_bytes(facts["weight_bytes"]), format_bytes(facts["kv_bytes"]), texts)


def _row(name: str, weights: str, kv: str, cells: Sequence[str]) -> str:
    return f"{name:<14}{weights:>10}{kv:>11}" + "".join(f"{cell:>11}" for cell in cells)
