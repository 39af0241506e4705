"""What a model becomes on a device, before any memory is taken: the dtype and codes of its weights,
their bytes, and how long a context can be."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kvrt.errors import ConfigError, ModelError
from kvrt.model.checkpoint.checkpoint import Checkpoint
from kvrt.model.decoder.rope import for_context
from kvrt.model.offload.forms import Form, forms_within
from kvrt.model.packed.choice import as_announced, as_stored, quantizing
from kvrt.model.packed.method import Method
from kvrt.model.packed.quantize import Quantize
from kvrt.model.source import Source
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import NOTHING_PACKED, Packing, weight_bytes, weights_of
from kvrt.spi import Capability, Device, DType


def parameters(spec: ModelSpec) -> int:
    """How many numbers the weights of a model are."""
    return sum(part.numel for weight in weights_of(spec) for part in weight.parts)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a model.

    Args:
        spec: its shape, as its weights have it, rotated for contexts of `positions`.
        dtype: of its matrices in memory, those that are not codes.
        packing: those that are.
        positions: the longest prompt and output together, in tokens.
        forms: of experts that are brought as needed.
    """

    spec: ModelSpec
    dtype: DType
    packing: Packing
    positions: int
    forms: tuple[Form, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return parameters(self.spec)

    @property
    def parameters_of_a_token(self) -> int:
        """How many of them a token is computed with: of experts, those that it chooses."""
        experts = self.spec.experts
        if experts is None:
            return self.parameters
        others = range(experts.router.chosen, experts.count)
        return self.parameters - sum(
            part.numel
            for weight in weights_of(self.spec)
            for part in weight.parts
            if part.expert in others
        )

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        places = sum(form.nbytes for form in self.forms)
        return weight_bytes(self.spec, self.dtype, self.packing) + places


def choose(
    source: Source,
    checkpoint: Checkpoint | None,
    device: Device,
    *,
    dtype: DType | Literal["auto"] = "auto",
    quantize: Quantize | None = None,
    max_model_len: int | None = None,
    offload_experts: int | None = None,
    method: Method | None = None,
) -> Choice:
    """Choose as the device can, and as is asked for; see `load_model`.

    Args:
        checkpoint: the weights; None: there are none, and the model's own word is taken for them.
        method: how the matrices are kept of weights that are not there, if they are quantised.

    Raises:
        ConfigError: `dtype`, `quantize`, `offload_experts` or `max_model_len` cannot be used here.
    """
    spec = source.spec if checkpoint is None else checkpoint.spec
    stored = spec.dtype if checkpoint is None else checkpoint.dtype
    chosen = choose_dtype(dtype, stored, device)
    positions = choose_length(max_model_len, spec)
    ropes = (for_context(rope, spec.head_dim, positions) for rope in spec.ropes)
    spec = replace(spec, ropes=tuple(ropes))
    packing = NOTHING_PACKED
    if quantize is not None:
        packing = quantizing(quantize, spec, device)
    elif checkpoint is not None and dtype == "auto":
        packing = as_stored(checkpoint, device)
    elif method is not None and dtype == "auto":
        packing = as_announced(spec, method, device)
    if offload_experts is None:
        return Choice(spec, chosen, packing, positions)
    forms = forms_within(spec, chosen, packing, offload_experts)
    return Choice(spec, chosen, replace(packing, offloaded=True), positions, forms)


def check_shape(shape: Path, spec: ModelSpec, device: Device) -> None:
    """Raise `ModelError` if the device has no attention for heads as a model's are.

    Args:
        shape: the file that says so.
    """
    info, reason = device.info, ""
    if spec.latent is not None and Capability.VALUE_WIDTHS not in info.capabilities:
        reason = (
            "has latents, whose values are the beginning of their keys, but attention on"
            f" {info.backend} does not declare VALUE_WIDTHS"
        )
    sizes = [("head_dim", spec.head_dim), ("a latent's rank", spec.value_dim)]
    if spec.whole is not None:
        sizes.append(("global_head_dim", spec.whole.head_dim))
    for name, size in sizes:
        if info.head_dims and size not in info.head_dims:
            made = ", ".join(map(str, info.head_dims))
            reason = f"{name} is {size}, but attention on {info.backend} is made for {made}"
            break
    if reason:
        raise ModelError(
            f"{shape}: {reason}",
            fix="load another model, or look for another backend: kvrt doctor lists them",
        )


def choose_dtype(wanted: DType | Literal["auto"], stored: DType, device: Device) -> DType:
    """What matrices of a dtype become on a device.

    Raises:
        ConfigError: the device cannot use the one that is wanted.
    """
    usable = device.info.weight_dtypes
    if wanted == "auto":
        return stored if stored in usable else "float32"
    if wanted not in usable:
        raise ConfigError(
            f"dtype {wanted} cannot be used for weights on {device.info.backend}",
            fix=f"use one of {', '.join(usable)}",
        )
    return wanted


def choose_length(wanted: int | None, spec: ModelSpec) -> int:
    """The longest prompt and output together, in tokens.

    Raises:
        ConfigError: the model's context has no room for what is wanted.
    """
    if wanted is None:
        # It would also change short texts, so the stretched context must be asked for.
        depends = bool(spec.ropes) and spec.rope.depends
        return spec.rope.original_positions if depends else spec.max_positions
    if not 1 <= wanted <= spec.max_positions:
        raise ConfigError(
            f"max_model_len is {wanted}; this model's context has room for {spec.max_positions}"
            " tokens",
            fix=f"give a number from 1 to {spec.max_positions}",
        )
    return wanted
