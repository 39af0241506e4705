"""What runs with what, read off the code: families, backends, formats and routes.

    python -m tests.features      writes docs/features.md

`test_features.py` fails if the page is not what this would write. Nothing here needs a GPU: what a
GPU's backend offers is asked of its own code, as that makes it for a kind of GPU.
"""

import asyncio
import importlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from kvrt_kernels.driver.device import GpuDevice
from kvrt_kernels.gpu import TorchPlace
from starlette.routing import Route, WebSocketRoute

from kvrt import AsyncRuntime, Runtime
from kvrt.model.config import read_config
from kvrt.model.families.decoders import FAMILIES, NESTED
from kvrt.model.gguf.architectures import ARCHITECTURES
from kvrt.model.spec import ModelSpec
from kvrt.model.vision.families import TOWERS
from kvrt.registry import open_device
from kvrt.server.app import BARE, make_app
from kvrt.server.config import ServerConfig
from kvrt.server.service import Service
from kvrt.spi import (
    BranchOps,
    Collectives,
    DenseOps,
    DType,
    ExpertOps,
    GraphCapture,
    KVFormat,
    LatentOps,
    LowRankOps,
    Measurable,
    PackedMatrices,
    Recurrence,
)

PAGE = Path(__file__).parent.parent / "docs" / "features.md"
HEAD = """# What runs with what

Written by `python -m tests.features` from the code: a test fails where it says otherwise. That a
feature is there says nothing of where it was run: [the README](../README.md#backends) does.
"""
YES = "yes"

Feature = Callable[[ModelSpec], bool]
FEATURES: Mapping[str, Feature] = {
    "experts": lambda spec: spec.experts is not None,
    "windows": lambda spec: any(layer.window for layer in spec.layers),
    "recurrent layers": lambda spec: spec.recurrence is not None,
    "latent attention": lambda spec: spec.latent is not None,
    "sinks": lambda spec: spec.sinks,
    "soft caps": lambda spec: bool(spec.attention_softcap),
    "drafts by its own layer": lambda spec: spec.predictor is not None,
}
"""Of decoders, as `ModelSpec` has them."""

PROTOCOLS = {
    DenseOps: "dense operators",
    GraphCapture: "recorded steps",
    PackedMatrices: "weights as codes",
    ExpertOps: "experts",
    LatentOps: "latent attention",
    Recurrence: "recurrent layers",
    BranchOps: "drafts that branch",
    LowRankOps: "adapters in the products' call",
    Collectives: "several devices",
    Measurable: "its own limits",
}
"""What is optional in `kvrt.spi`, and what it is for."""

GPUS = {"cuda": ("sm_80", "sm_90"), "rocm": ("gfx90a", "gfx942")}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- families ------------------------------------------------------------------------------------


def specs() -> Iterator[ModelSpec]:
    """A small model of each family, as its test has it, read from the config.json that transformers
    writes."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tests.model.checkpoints import BASE
    from tests.model.checkpoints import FAMILIES as ROWS

    names = {family.model_type: name for name, family in FAMILIES.items()}
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS.values():
            path = Path(folder) / "config.json"
            values = CONFIG_MAPPING[row["model_type"]](**{**BASE, **row}).to_dict()
            path.write_text(json.dumps({**values, "architectures": [names[row["model_type"]]]}))
            yield read_config(path, predictor=True)


def families() -> str:
    found: dict[str, set[str]] = {name: set() for name in FAMILIES}
    for spec in specs():
        found[spec.architecture] |= {name for name, has in FEATURES.items() if has(spec)}
    gguf: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for own, architecture in ARCHITECTURES.items():
        for family in {architecture.family, architecture.mixture, *architecture.also} - {""}:
            gguf[family].append(f"`{own}`")
    seeing: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for whole, decoders in NESTED.items():
        for family in dict.fromkeys(decoders.values()):
            seeing[family].append(f"`{whole}`" + ("" if whole in TOWERS else " (text alone)"))
    rows = (
        [
            f"`{name}`",
            *(YES if feature in features else "" for feature in FEATURES),
            ", ".join(gguf[name]),
            ", ".join(seeing[name]),
        ]
        for name, features in found.items()
    )
    return table(["architecture", *FEATURES, "GGUF", "is the decoder of"], rows)


# --- backends ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of device: its name, what it offers beside the three parts, and its formats."""

    name: str
    offers: frozenset[str]
    kv: tuple[KVFormat, ...]
    weights: tuple[DType, ...]


def _kind(name: str, device: Any, kv: tuple[KVFormat, ...], weights: tuple[DType, ...]) -> Kind:
    offered = (what for kind, what in PROTOCOLS.items() if device.extension(kind) is not None)
    return Kind(name, frozenset(offered), kv, weights)


class Nowhere(TorchPlace):
    """A vendor's place whose device has no memory: kernels are made, and never run."""

    def torch_device(self, index: int) -> str:
        return "meta"


def kinds() -> Iterator[Kind]:
    device = open_device("cpu", 0)
    try:
        yield _kind("cpu", device, device.info.kv_formats, device.info.weight_dtypes)
    finally:
        device.close()
    for backend, archs in GPUS.items():
        real = importlib.import_module(f"kvrt_{backend}").TORCH
        place = Nowhere(*(getattr(real, field.name) for field in fields(real)))
        for arch in archs:
            # A GPU older than all that are named here would say no.
            with mock.patch("torch.cuda.is_bf16_supported", return_value=True):
                kernels = place.kernels(0, arch, 100)
            gpu = GpuDevice.__new__(GpuDevice)
            gpu._extensions = kernels.extensions
            yield _kind(f"{backend} ({arch})", gpu, kernels.kv_formats, kernels.weight_dtypes)


def backends(found: Sequence[Kind]) -> str:
    rows = (
        [what, f"`{kind.__name__}`", *(YES if what in each.offers else "" for each in found)]
        for kind, what in PROTOCOLS.items()
    )
    return table(["beside attention", "of `kvrt.spi`", *(each.name for each in found)], rows)


def formats(found: Sequence[Kind]) -> str:
    rows = [
        [f"`{name}`", *(YES if name in each.kv else "" for each in found)]
        for name in get_args(KVFormat)
    ]
    whole = [
        [f"weights in `{name}`", *(YES if name in each.weights else "" for each in found)]
        for name in get_args(DType)
    ]
    return table(["keys and values in", *(each.name for each in found)], [*rows, *whole])


# --- routes --------------------------------------------------------------------------------------

APIS = {
    "Ollama's": ("/api/",),
    "Anthropic's": ("/v1/messages",),
    "OpenAI's": ("/v1/chat", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/models",
                 "/v1/audio", "/v1/files", "/v1/batches"),
    "Jina's and Cohere's": ("/rerank", "/v1/rerank", "/v2/rerank"),
    "vLLM's": ("/tokenize", "/detokenize", "/v1/load_lora", "/v1/unload_lora", "/health",
               "/version", "/metrics"),
}  # fmt: skip
"""How the paths of others' APIs begin."""


def routes() -> str:
    with Runtime("tiny", backend="cpu", memory_limit="64MiB") as runtime:
        served = asyncio.run(_routes(runtime))
    methods: dict[str, list[str]] = {}
    for method, path in sorted(served):
        methods.setdefault(path, []).append(method)
    bare = set(BARE.values())
    rows: list[list[str]] = []
    for api in (*APIS, "its own"):
        for path, named in methods.items():
            if path in bare or _api(path) != api:
                continue
            also = BARE.get(path, "")
            rows.append([f"`{path}`", ", ".join(named), f"`{also}`" if also else "", api])
    return table(["path", "by", "also at", "API"], rows)


def _api(path: str) -> str:
    if path.startswith("/tokens/"):
        return "its own"
    return next((api for api, begins in APIS.items() if path.startswith(begins)), "its own")


async def _routes(runtime: Runtime) -> set[tuple[str, str]]:
    service = Service(AsyncRuntime(runtime), ServerConfig())
    found: set[tuple[str, str]] = set()
    try:
        for route in make_app(service).routes:
            if isinstance(route, WebSocketRoute):
                found.add(("WebSocket", route.path))
            elif isinstance(route, Route):
                found |= {(each, route.path) for each in route.methods or () if each != "HEAD"}
    finally:
        service.close()
    return found


def page() -> str:
    found = list(kinds())
    parts = {
        "Families of decoders": (
            "By the name in `config.json`. What is said of a family is so in a model of it that a"
            " test has; [models.md](models.md) has more.", families()),
        "Backends": (
            "All have virtual memory, copies and paged attention. What a device does not offer is"
            " computed by torch's operators there, which may be slower.", backends(found)),
        "Formats": (
            "[kv-formats.md](kv-formats.md) says what they are worth. Weights that are codes are in"
            " [quantised.md](quantised.md).", formats(found)),
        "Routes of `kvrt serve`": (
            "[serve.md](serve.md) says what each does. By WebSocket, many requests go over one"
            " connection.", routes()),
    }  # fmt: skip
    texts = (f"\n## {title}\n\n{text}\n\n{rows}" for title, (text, rows) in parts.items())
    return HEAD + "".join(texts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
