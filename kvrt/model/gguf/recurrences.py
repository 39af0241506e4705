"""Layers with a recurrence, in GGUF files."""

from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.hybrids import MAX_KERNEL
from kvrt.model.files.jsonfile import Fields
from kvrt.model.gguf.files import GGUF
from kvrt.model.states import ShortConvolution

FILTERS = "blk.{}.shortconv.conv.weight"


def recurrent_layers(gguf: GGUF, layers: int) -> list[bool]:
    """Of each layer, whether it has a recurrence: there are filters for it."""
    return [FILTERS.format(layer) in gguf.tensors for layer in range(layers)]


def read_recurrence(gguf: GGUF, fields: Fields, recurrent: list[bool]) -> ShortConvolution | None:
    """What such layers compute; None: there are none.

    Raises:
        ModelError: a key is missing or out of range, or no layer attends.
    """
    if not any(recurrent):
        return None
    if all(recurrent):
        raise fields.error("attention.head_count_kv", "has no layer that attends")
    first = FILTERS.format(recurrent.index(True))
    return ShortConvolution(
        fields.integer("embedding_length", 1, MAX_WIDTH),
        fields.integer("shortconv.l_cache", 2, MAX_KERNEL),
        first.replace("weight", "bias") in gguf.tensors,
    )
