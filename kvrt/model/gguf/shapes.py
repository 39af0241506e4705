"""The layers of a GGUF file whose heads have two shapes, as Gemma 4's have."""

from typing import NamedTuple

from kvrt.model.config import MAX_HEAD_DIM, MAX_HEADS
from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.files.jsonfile import Fields, shown
from kvrt.model.gguf.files import GGUF
from kvrt.model.spec import LayerSpec, RopeSpec, WholeSpec

NEVER = 1e29
"""A divisor of a frequency that is larger than this leaves the pair as it is."""


class Shapes(NamedTuple):
    """Of layers with a window `kv_heads` and `head_dim`, of the others `whole`; their rotations are
    in the order of `ModelSpec.ropes`."""

    kv_heads: int
    head_dim: int
    whole: WholeSpec
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]


def read_shapes(gguf: GGUF, fields: Fields, count: int, divisors: tuple[float, ...]) -> Shapes:
    """The shapes that a file's keys describe.

    Args:
        count: of layers.
        divisors: of the frequencies of layers that see all.

    Raises:
        ModelError: a key is missing or out of range, or says what is not supported.
    """
    for name in ("attention.shared_kv_layers", "embedding_length_per_layer_input"):
        if (number := fields.integer(name, 0, MAX_HEADS * MAX_HEAD_DIM, 0)) != 0:
            raise fields.error(name, f"is {number}; supported is 0")
    name = "attention.sliding_window_pattern"
    local = fields.items(name, bool)
    if len(local) != count or all(local) or not any(local):
        raise fields.error(name, f"should say of {count} layers which have a window: some have")
    name = "attention.head_count_kv"
    if fields.holds_list(name):
        heads = fields.items(name, int)
    else:
        heads = [fields.integer(name, 1, MAX_HEADS)] * count
    own = [
        {number for number, it_is in zip(heads, local, strict=False) if it_is is kind}
        for kind in (True, False)
    ]
    if len(heads) != count or any(len(each) != 1 for each in own) or min(heads) < 1:
        raise fields.error(name, f"is {shown(heads)}, not one number for each kind of layers")
    of_local, of_whole = (each.pop() for each in own)
    dims = [fields.integer(f"attention.key_length{end}", 2, MAX_HEAD_DIM) for end in ("_swa", "")]
    first = local.index(False)
    whole = WholeSpec(of_whole, dims[1], f"blk.{first}.attn_v.weight" in gguf.tensors)
    window = fields.integer("attention.sliding_window", 1, MAX_POSITIONS)
    turned = sum(each < NEVER for each in divisors) if divisors else dims[1] // 2
    theta = fields.number("rope.freq_base", 1.0, 1e15)
    return Shapes(
        of_local,
        dims[0],
        whole,
        tuple(LayerSpec(window, 1) if kind else LayerSpec() for kind in local),
        (
            RopeSpec(theta, "proportional", turned=turned, dims=dims[1]),
            RopeSpec(fields.number("rope.freq_base_swa", 1.0, 1e15, 10_000.0), dims=dims[0]),
        ),
    )
