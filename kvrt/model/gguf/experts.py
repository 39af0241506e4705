"""The experts of a GGUF file's layers, by its keys and by which tensors there are."""

from dataclasses import replace

from kvrt.model.families.mixtures import MAX_EXPERTS, MAX_WIDTH
from kvrt.model.files.jsonfile import Fields
from kvrt.model.gguf.architectures import Architecture
from kvrt.model.gguf.files import GGUF
from kvrt.model.spec import ExpertSpec
from kvrt.spi import Router
from kvrt.spi.experts import Score

ROUTER = "blk.{}.ffn_gate_inp.weight"
SHARED = "ffn_up_shexp.weight"


def read_experts(gguf: GGUF, fields: Fields, architecture: Architecture) -> ExpertSpec | None:
    """The experts that a file's keys describe, or None.

    Raises:
        ModelError: the architecture is none that kvrt knows with experts, or a key is out of range.
    """
    if not (fields.has("expert_count") and fields.integer("expert_count", 0, MAX_EXPERTS)):
        return None
    if architecture.router is None:
        raise fields.error(
            "expert_count", "says that layers are mixtures of experts, which is not supported"
        )
    count = fields.integer("expert_count", 1, MAX_EXPERTS)
    tensors = {
        name.split(".", 2)[-1]: entry
        for name, (_, entry) in gguf.tensors.items()
        if name.startswith("blk.")
    }
    shared = "ffn_up.weight" if architecture.beside else SHARED
    return ExpertSpec(
        count,
        fields.integer(
            "expert_feed_forward_length",
            1,
            MAX_WIDTH,
            fields.integer("feed_forward_length", 1, MAX_WIDTH),
        ),
        _router(fields, architecture.router, count),
        router_bias="ffn_gate_inp.bias" in tensors,
        correction="exp_probs_b.bias" in tensors,
        activation=architecture.expert_activation,
        bias="ffn_down_exps.bias" in tensors,
        limit=architecture.limit,
        alpha=architecture.alpha,
        shared=tensors[shared].shape[0] if shared in tensors else 0,
        beside=architecture.beside,
        shared_scale="ffn_gate_inp_shexp.weight" in tensors,
    )


def _router(fields: Fields, usual: Router, count: int) -> Router:
    groups = fields.integer("expert_group_count", 1, count, 1)
    kept = fields.integer("expert_group_used_count", 1, groups, 1)
    if count % groups:
        raise fields.error("expert_group_count", f"is {groups}, of {count} experts")
    scores: dict[int, Score] = {1: "softmax", 2: "sigmoid", 3: "chosen"}
    score = scores.get(fields.integer("expert_gating_func", 0, 3, 0), usual.score)
    return replace(
        usual,
        score=score,
        group_score="two" if score == "sigmoid" else usual.group_score,
        chosen=fields.integer("expert_used_count", 1, count // groups * kept),
        renormalise=fields.flag("expert_weights_norm", usual.renormalise),
        scale=fields.number("expert_weights_scale", 0.0, 1e6, 1.0) or 1.0,
        groups=groups,
        groups_chosen=kept,
    )
