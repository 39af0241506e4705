"""Layers with a recurrence, in GGUF files."""

from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.hybrids import MAX_DIM, MAX_HEADS, MAX_KERNEL
from kvrt.model.files.jsonfile import Fields
from kvrt.model.gguf.files import GGUF
from kvrt.model.states import GatedDelta, Recurrent, ShortConvolution, StateSpace

FILTERS = ("blk.{}.shortconv.conv.weight", "blk.{}.ssm_conv1d.weight")
ROTATED = "rope.scaling.finetuned"
"""Says whether the layers that attend are rotated, of models with state spaces."""


def recurrent_layers(gguf: GGUF, layers: int) -> list[bool]:
    """Of each layer, whether it has a recurrence: there are filters for it."""
    return [
        any(filters.format(layer) in gguf.tensors for filters in FILTERS) for layer in range(layers)
    ]


def read_recurrence(
    gguf: GGUF, fields: Fields, recurrent: list[bool], *, tiled: bool
) -> Recurrent | None:
    """What such layers compute; None: there are none.

    Args:
        tiled: value heads take the keys in turns.

    Raises:
        ModelError: a key is missing or out of range, or no layer attends.
    """
    if not any(recurrent):
        return None
    if all(recurrent):
        raise fields.error("attention.head_count_kv", "has no layer that attends")
    first = f"blk.{recurrent.index(True)}."
    if f"{first}shortconv.conv.weight" in gguf.tensors:
        return ShortConvolution(
            fields.integer("embedding_length", 1, MAX_WIDTH),
            fields.integer("shortconv.l_cache", 2, MAX_KERNEL),
            f"{first}shortconv.conv.bias" in gguf.tensors,
        )
    keys = fields.integer("ssm.group_count", 1, MAX_HEADS)
    heads = fields.integer("ssm.time_step_rank", 1, MAX_HEADS)
    width = fields.integer("ssm.inner_size", 1, MAX_WIDTH)
    if heads % keys or width % heads:
        rule = f"is {heads}: no multiple of {keys} groups, or {width} is none of it"
        raise fields.error("ssm.time_step_rank", rule)
    state = fields.integer("ssm.state_size", 1, MAX_DIM)
    kernel = fields.integer("ssm.conv_kernel", 2, MAX_KERNEL)
    if f"{first}ssm_d" not in gguf.tensors:
        return GatedDelta(keys, heads, state, width // heads, kernel, tiled=tiled)
    if fields.flag(ROTATED, False):
        raise fields.error(ROTATED, "says that heads are rotated, which is not supported here")
    return StateSpace(
        keys,
        heads,
        state,
        width // heads,
        kernel,
        bias=f"{first}ssm_in.bias" in gguf.tensors,
        out_bias=f"{first}ssm_out.bias" in gguf.tensors,
        conv_bias=f"{first}ssm_conv1d.bias" in gguf.tensors,
        gating="normed" if f"{first}ssm_norm.weight" in gguf.tensors else "only",
    )
