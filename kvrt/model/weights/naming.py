"""What a name of a tensor is, and what the names of many families have in common."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

RowOrder = Literal["", "pairs", "less_one", "turns", "heads", "absorbed", "logged"]
"""``pairs``: each head's rows are in pairs, (i, i + rotated/2) beside each other; ``less_one``: of
norm weights, 1 is taken off; ``turns``: those of gate and of up take turns; ``heads``: those of a
head are together, of all its parts in turn (`rows.rows_of`); ``absorbed``: of each head in turn,
those that make its key of a latent, which are turned, and those that make its value; ``logged``:
of numbers below 0, which are the decoder's e to the, negated."""


class Name(NamedTuple):
    """A tensor's names, without ``.weight`` or ``.bias``; ``{}`` stands for the layer's number.

    A second one stands for the number of an expert. Files may have those of all experts in one
    tensor, whose name is that without the number.

    Args:
        file: in safetensors files.
        gguf: in GGUF files.
        order: how its rows lie in safetensors files.
        columns: in safetensors files, what are rows of a matrix are its columns.
        bare: in safetensors files, nothing is added to the name.
        also: another name that some safetensors files have.
    """

    file: str
    gguf: str
    order: RowOrder = ""
    columns: bool = False
    bare: bool = False
    also: str = ""


Naming = Mapping[str, Name]
"""By the tensor's part in the decoder; see `weights.weights_of`."""


def layer(name: str, gguf: str, order: RowOrder = "", also: str = "") -> Name:
    other = f"model.layers.{{}}.{also}" if also else ""
    return Name(f"model.layers.{{}}.{name}", f"blk.{{}}.{gguf}", order, also=other)


def without(naming: Naming, *parts: str) -> Naming:
    return {part: name for part, name in naming.items() if part not in parts}


def less_one(naming: Naming) -> Naming:
    return {
        part: name._replace(order="less_one")
        if part.endswith("norm") and part != "mixer_norm"
        else name
        for part, name in naming.items()
    }


PROJECTIONS = "gate_proj", "up_proj", "down_proj"

LLAMA: Naming = {
    "embedding": Name("model.embed_tokens", "token_embd"),
    "attention_norm": layer("input_layernorm", "attn_norm"),
    "q": layer("self_attn.q_proj", "attn_q"),
    "k": layer("self_attn.k_proj", "attn_k"),
    "v": layer("self_attn.v_proj", "attn_v"),
    "q_norm": layer("self_attn.q_norm", "attn_q_norm"),
    "k_norm": layer("self_attn.k_norm", "attn_k_norm"),
    "o": layer("self_attn.o_proj", "attn_output"),
    "mlp_norm": layer("post_attention_layernorm", "ffn_norm"),
    "gate": layer("mlp.gate_proj", "ffn_gate"),
    "up": layer("mlp.up_proj", "ffn_up"),
    "down": layer("mlp.down_proj", "ffn_down"),
    "token_norm": layer("enorm", "nextn.enorm"),
    "state_norm": layer("hnorm", "nextn.hnorm"),
    "joined": layer("eh_proj", "nextn.eh_proj"),
    "predicted_norm": layer("shared_head.norm", "nextn.shared_head_norm"),
    "final_norm": Name("model.norm", "output_norm"),
    "head": Name("lm_head", "output"),
}

PAIRED: Naming = {
    **LLAMA,
    "q": LLAMA["q"]._replace(order="pairs"),
    "k": LLAMA["k"]._replace(order="pairs"),
}


def experts(block: str, *, router: str = "gate", of: tuple[str, str, str] = PROJECTIONS) -> Naming:
    """A mixture of experts beside Llama's other tensors.

    Args:
        block: what holds it.
        router: its name there.
        of: the names of an expert's gate, up and down.
    """
    gate, up, down = (f"{block}.experts.{{}}.{name}" for name in of)
    return {
        **LLAMA,
        "router": layer(f"{block}.{router}", "ffn_gate_inp"),
        "expert_gate": layer(gate, "ffn_gate_exps.{}"),
        "expert_up": layer(up, "ffn_up_exps.{}"),
        "expert_down": layer(down, "ffn_down_exps.{}"),
    }


def correction(block: str) -> Name:
    """What is added to the experts' scores for their choice."""
    name = layer(f"{block}.e_score_correction_bias", "exp_probs_b")
    return name._replace(bare=True)


def shared(block: str) -> Naming:
    """What all tokens have besides."""
    gate, up, down = PROJECTIONS
    return {
        "shared_gate": layer(f"{block}.{gate}", "ffn_gate_shexp"),
        "shared_up": layer(f"{block}.{up}", "ffn_up_shexp"),
        "shared_down": layer(f"{block}.{down}", "ffn_down_shexp"),
    }


QWEN2_MOE: Naming = {
    **experts("mlp"),
    **shared("mlp.shared_expert"),
    "shared_scale": layer("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
}
