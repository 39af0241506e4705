"""What a model is: its shape, as values, with no weights and no torch."""

from dataclasses import dataclass
from typing import Literal

from kvrt.model.states import MemoryGroup, Recurrent
from kvrt.model.weights.names import NAMINGS
from kvrt.spi import Activation, DType, ExpertActivation, Router

RopeKind = Literal[
    "default", "linear", "dynamic", "llama3", "yarn", "listed", "longrope", "proportional"
]
MLPActivation = Activation | Literal["gelu", "relu2", "xielu"]
NormKind = Literal["rms", "layer"]
HeadNormKind = Literal["none", "heads", "whole", "rotated", "unit"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (arXiv 2104.09864) and how it is stretched for long contexts.

    Args:
        theta: the base of the wavelengths.
        kind: ``default`` as trained; ``linear`` positions divided by `factor`; ``dynamic`` a base
            that grows with the context (`rope.for_context`); ``llama3`` only long wavelengths
            divided, with a smooth passage; ``yarn`` as in arXiv 2309.00071; ``listed`` each
            frequency divided by its own number, of `divisors`; ``longrope`` (arXiv 2402.13753) by
            those, or by `long_divisors` (`rope.for_context`); ``proportional`` leaves all but the
            first `turned` pairs as they are.
        factor: how much longer the context is than in training.
        original_positions: positions in training (all but default).
        low_freq_factor: wavelengths above original / low are divided by `factor` (llama3).
        high_freq_factor: wavelengths below original / high are kept (llama3).
        beta_fast: rotations within the original context above which a wavelength is kept (yarn).
        beta_slow: rotations below which a wavelength is divided by `factor` (yarn).
        attention_factor: multiplies cos and sin (yarn, listed, longrope).
        truncate: round the ends of yarn's ramp to whole dimensions.
        divisors: one for each pair that is rotated (listed, longrope).
        long_divisors: likewise, for contexts longer than in training (longrope).
        turned: pairs that are rotated (proportional).
        dims: of each head, so many of the first dimensions are rotated; 0: all.
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
    long_divisors: tuple[float, ...] = ()
    turned: int = 0
    dims: int = 0

    @property
    def depends(self) -> bool:
        """Whether short texts are rotated otherwise where a long context is asked for."""
        return self.kind in ("dynamic", "longrope")

    def width(self, head_dim: int) -> int:
        """How many dimensions of a head are rotated."""
        return self.dims or head_dim

    @property
    def stretched_positions(self) -> int:
        """The context that the stretching reaches; 0 where it says nothing of it.

        With linear, dynamic and yarn, a config.json keeps the length of training, and what the
        model serves is `factor` times that. With the others it has the stretched length.
        """
        stretched = self.kind not in ("llama3", "listed", "longrope", "proportional")
        return int(self.factor * self.original_positions) if stretched else 0


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ between layers.

    Args:
        window: a token sees only the last `window` positions, its own included; 0 = all.
        rope: which of the model's `ropes` rotates queries and keys; None: none does.
        experts: its feed-forward layer is a mixture of `ModelSpec.experts`.
        recurrent: in place of attention it has `ModelSpec.recurrence`.
        beside: it has both, which read the same, and what they give is added.
        mixes: it has the one or the other; without, its feed-forward layer alone.
        feeds: it has a feed-forward layer.
    """

    window: int = 0
    rope: int | None = 0
    experts: bool = False
    recurrent: bool = False
    beside: bool = False
    mixes: bool = True
    feeds: bool = True

    @property
    def attends(self) -> bool:
        """Whether it has attention."""
        return self.mixes and (self.beside or not self.recurrent)


@dataclass(frozen=True, slots=True)
class WholeSpec:
    """The heads of layers that see all, where those of layers with a window have another shape.

    Args:
        kv_heads: key and value heads.
        head_dim: width of a head.
        values: they have projections of their own; without, they are what keys are made of.
    """

    kv_heads: int
    head_dim: int
    values: bool = True


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """The experts of layers that have them, as `kvrt.spi.Experts` says, and how they are chosen.

    Args:
        count: how many a layer has.
        width: features between gate and down of each.
        router: how a token chooses them by their logits, ``router @ x``.
        router_bias: the logits have biases.
        correction: there are numbers that are added to the scores for the choice.
        activation: of their gates.
        bias: their products have biases.
        limit, alpha: of the activation ``clamped``.
        shared: features of a feed-forward layer that all tokens have besides; 0: there is none.
        shared_scale: its result is multiplied by the sigmoid of ``shared_scale @ x``.
        beside: both have norms of their own, in front and behind, and what is chosen by is the
            layer's input, normed.
        gated: they have gates; without, an expert is ``down @ act(up @ x)``, with the activation
            of the model's feed-forward layers.
        scaled_input: a token's weight multiplies what its expert reads, not what it gives; it has
            one expert.
    """

    count: int
    width: int
    router: Router
    router_bias: bool = False
    correction: bool = False
    activation: ExpertActivation = "silu"
    bias: bool = False
    limit: float = 0.0
    alpha: float = 1.0
    shared: int = 0
    shared_scale: bool = False
    beside: bool = False
    scaled_input: bool = False
    gated: bool = True


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv 2405.04434), in the absorbed form.

    The keys and values of all heads are made of one vector of each token, the latent; and each
    key ends in numbers that all heads share, which alone are rotated. Pages keep these two. What
    would make keys of the latent is applied to the query, and what makes values of it, to what a
    head reads: attention has one head of keys, whose values are its beginning.

    Args:
        rank: elements of a latent.
        rotated: of what is rotated, of each query and of the key.
        plain: of each head's query besides.
        value: of each head's value.
        query_rank: queries are made of a vector of so many; 0: of the layer's input itself.
        eps: added to the mean squares of these vectors, which are normed.
    """

    rank: int
    rotated: int
    plain: int
    value: int
    query_rank: int = 0
    eps: float = 1e-6

    @property
    def width(self) -> int:
        """Elements of a head's query, as it is before the latent's share is absorbed."""
        return self.plain + self.rotated


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder-only transformer.

    Args:
        architecture: the name its config.json gives it, e.g. ``LlamaForCausalLM``.
        vocab: rows of the embedding.
        hidden: width of the residual stream.
        intermediate: width of the feed-forward layer, where that is no mixture of experts.
        heads: query heads; a multiple of `kv_heads`.
        kv_heads: key and value heads, as pages keep them.
        head_dim: width of a key, as pages keep it; even.
        layers: one entry for each layer.
        predictor: a layer behind the last one, which guesses at the token after the next
            (`kvrt.model.decoder.predictor`); None: there is none, or it is not wanted.
        max_positions: the longest context the model is meant for, in tokens.
        norm_eps: added to the mean square, or to the variance, in every norm.
        activation: of the feed-forward layer, or of its gate; what `kvrt.spi.Activation` does not
            have is for those without: ``gelu`` by the error function, ``relu2`` the square of relu,
            ``xielu`` with learned slopes (arXiv 2411.13010).
        ropes: the rotary embeddings of the layers that have one; first that of those that see all;
            none where no layer has one.
        tied: the embedding is also the output matrix.
        qkv_bias: the query, key and value projections have biases.
        o_bias: the attention's output projection has a bias.
        mlp_bias: the three feed-forward projections have biases.
        head_bias: the output matrix has one.
        experts: of the layers whose feed-forward layers are mixtures.
        recurrence: of the layers that have none of attention.
        qk_norm: queries and keys are RMS-normed before rotation: each head, or all of a token's; or
            each head after it (rotated); or likewise without weights, where there is rotation
            (unit).
        whole: the heads of layers that see all, if they have another shape than `kv_heads` and
            `head_dim` say.
        value_norm: each head's value is RMS-normed, without weights.
        naming: which of `names.NAMINGS` its checkpoints have. It also says which norms there are.
        norm: ``rms``, or ``layer`` (arXiv 1607.06450), which takes the mean off first.
        norm_bias: norms of the layer kind have a bias.
        gated: the feed-forward layer has a gate: ``down @ (act(gate @ x) * (up @ x))``; without,
            it is ``down @ act(up @ x)``.
        parallel: the feed-forward layer reads what attention reads, and not what it adds.
        embedding_scale: multiplies the embedded tokens.
        learned_positions: to each a row of its own is added, which says where it stands.
        attention_scale: multiplies the dot products of queries and keys; 0: head_dim ** -0.5.
        attention_softcap: scores become ``softcap * tanh(score / softcap)``; 0: as they are.
        latent: keys and values are made of latents; None: they are as pages keep them.
        gated_attention: what heads attend to is multiplied by the sigmoid of gates, which are made
            as queries are.
        sinks: each query head has a learned logit (`kvrt.spi.AttentionParams.sink_logits`).
        query_beta: at position p, a query is multiplied by 1 + beta log(1 + floor(p / positions));
            0: it is not.
        query_positions: those positions.
        query_ahead: p is counted from so many on.
        query_unrotated: that is only so in layers that are not rotated.
        residual_scale: multiplies what attention and feed-forward layer add.
        attended_scale, mixed_scale, fed_scale: likewise, each what attention, a recurrence and the
            feed-forward layer add.
        gate_scale: multiplies the feed-forward layer's gate before its activation.
        logit_scale: multiplies the logits.
        logit_softcap: of the logits, likewise, after that.
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
    activation: MLPActivation
    ropes: tuple[RopeSpec, ...]
    tied: bool
    predictor: LayerSpec | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    experts: ExpertSpec | None = None
    recurrence: Recurrent | None = None
    qk_norm: HeadNormKind = "none"
    whole: WholeSpec | None = None
    value_norm: bool = False
    naming: str = "llama"
    norm: NormKind = "rms"
    norm_bias: bool = False
    gated: bool = True
    parallel: bool = False
    embedding_scale: float = 1.0
    learned_positions: bool = False
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    latent: LatentSpec | None = None
    gated_attention: bool = False
    sinks: bool = False
    query_beta: float = 0.0
    query_positions: int = 1
    query_ahead: int = 0
    query_unrotated: bool = False
    residual_scale: float = 1.0
    attended_scale: float = 1.0
    mixed_scale: float = 1.0
    fed_scale: float = 1.0
    gate_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    bos: int | None = None
    eos: tuple[int, ...] = ()
    dtype: DType = "float32"

    @property
    def post_norms(self) -> bool:
        """Whether what attention and feed-forward layer add is normed."""
        return "attention_post_norm" in NAMINGS[self.naming]

    @property
    def value_dim(self) -> int:
        """Width of a value, as pages keep it."""
        return self.latent.rank if self.latent else self.head_dim

    @property
    def attended(self) -> int:
        """Elements that attention's last product reads, of all heads."""
        return self.heads * (self.latent.value if self.latent else self.head_dim)

    def dense_width(self, layer: LayerSpec) -> int:
        """Width of what all tokens of a layer have of its feed-forward layer; 0: nothing."""
        if not layer.feeds:
            return 0
        return self.experts.shared if self.experts and layer.experts else self.intermediate

    def heads_of(self, window: int) -> tuple[int, int]:
        """Key and value heads, and their width, of the layers that see so far back."""
        if self.whole is not None and not window:
            return self.whole.kv_heads, self.whole.head_dim
        return self.kv_heads, self.head_dim

    @property
    def rope(self) -> RopeSpec:
        """The rotation that says how long a context can be."""
        return self.ropes[0]

    @property
    def every_layer(self) -> tuple[LayerSpec, ...]:
        """All layers, the predictor's the last."""
        return self.layers if self.predictor is None else (*self.layers, self.predictor)

    @property
    def branches(self) -> bool:
        """Whether a sequence's new tokens may branch: recurrences and predictors go along a
        line."""
        return self.recurrence is None and self.predictor is None

    @property
    def groups(self) -> tuple[MemoryGroup, ...]:
        """Which layers keep memory alike: those that see as far back, first those that see all;
        then those with a recurrence; and last two of the predictor: its keys and values, and of
        each token what the layers have made of it."""
        attending = [(at, one.window) for at, one in enumerate(self.layers) if one.attends]
        groups = tuple(
            MemoryGroup(tuple(at for at, seen in attending if seen == window), window)
            for window in sorted({window for _, window in attending})
        )
        if self.recurrence is not None:
            recurrent = tuple(at for at, one in enumerate(self.layers) if one.recurrent)
            groups += self.recurrence.memory(recurrent)
        if self.predictor is not None:
            behind = (len(self.layers),)
            groups += (
                MemoryGroup(behind, self.predictor.window),
                MemoryGroup(behind, 2, self.hidden),
            )
        return groups

    @property
    def own_groups(self) -> int:
        """How many of the groups are those of the layers; what is behind is the predictor's."""
        return len(self.groups) - (2 if self.predictor is not None else 0)
