"""Which experts of a model are kept alike, and how many of them there is room for.

An expert takes any place that is made for its form: matrices of the same shape, as floats or as the
same codes. GGUF files have layers of several forms; each has places of its own, as many as its part
of the memory has room for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from kvrt.errors import ConfigError, ModelError
from kvrt.model.spec import ModelSpec
from kvrt.model.weights.weights import Packing, Weight, bytes_of, weights_of
from kvrt.spi import DType, WeightFormat
from kvrt.units import format_bytes

FIELDS = ("expert_gate_up", "expert_gate_up_bias", "expert_down", "expert_down_bias")
"""The weights that an expert has a part of."""


@dataclass(frozen=True, slots=True)
class Form:
    """Layers whose experts are kept alike.

    Args:
        layers: their numbers.
        count: experts of each.
        each: the weights of an expert, the first one of the first layer.
        places: experts that can be in memory at once.
        dtype, packing: what the weights are kept as.
    """

    layers: tuple[int, ...]
    count: int
    each: tuple[Weight, ...]
    places: int
    dtype: DType
    packing: Packing

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weights of all places, as those of one layer would lie in memory."""
        return tuple(replace(one, parts=one.parts * self.places) for one in self.each)

    @property
    def place_bytes(self) -> int:
        """Bytes of a place, at most: some share what is lost to alignment."""
        return bytes_of(self.each, self.dtype, self.packing)

    @property
    def nbytes(self) -> int:
        return bytes_of(self.weights, self.dtype, self.packing)


def of_expert(weight: Weight, expert: int, count: int) -> Weight:
    """One expert's part of a weight of `count` experts."""
    parts = len(weight.parts) // count
    return replace(weight, parts=weight.parts[expert * parts : (expert + 1) * parts])


def expert_bytes(spec: ModelSpec, dtype: DType, packing: Packing) -> tuple[int, int]:
    """What the experts of a model take: all of them, and the fewest that it runs with; (0, 0)
    if it has none."""
    if spec.experts is None:
        return 0, 0
    forms = list(_forms(spec, dtype, packing))
    least = [replace(form, places=spec.experts.router.chosen) for form in forms]
    return sum(form.nbytes for form in forms), sum(form.nbytes for form in least)


def check_offload(*, dummy: bool, quantize: str | None, model_impl: str) -> None:
    """That experts can be read as a model is loaded.

    Raises:
        ConfigError: there are no files that have them as they are kept.
    """
    if model_impl != "kvrt":
        what, fix = f"model_impl {model_impl}", "leave one of the two out"
    elif dummy:
        what, fix = "load_format dummy", "take a model with weights"
    elif quantize is not None:
        what, fix = f"quantize {quantize}", "take files that are quantised, such as a GGUF file's"
    else:
        return
    raise ConfigError(
        f"offload_experts reads experts from the model's files, and with {what} they are not there"
        " as they are used",
        fix=fix,
    )


def forms_within(spec: ModelSpec, dtype: DType, packing: Packing, budget: int) -> tuple[Form, ...]:
    """The forms of a model's experts, with places in memory of so many bytes altogether.

    Raises:
        ConfigError: there are no experts, or not even those of one token have room.
        ModelError: experts of one layer are kept in different ways.
    """
    if spec.experts is None:
        raise ConfigError(
            "offload_experts: this model has no experts", fix="leave offload_experts out"
        )
    all_bytes, least = expert_bytes(spec, dtype, packing)
    if budget < least:
        raise ConfigError(
            f"offload_experts is {format_bytes(budget)}: the {spec.experts.router.chosen} experts"
            f" that a token has of a layer take {format_bytes(least)}",
            fix=f"give at least {least}; all experts take {all_bytes} bytes",
        )
    spare = budget - least
    forms = []
    for form in _forms(spec, dtype, packing):
        share = spare * form.nbytes // all_bytes // form.place_bytes
        places = min(form.places, spec.experts.router.chosen + share)
        forms.append(replace(form, places=places))
    return tuple(forms)


def _forms(spec: ModelSpec, dtype: DType, packing: Packing) -> Iterator[Form]:
    """Each with places for all of its experts."""
    assert spec.experts is not None
    count = spec.experts.count
    layers: dict[int, list[Weight]] = {}
    for weight in weights_of(spec):
        if weight.layer is not None and weight.field in FIELDS:
            layers.setdefault(weight.layer, []).append(weight)
    alike: dict[tuple[tuple[WeightFormat, ...], ...], list[int]] = {}
    for layer, weights in layers.items():
        formats = tuple(_format(weight, count, packing) for weight in weights)
        alike.setdefault(formats, []).append(layer)
    for numbers in alike.values():
        each = tuple(of_expert(weight, 0, count) for weight in layers[numbers[0]])
        yield Form(tuple(numbers), count, each, len(numbers) * count, dtype, packing)


def _format(weight: Weight, count: int, packing: Packing) -> tuple[WeightFormat, ...]:
    """Those of an expert's parts, which all experts of the layer have alike."""
    formats = packing.formats_of(weight)
    each: Sequence[WeightFormat] = formats[: len(formats) // count]
    if formats != tuple(each) * count:
        raise ModelError(
            f"the experts of layer {weight.layer} are kept in different formats",
            fix="leave offload_experts out, or give --dtype",
        )
    return tuple(each)
