"""The architectures of GGUF files, as rows of facts: what the name says that no key does."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvrt.model.spec import MLPActivation
from kvrt.spi import ExpertActivation, Router


@dataclass(frozen=True, slots=True)
class Architecture:
    """What is so in all files of an architecture.

    Args:
        family: whose names and switches it has; see `kvrt.model.families`.
        paired: rows of queries and keys are in pairs, (i, i + dims/2) beside each other.
        windows: a window is that of all layers; elsewhere no key says which layers have it.
        unrotated: every so many layers, one has no rotation; 0: all have.
        mixed: if there is a window: every so many layers, one sees all; 0: see `windows`.
        local_theta: of the base that layers with a window have where no key says another; 0: that
            of the others; None: they have the same rotation.
        whole_rotated: those that see all are rotated, too.
        activation: of the feed-forward layer.
        divides_logits: by ``logit_scale``.
        odd: a model of so many layers has heads that are scaled by hidden / heads.
        also: other families whose models are of this architecture.
        router: how experts are chosen where no key says otherwise; None: there are none.
        mixture: the family of those with experts, if it is another.
        naming: of `kvrt.model.weights.names`, where it is not the family's.
        naming_of_experts: likewise, of files with experts.
        normed_heads: queries and keys are normed where there are weights for it.
        truncate: see `kvrt.model.spec.RopeSpec`.
        shapes: layers that see all have heads of another shape.
        tiled: value heads of recurrent layers take the keys in turns.
        beside: experts stand beside a dense layer (`kvrt.model.spec.ExpertSpec`).
        expert_activation: of experts, with its limit and alpha.
    """

    family: str
    paired: bool = False
    windows: bool = False
    unrotated: int = 0
    mixed: int = 0
    local_theta: float | None = None
    whole_rotated: bool = True
    activation: MLPActivation = "silu"
    divides_logits: bool = False
    odd: int = 0
    also: tuple[str, ...] = ()
    router: Router | None = None
    mixture: str = ""
    naming: str = ""
    naming_of_experts: str = ""
    normed_heads: bool = False
    truncate: bool = True
    expert_activation: ExpertActivation = "silu"
    limit: float = 0.0
    alpha: float = 1.0
    shapes: bool = False
    beside: bool = False
    tiled: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM",
        paired=True,
        windows=True,
        also=("MistralForCausalLM",),
        router=Router("softmax", 1, renormalise=True),
        mixture="MixtralForCausalLM",
    ),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", router=Router("softmax", 1)),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", router=Router("softmax", 1, renormalise=True)),
    "olmoe": Architecture("OlmoeForCausalLM", router=Router("softmax", 1)),
    "granitemoe": Architecture(
        "GraniteMoeForCausalLM",
        paired=True,
        divides_logits=True,
        router=Router("chosen", 1),
        naming="granite_moe_gguf",
    ),
    "gpt-oss": Architecture(
        "GptOssForCausalLM",
        mixed=2,
        router=Router("chosen", 1),
        expert_activation="clamped",
        limit=7.0,
        alpha=1.702,
        naming="gpt_oss_gguf",
        truncate=False,
    ),
    "glm4moe": Architecture("Glm4MoeForCausalLM", router=Router("sigmoid", 1), normed_heads=True),
    "dots1": Architecture("Dots1ForCausalLM", router=Router("sigmoid", 1)),
    "deepseek2": Architecture(
        "DeepseekV3ForCausalLM",
        paired=True,
        also=("DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM", "YoutuForCausalLM"),
        router=Router("softmax", 1, group_score="best"),
        naming="latents_gguf",
    ),
    "minimax-m2": Architecture(
        "MiniMaxM2ForCausalLM", router=Router("sigmoid", 1, renormalise=True)
    ),
    "ernie4_5-moe": Architecture(
        "Ernie4_5_MoeForCausalLM",
        paired=True,
        router=Router("softmax", 1, renormalise=True, least=1e-12),
    ),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen2vl": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM"),
    "qwen3vl": Architecture("Qwen3ForCausalLM"),
    "smollm3": Architecture("SmolLM3ForCausalLM", paired=True, unrotated=4),
    "gemma": Architecture("GemmaForCausalLM", activation="gelu_tanh"),
    "gemma2": Architecture("Gemma2ForCausalLM", mixed=2, activation="gelu_tanh", odd=46),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", mixed=6, local_theta=10_000.0, activation="gelu_tanh", odd=62
    ),
    "gemma4": Architecture(
        "Gemma4ForCausalLM",
        activation="gelu_tanh",
        router=Router("softmax", 1, renormalise=True),
        expert_activation="gelu_tanh",
        naming_of_experts="gemma4_moe",
        naming="gemma4",
        shapes=True,
        beside=True,
    ),
    "granite": Architecture("GraniteForCausalLM", paired=True, divides_logits=True),
    "phi3": Architecture("Phi3ForCausalLM", windows=True),
    "olmo2": Architecture("Olmo2ForCausalLM", mixed=4, local_theta=0.0, also=("Olmo3ForCausalLM",)),
    "glm4": Architecture("Glm4ForCausalLM", paired=True),
    "command-r": Architecture("CohereForCausalLM", paired=True),
    "cohere2": Architecture("Cohere2ForCausalLM", paired=True, mixed=4, whole_rotated=False),
    "exaone4": Architecture("Exaone4ForCausalLM", mixed=4, whole_rotated=False),
    "seed_oss": Architecture("SeedOssForCausalLM"),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", paired=True),
    "arcee": Architecture("ArceeForCausalLM", paired=True, activation="relu2"),
    "nemotron": Architecture("NemotronForCausalLM", activation="relu2"),
    "starcoder2": Architecture("Starcoder2ForCausalLM", windows=True, activation="gelu_tanh"),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM"),
    "phi2": Architecture("PhiForCausalLM", activation="gelu_tanh"),
    "gptneox": Architecture("GPTNeoXForCausalLM", activation="gelu"),
    "gpt2": Architecture("GPT2LMHeadModel", activation="gelu_tanh", naming="gpt2_gguf"),
    "lfm2": Architecture("Lfm2ForCausalLM"),
    "lfm2moe": Architecture("Lfm2MoeForCausalLM", router=Router("sigmoid", 1, renormalise=True)),
    "qwen3next": Architecture(
        "Qwen3NextForCausalLM",
        router=Router("softmax", 1, renormalise=True),
        naming="qwen3_next_gguf",
    ),
    "qwen35": Architecture("Qwen3_5ForCausalLM", tiled=True),
    "qwen35moe": Architecture(
        "Qwen3_5MoeForCausalLM", tiled=True, router=Router("softmax", 1, renormalise=True)
    ),
    "granitehybrid": Architecture(
        "GraniteMoeHybridForCausalLM",
        paired=True,
        divides_logits=True,
        router=Router("chosen", 1),
        naming="granite_hybrid_gguf",
    ),
    "stablelm": Architecture("StableLmForCausalLM"),
}
