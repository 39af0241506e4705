"""What is so in all models of a family: the fields of the rows in `kvrt.model.families`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvrt.model.families.windows import Layers, plain_layers
from kvrt.model.files.jsonfile import Fields
from kvrt.model.spec import ExpertSpec, LatentSpec, MLPActivation, RopeSpec

MAX_WIDTH = 1 << 20
ATTENTION_BIAS = "attention_bias"
LAYER_NORM = "layer_norm_eps"


def _no_scales(fields: Fields) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True)
class Family:
    """What is so in all models of a family.

    Args:
        model_type: its name where ``architectures`` names none.
        layers: reads the layers' windows and rotation.
        scales: reads the numbers of `ModelSpec` that end in scale or softcap, and switches that a
            field says.
        width: reads that of the feed-forward layers; None: ``intermediate_size`` is it.
        qkv_bias, o_bias, mlp_bias: whether there are such biases, or the field that says so.
        eps: the field that `norm_eps` is in.
        activation: the field that says it.
        own_activation: one that no other family has.
        theta: the default of ``rope_theta``.
        local_theta: the layers with a window have a rotation of their own, of this base.
        stretched: ``max_position_embeddings`` is how far linear scaling reaches, not the length of
            training.
        partial: the default of ``partial_rotary_factor``; None: whole heads are rotated.
        stretched_base: ``alpha`` of dynamic scaling makes the base larger, whatever the length.
        learned: positions are learned, and no layer is rotated.
        ropes: reads the rotations, given the width of a head; None: as of most.
        within: a field that says how long a context may be, beside what else says it.
        wide: the feed-forward layer is so many times as wide as the stream where no field says.
        renamed: other names that fields have in its files, and ours.
        defaults: of other fields, where the file does not have them.
        refused: fields with values other than these say what is not supported.
        switches: what else of `ModelSpec` is the same in all of them.
        mixture: reads the experts of layers, and which layers have them; None: none has.
        latent: reads how keys and values are made of latents; None: they are not.
        predictors: a field that counts the layers that predict further tokens, and its default;
            None: there are none.
    """

    model_type: str
    layers: Layers = plain_layers
    scales: Callable[[Fields], dict[str, Any]] = _no_scales
    width: Callable[[Fields], int] | None = None
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    eps: str = "rms_norm_eps"
    activation: str = "hidden_act"
    own_activation: MLPActivation | None = None
    theta: float = 10_000.0
    local_theta: float | None = None
    stretched: bool = False
    partial: float | None = None
    stretched_base: bool = False
    learned: bool = False
    ropes: Callable[[Fields, int], tuple[RopeSpec, ...]] | None = None
    within: str = ""
    wide: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, Any] = field(default_factory=dict)
    switches: Mapping[str, Any] = field(default_factory=dict)
    mixture: Callable[[Fields, int], tuple[ExpertSpec | None, list[bool]]] | None = None
    latent: Callable[[Fields], LatentSpec] | None = None
    predictors: tuple[str, int] | None = None
