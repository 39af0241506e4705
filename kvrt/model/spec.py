"""What a model is: its shape, as values, with no weights and no torch."""

from dataclasses import dataclass
from typing import Literal

from kvrt.spi import Activation, DType

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "listed"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv 2104.09864) and how it is stretched for long contexts.

    Args:
        theta: the base of the wavelengths.
        kind: ``default`` as trained; ``linear`` positions divided by `factor`; ``dynamic`` a base
            that grows with the context (`rope.for_context`); ``llama3`` only long wavelengths
            divided, with a smooth passage; ``yarn`` as in arXiv 2309.00071; ``listed`` each
            frequency divided by its own number, of `divisors`.
        factor: how much longer the context is than in training.
        original_positions: positions in training (all but default).
        low_freq_factor: wavelengths above original / low are divided by `factor` (llama3).
        high_freq_factor: wavelengths below original / high are kept (llama3).
        beta_fast: rotations within the original context above which a wavelength is kept (yarn).
        beta_slow: rotations below which a wavelength is divided by `factor` (yarn).
        attention_factor: multiplies cos and sin (yarn).
        truncate: round the ends of yarn's ramp to whole dimensions.
        divisors: one for each pair of a head (listed).
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()

    @property
    def stretched_positions(self) -> int:
        """The context that the stretching reaches; 0 where it says nothing of it.

        With linear, dynamic and yarn, a config.json keeps the length of training, and what the
        model serves is `factor` times that. With llama3 and listed it has the stretched length.
        """
        stretched = self.kind not in ("llama3", "listed")
        return int(self.factor * self.original_positions) if stretched else 0


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ between layers.

    Args:
        window: a token sees only the last `window` positions, its own included; 0 = all.
        rope: whether queries and keys are rotated.
    """

    window: int = 0
    rope: bool = True


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder-only transformer.

    Args:
        architecture: the name its config.json gives it, e.g. ``LlamaForCausalLM``.
        vocab: rows of the embedding.
        hidden: width of the residual stream.
        intermediate: width of the gated feed-forward layer.
        heads: query heads; a multiple of `kv_heads`.
        kv_heads: key and value heads.
        head_dim: width of a head; even.
        layers: one entry for each layer.
        max_positions: the longest context the model is meant for, in tokens.
        norm_eps: added to the mean square in every RMS norm.
        activation: of the feed-forward gate.
        rope: the rotary embedding of the layers that have one.
        tied: the embedding is also the output matrix.
        qkv_bias: the query, key and value projections have biases.
        o_bias: the attention's output projection has a bias.
        mlp_bias: the three feed-forward projections have biases.
        qk_norm: each query and key head is RMS-normed before rotation.
        bos: the token that begins a text, if config.json names one.
        eos: the tokens that end one, as config.json names them.
        dtype: of the weights, as config.json has it; the files themselves have the last word.
    """

    architecture: str
    vocab: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    max_positions: int
    norm_eps: float
    activation: Activation
    rope: RopeSpec
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()
    dtype: DType = "float32"

    @property
    def by_window(self) -> dict[int, list[int]]:
        """The numbers of the layers that see as far back, by how far: first those that see all."""
        windows = sorted({layer.window for layer in self.layers})
        return {
            window: [at for at, layer in enumerate(self.layers) if layer.window == window]
            for window in windows
        }
