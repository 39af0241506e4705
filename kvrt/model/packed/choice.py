"""Which weights stay codes: those that a device multiplies."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import xxhash

from kvrt.errors import ConfigError
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.checkpoint.header import TensorEntry
from kvrt.model.files.jsonfile import few
from kvrt.model.packed.ggml import TYPES
from kvrt.model.packed.kept import KeptWeights
from kvrt.model.packed.method import Method
from kvrt.model.packed.quantize import FORMATS, Quantize, formats_for
from kvrt.model.packed.tensors import format_of
from kvrt.model.spec import ModelSpec
from kvrt.model.weights import arena
from kvrt.model.weights.weights import NOTHING_PACKED, Packing, weights_of
from kvrt.spi import Device, DType, PackedMatrices, WeightFormat
from kvrt.units import format_bytes

SAMPLE = 100, 160
"""Rows and columns of a matrix that shows how a device lays matrices out."""

log = logging.getLogger(__name__)


def quantizing(quantize: Quantize, spec: ModelSpec, device: Device) -> Packing:
    """Every matrix made into codes.

    Raises:
        ConfigError: the device does not multiply them.
    """
    products = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    formats = formats_for(spec, quantize)
    if products is None or not all(map(products.multiplies, formats.values())):
        has = [] if products is None else _multiplied(products)
        instead = f"use {' or '.join(has)}" if has else "leave it out, use --activations int8"
        raise ConfigError(
            f"quantize {quantize}: {device.info.backend} has no products with such weights",
            fix=f"{instead}, or another backend: kvrt doctor lists them",
        )
    packing = _whole_weights(spec, Packing(formats, products))
    left = [weight.parts[0].name for weight in weights_of(spec) if weight.packable]
    if left := [name for name in left if name not in packing.formats]:
        log.warning("rows are no multiple of 32, so these are kept as floats: %s", few(left))
    return packing


def kept_weights(
    folder: Path, spec: ModelSpec, dtype: DType, packing: Packing, device: Device
) -> KeptWeights:
    """The files for a model's arena as it is packed for a device.

    How a device lays matrices out is its own business, and may change with its version, or where
    it runs. So a small matrix of each format is laid out, and its bytes say it.
    """
    assert packing.products is not None
    samples = []
    for format in sorted(set(packing.formats.values()), key=repr):
        plain = np.random.default_rng(0).integers(
            0, 256, (SAMPLE[0], format.row_bytes(SAMPLE[1])), np.uint8
        )
        nbytes = packing.products.nbytes(format, *SAMPLE)
        into = arena.allocate(nbytes, device.info.torch_device).zero_()
        packing.products.pack(format, torch.from_numpy(plain), SAMPLE[1], into)
        samples.append(xxhash.xxh3_128_hexdigest(into.cpu().numpy().data))
    by = (version("kvrt"), device.info.backend, device.info.arch)
    return KeptWeights(folder, repr((by, samples, packing.arrangement(spec, dtype))))


def _multiplied(products: PackedMatrices) -> list[str]:
    """The ways to quantise that a device has products for."""
    return [
        name
        for name, format in FORMATS.items()
        if products.multiplies(format) and products.multiplies(FORMATS["int8"])
    ]


def as_stored(checkpoint: Checkpoint, device: Device) -> Packing:
    """The matrices that are codes in the checkpoint, as far as the device multiplies them."""
    products = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    if products is None:
        return NOTHING_PACKED
    stored = {
        name: TYPES[entry.dtype].format
        for name, (_, entry) in checkpoint.tensors.items()
        if entry.dtype in TYPES
    }
    method = checkpoint.method
    if method is not None and method.stays:
        for weight in weights_of(checkpoint.spec):
            for part in weight.parts:
                if part.name in checkpoint.matrices:
                    ends = checkpoint.matrices[part.name]
                    format = format_of(method, ends, checkpoint.tensors)
                    if format.fits(part.shape[1]):
                        stored[part.name] = format
    formats = {name: kept for name, kept in stored.items() if products.multiplies(kept)}
    return _whole_weights(checkpoint.spec, Packing(formats, products))


def as_announced(spec: ModelSpec, method: Method, device: Device) -> Packing:
    """The matrices that would be codes, of weights that are not there: all those of layers, as a
    method keeps them, as far as the device multiplies them."""
    products = device.extension(PackedMatrices)  # type: ignore[type-abstract]
    format = method.format("F16")
    if products is None or not method.stays or not products.multiplies(format):
        return NOTHING_PACKED
    formats = {
        part.name: format
        for weight in weights_of(spec)
        for part in weight.parts
        if weight.layer is not None and weight.packable and format.fits(part.shape[1])
    }
    return _whole_weights(spec, Packing(formats, products))


def _whole_weights(spec: ModelSpec, packing: Packing) -> Packing:
    """Without parts of weights that are kept as floats for another part's sake."""
    formats: dict[str, WeightFormat] = {}
    for weight in weights_of(spec):
        found = packing.formats_of(weight)
        formats.update(zip((part.name for part in weight.parts), found, strict=False))
    return Packing(formats, packing.products) if formats else NOTHING_PACKED


def notes_on(checkpoint: Checkpoint, kept: Mapping[str, WeightFormat]) -> Iterator[str]:
    """What a user may want to know of packed weights: how many do not stay what they are."""
    counts: Counter[str] = Counter()
    nbytes = 0
    for name, entries in _packed(checkpoint).items():
        if name not in kept:
            kind = entries[0].dtype if entries[0].dtype in TYPES else "quantised"
            counts[kind] += 1
            nbytes += sum(entry.end - entry.start for entry in entries)
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        size = format_bytes(nbytes)
        yield f"packed matrices of {size} ({kinds}) are unpacked as they are loaded"


def _packed(checkpoint: Checkpoint) -> dict[str, list[TensorEntry]]:
    """The matrices that are codes, and the tensors that they are."""
    found = {
        name: [entry] for name, (_, entry) in checkpoint.tensors.items() if entry.dtype in TYPES
    }
    for name, ends in checkpoint.matrices.items():
        found[name] = [checkpoint.tensors[each][1] for each in ends.values()]
    return found
