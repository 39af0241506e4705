"""The weights of a decoder, as views of the arena that `kvrt.model.weights` has laid out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvrt.spi import Matrices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer, as views of the arena. See `kvrt.model.weights` for their shapes.

    Args:
        gate_up, down: of a layer with experts, those of what all tokens have; () if that is
            nothing.
    """

    o: "Tensor | Matrices" = ()
    qkv: "Tensor | Matrices" = ()
    gate_up: "Tensor | Matrices" = ()
    down: "Tensor | Matrices" = ()
    attention_norm: "Tensor | None" = None
    attention_norm_bias: "Tensor | None" = None
    attention_post_norm: "Tensor | None" = None
    mlp_norm: "Tensor | None" = None
    mlp_norm_bias: "Tensor | None" = None
    mlp_post_norm: "Tensor | None" = None
    q_norm: "Tensor | None" = None
    k_norm: "Tensor | None" = None
    qkv_bias: "Tensor | None" = None
    o_bias: "Tensor | None" = None
    gate_up_bias: "Tensor | None" = None
    down_bias: "Tensor | None" = None
    sinks: "Tensor | None" = None
    query_norm: "Tensor | None" = None
    q_up: "Tensor | Matrices" = ()
    latent_norm: "Tensor | None" = None
    key_up: "Tensor | None" = None
    value_up: "Tensor | None" = None
    router: "Tensor | None" = None
    router_bias: "Tensor | None" = None
    correction: "Tensor | None" = None
    expert_gate_up: "Tensor | Matrices" = ()
    expert_gate_up_bias: "Tensor | None" = None
    expert_down: "Tensor | Matrices" = ()
    expert_down_bias: "Tensor | None" = None
    shared_scale: "Tensor | None" = None
    xielu: "Tensor | None" = None
    layer_scale: "Tensor | None" = None
    router_scale: "Tensor | None" = None
    expert_scale: "Tensor | None" = None
    expert_norm: "Tensor | None" = None
    expert_post_norm: "Tensor | None" = None
    shared_post_norm: "Tensor | None" = None
    mixer_in: "Tensor | Matrices" = ()
    mixer_in_bias: "Tensor | None" = None
    conv: "Tensor | None" = None
    conv_bias: "Tensor | None" = None
    mixer_gates: "Tensor | None" = None
    mixer_norm: "Tensor | None" = None
    decay_log: "Tensor | None" = None
    decay_bias: "Tensor | None" = None
    skip: "Tensor | None" = None
    mixer_z: "Tensor | Matrices" = ()
    mixer_decay: "Tensor | None" = None
    mixer_out: "Tensor | Matrices" = ()
    mixer_out_bias: "Tensor | None" = None
    token_norm: "Tensor | None" = None
    state_norm: "Tensor | None" = None
    joined: "Tensor | Matrices" = ()
    predicted_norm: "Tensor | None" = None


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model, as views of one arena; or those of one rank, of whose matrices it has
    some rows. What other ranks alone have is () or None.

    Args:
        embedding: [vocab, hidden].
        layers: the layers, first to last.
        final_norm: float32 [hidden].
        head: [vocab, hidden]; the embedding itself where they are tied.
        nbytes: bytes of the arena.
        predictor: of `ModelSpec.predictor`, if there is one.
        final_norm_bias: float32 [hidden], if it has one.
        head_bias: float32 [vocab], if there is one.
        positions: float32 [positions, hidden], added to embedded tokens, if there are such.
    """

    embedding: "Tensor | Matrices"
    layers: tuple[LayerWeights, ...]
    final_norm: "Tensor | None"
    head: "Tensor | Matrices"
    nbytes: int
    predictor: LayerWeights | None = None
    final_norm_bias: "Tensor | None" = None
    head_bias: "Tensor | None" = None
    positions: "Tensor | None" = None

    @property
    def every_layer(self) -> tuple[LayerWeights, ...]:
        """Those of all layers, the predictor's the last."""
        return self.layers if self.predictor is None else (*self.layers, self.predictor)

    @property
    def packed(self) -> bool:
        """Whether any stays codes."""
        every = [self.embedding, self.head]
        for layer in self.every_layer:
            every.append(layer.joined)
            every += (layer.qkv, layer.q_up, layer.mixer_in, layer.o, layer.gate_up, layer.down)
            every += (layer.expert_gate_up, layer.expert_down, layer.mixer_z, layer.mixer_out)
        return any(isinstance(weight, tuple) and weight for weight in every)
