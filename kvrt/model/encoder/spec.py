"""What an encoder is, and how its config.json says it."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from kvrt.model.config import MAX_HEADS, MAX_VOCAB, UNGATED, read_dtype
from kvrt.model.encoder.families import ENCODERS
from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.rotary import MAX_POSITIONS
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, read_object, shown
from kvrt.model.spec import MLPActivation
from kvrt.spi import DType


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """The shape of an encoder (Devlin et al. 2018, arXiv 1810.04805).

    Args:
        architecture: the name that its config.json gives it.
        vocab: rows of the embedding.
        hidden: width of a token's state.
        intermediate: width of the feed-forward layer.
        heads: of attention.
        layers: how many there are.
        positions: tokens of the longest text.
        first: the row of the position embedding that a text begins with.
        kinds: rows of the embedding of token types; of texts that stand alone, only the first is
            used.
        norm_eps: added to the variance in every norm.
        activation: of the feed-forward layer.
        dtype: of the weights, as config.json has it.
        labels: how many numbers its head gives, if it has one.
    """

    architecture: str
    vocab: int
    hidden: int
    intermediate: int
    heads: int
    layers: int
    positions: int
    first: int
    kinds: int
    norm_eps: float
    activation: MLPActivation
    dtype: DType
    labels: int = 2


def read_encoder(path: Path) -> EncoderSpec:
    """The encoder that a config.json describes.

    Raises:
        ModelError: the file is missing or damaged, the architecture is not supported, or a field is
            missing or out of range. The message names the field.
    """
    fields = Fields(str(path), read_object(path))
    names = fields.items("architectures", str)
    architecture = next((name for name in names if name in ENCODERS), None)
    if architecture is None:
        wanted = ", ".join(names) or "nothing"
        near = difflib.get_close_matches(wanted, ENCODERS, n=1)
        raise fields.error(
            "architectures",
            f"names {shown(wanted)}, which is no supported encoder; these are "
            + ", ".join(ENCODERS),
            fix=f"the nearest of them is {near[0]}" if near else "",
        )
    if (kind := fields.text("position_embedding_type", "absolute")) != "absolute":
        raise fields.error("position_embedding_type", f"is {shown(kind)}; supported is absolute")
    if fields.flag("is_decoder", False):
        raise fields.error("is_decoder", "is true; supported are encoders")
    hidden = fields.integer("hidden_size", 1, MAX_WIDTH)
    heads = fields.integer("num_attention_heads", 1, MAX_HEADS)
    if hidden % heads:
        raise fields.error("num_attention_heads", f"is {heads}, which does not split {hidden}")
    vocab = fields.integer("vocab_size", 1, MAX_VOCAB)
    rows = fields.integer("max_position_embeddings", 1, MAX_POSITIONS)
    first = 0
    if ENCODERS[architecture].after_padding:
        first = fields.integer("pad_token_id", 0, vocab - 1, 1) + 1
        if first >= rows:
            raise fields.error("max_position_embeddings", f"is {rows}, and texts begin at {first}")
    activation = fields.text("hidden_act", "gelu")
    if activation not in UNGATED:
        raise fields.error(
            "hidden_act", f"is {shown(activation)}; supported are {', '.join(UNGATED)}"
        )
    return EncoderSpec(
        architecture=architecture,
        vocab=vocab,
        hidden=hidden,
        intermediate=fields.integer("intermediate_size", 1, MAX_WIDTH),
        heads=heads,
        layers=fields.integer("num_hidden_layers", 1, MAX_LAYERS),
        positions=rows - first,
        first=first,
        kinds=fields.integer("type_vocab_size", 1, MAX_VOCAB, 2),
        norm_eps=fields.number("layer_norm_eps", 0.0, 1.0, 1e-12),
        activation=UNGATED[activation],
        dtype=read_dtype(fields),
        labels=_labels(fields),
    )


def _labels(fields: Fields) -> int:
    """As many as have names; two where none has."""
    named = fields.values().get("id2label")
    if isinstance(named, dict) and named:
        return len(named)
    return fields.integer("num_labels", 1, MAX_VOCAB, 2)
