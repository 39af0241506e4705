"""What a model is, what it takes, and how much of it fits here."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kvrt.config import Environment, RuntimeConfig
from kvrt.errors import ConfigError, ModelError
from kvrt.units import parse_bytes

if TYPE_CHECKING:
    from kvrt.engine.planning import Plan
    from kvrt.model.checkpoint.checkpoint import Checkpoint
    from kvrt.model.choice import Choice
    from kvrt.model.source import Source
    from kvrt.spi import DeviceInfo

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


def facts_of(
    config: RuntimeConfig, contexts: Sequence[int] = (), memory: str | None = None
) -> dict[str, Any]:
    """All that is found out without loading or downloading weights, as JSON has it; sizes in bytes.

    Args:
        config: the model, its device, and as what weights, keys and values are kept.
        contexts: lengths to plan for; none: some up to the longest.
        memory: plan for so much, in place of what is free; a size, or a share of the device's.
    """
    with TemporaryDirectory(prefix="kvrt-show-") as headers:
        return _facts(config, contexts, memory, Path(headers))


@dataclass(frozen=True, slots=True)
class _Choices:
    """How a model would be loaded here, and how much would fit.

    Args:
        info, free: of the device, and bytes that are free on it.
        choice, plan: as the configuration says.
        others: with weights kept otherwise, by the name of that.
    """

    info: "DeviceInfo"
    free: int
    choice: "Choice"
    plan: "Plan"
    others: "Mapping[str, Plan]"


def _choices(
    config: RuntimeConfig, source: "Source", checkpoint: "Checkpoint | None", memory: str | None
) -> _Choices:
    from kvrt.engine.planning import plan
    from kvrt.model.choice import check_shape, choose
    from kvrt.registry import open_device
    from kvrt.spi import DeviceOptions

    device = open_device(Environment().backend_for(config.backend), config.device, DeviceOptions())
    try:
        check_shape(source.shape, source.spec, device)
        info, free = device.info, device.memory.info().free
        if memory is not None:
            free = parse_bytes(memory, whole=info.total_bytes)
            info = replace(info, total_bytes=free)

        def chosen(**wishes: Any) -> "Choice":
            wanted = {"max_model_len": config.max_model_len, **wishes}
            return choose(source, checkpoint, device, method=source.method, **wanted)

        choice = chosen(dtype=config.dtype, quantize=config.quantize)
        planned = plan(config, info, choice, free)
        others = {}
        for name in (*info.weight_dtypes, *QUANTIZED):
            wish = "quantize" if name in QUANTIZED else "dtype"
            try:
                others[name] = plan(config, info, chosen(**{wish: name}), free)
            except ConfigError:  # this device does not multiply them
                continue
    finally:
        device.close()
    return _Choices(info, free, choice, planned, others)


def _facts(
    config: RuntimeConfig, contexts: Sequence[int], memory: str | None, headers: Path
) -> dict[str, Any]:
    """
    Args:
        headers: a folder for those of files that are not here.
    """
    from kvrt.model.files.resolve import resolve
    from kvrt.model.source import open_source

    model = config.model
    place = resolve(
        model, want="config", offline=config.offline, revision=config.revision, headers=headers
    )
    source = open_source(place)
    checkpoint, lacking = None, ""
    try:
        checkpoint = source.checkpoint()
    except ModelError as error:
        lacking = str(error)
    found = _choices(config, source, checkpoint, memory)
    lengths = contexts or _lengths(found.choice.positions)
    return {
        "model": model,
        "path": model if place.is_relative_to(headers) else str(source.path),
        **_shape(found.choice),
        "stored": _stored(checkpoint),
        "without_weights": lacking,
        **_memory(found, lengths),
        "weights_as": [
            {
                "weights": name,
                "weight_bytes": other.weights,
                "kv_bytes": other.kv,
                "fits": _fits(other, lengths),
            }
            for name, other in found.others.items()
        ],
    }


def _shape(choice: "Choice") -> dict[str, Any]:
    from kvrt.model.offload.forms import expert_bytes

    spec = choice.spec
    expert_size, fewest = expert_bytes(spec, choice.dtype, choice.packing)
    return {
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
    }


def _memory(found: _Choices, lengths: Sequence[int]) -> dict[str, Any]:
    """What weights, keys and values take, and what is there for them."""
    choice, planned, info = found.choice, found.plan, found.info
    layouts = planned.sizes.layouts
    return {
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
            for group, layout in zip(choice.spec.groups, layouts, strict=True)
        ],
        "device": {
            "backend": info.backend,
            "name": info.name,
            "total_bytes": info.total_bytes,
            "free_bytes": found.free,
        },
        "step_bytes": planned.sizes.step,
        "kv_bytes": planned.kv,
        "fits": _fits(planned, lengths),
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
