"""``kvrt show``: what a model is, what it takes, and how much of it fits here."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from kvrt.config import Environment, RuntimeConfig
from kvrt.errors import ConfigError, ModelError
from kvrt.units import format_bytes, parse_bytes
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

if TYPE_CHECKING:
    from kvrt.engine.planning import Plan
    from kvrt.model.checkpoint.checkpoint import Checkpoint
    from kvrt.model.choice import Choice

FIRST, TIMES = 1024, 4
"""Tokens of the shortest context that is planned for, where none is asked for, and how many times
as long each next one is."""
QUANTIZED = ("int8", "int5", "int4")
KEEPS = {
    "window": "what the last tokens were",
    "page": "what a page's tokens add",
    "border": "a state for each page",
}
"""What recurrent layers do (`kvrt.model.states.Kept`)."""


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
    with TemporaryDirectory(prefix="kvrt-show-") as headers:
        facts = _facts(model, options, Path(headers))
    if as_json:
        terminal.json(facts, indent=2)
    else:
        for line in _lines(facts):
            click.echo(line)


# --- what is found out ---------------------------------------------------------------------------


def _facts(model: str, options: Mapping[str, Any], headers: Path) -> dict[str, Any]:
    """All of it, as ``--json`` prints it; sizes in bytes.

    Args:
        headers: a folder for those of files that are not here.
    """
    from kvrt.engine.planning import plan
    from kvrt.model.choice import check_shape, choose
    from kvrt.model.files.resolve import resolve
    from kvrt.model.offload.forms import expert_bytes
    from kvrt.model.source import open_source
    from kvrt.registry import open_device
    from kvrt.spi import DeviceOptions

    contexts = sorted(set(options["contexts"]))
    names = ("backend", "device", "dtype", "kv_cache_dtype", "quantize", "offline", "revision")
    config = RuntimeConfig(
        model=model,
        max_model_len=contexts[-1] if contexts else None,
        **{name: options[name] for name in names},
    )
    place = resolve(
        model, want="config", offline=config.offline, revision=config.revision, headers=headers
    )
    source = open_source(place)
    checkpoint, lacking = None, ""
    try:
        checkpoint = source.checkpoint()
    except ModelError as error:
        lacking = str(error)
    backend = Environment().backend if config.backend == "auto" else config.backend
    device = open_device(backend, config.device, DeviceOptions())
    try:
        check_shape(source.shape, source.spec, device)
        info, free = device.info, device.memory.info().free
        if options["memory"] is not None:
            free = parse_bytes(options["memory"], whole=info.total_bytes)
            info = replace(info, total_bytes=free)

        def chosen(**wishes: Any) -> "Choice":
            wanted = {"max_model_len": config.max_model_len, **wishes}
            return choose(source, checkpoint, device, method=source.method, **wanted)

        def plan_of(choice: "Choice") -> "Plan":
            return plan(config, info, choice, free)

        choice = chosen(dtype=config.dtype, quantize=config.quantize)
        planned = plan_of(choice)
        lengths = contexts or _lengths(choice.positions)
        others = []
        for name in (*info.weight_dtypes, *QUANTIZED):
            wish = "quantize" if name in QUANTIZED else "dtype"
            try:
                others.append((name, plan_of(chosen(**{wish: name}))))
            except ConfigError:  # this device does not multiply them
                continue
    finally:
        device.close()
    spec, layouts = choice.spec, planned.sizes.layouts
    expert_size, fewest = expert_bytes(spec, choice.dtype, choice.packing)
    return {
        "model": model,
        "path": model if place.is_relative_to(headers) else str(source.path),
        "architecture": spec.architecture,
        "parameters": choice.parameters,
        "parameters_of_a_token": choice.parameters_of_a_token,
        "experts": 0 if spec.experts is None else spec.experts.count,
        "experts_of_a_token": 0 if spec.experts is None else spec.experts.router.chosen,
        "expert_bytes": expert_size,
        "fewest_expert_bytes": fewest,
        "layers": len(spec.layers),
        "hidden": spec.hidden,
        "intermediate": spec.intermediate,
        "heads": spec.heads,
        "kv_heads": spec.kv_heads,
        "latent": asdict(spec.latent) if spec.latent else None,
        "head_dim": spec.head_dim,
        "vocab": spec.vocab,
        "context": spec.max_positions,
        "stored": _stored(checkpoint),
        "without_weights": lacking,
        "dtype": choice.dtype,
        "packed_matrices": len(choice.packing.formats),
        "weight_bytes": planned.weights,
        "kv_cache_dtype": layouts[0].format,
        "groups": [
            {
                "layers": len(group.layers),
                "window": group.reach(layout.page_size),
                "keeps": KEEPS[group.kept] if group.width else "keys and values",
                "bytes_per_token": layout.page_bytes / layout.page_size,
            }
            for group, layout in zip(spec.groups, layouts, strict=True)
        ],
        "device": {
            "backend": info.backend,
            "name": info.name,
            "total_bytes": info.total_bytes,
            "free_bytes": free,
        },
        "step_bytes": planned.sizes.step,
        "kv_bytes": planned.kv,
        "fits": _fits(planned, lengths),
        "weights_as": [
            {
                "weights": name,
                "weight_bytes": other.weights,
                "kv_bytes": other.kv,
                "fits": _fits(other, lengths),
            }
            for name, other in others
        ],
    }


def _lengths(longest: int) -> list[int]:
    lengths = []
    length = FIRST
    while length < longest:
        lengths.append(length)
        length *= TIMES
    return [*lengths, longest]


def _stored(checkpoint: "Checkpoint | None") -> dict[str, dict[str, int]]:
    """Tensors and bytes of each type that the files have."""
    tensors: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for _, entry in checkpoint.tensors.values() if checkpoint is not None else ():
        tensors[entry.dtype] += 1
        nbytes[entry.dtype] += entry.end - entry.start
    return {kind: {"tensors": tensors[kind], "bytes": n} for kind, n in nbytes.most_common()}


def _fits(planned: "Plan", lengths: Sequence[int]) -> list[dict[str, int]]:
    return [
        {
            "context": length,
            "bytes": planned.text_bytes(length),
            "texts": planned.texts(length),
        }
        for length in lengths
    ]


# --- how it is printed ---------------------------------------------------------------------------


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
