"""Which architectures are encoders."""

from collections.abc import Mapping
from typing import NamedTuple


class EncoderFamily(NamedTuple):
    """What is so in all models of an architecture.

    Args:
        prefix: of tensors' names, where they have one.
        after_padding: positions are counted from behind the id of the token for padding.
        head: two matrices that make one number of the first token's state, with tanh between them;
            none: it has no such head.
    """

    prefix: str
    after_padding: bool = False
    head: tuple[str, ...] = ()


POOLED = "pooler.dense", "classifier"
DENSE = "classifier.dense", "classifier.out_proj"


ENCODERS: Mapping[str, EncoderFamily] = {
    "BertModel": EncoderFamily("bert."),
    "BertForMaskedLM": EncoderFamily("bert."),
    "RobertaModel": EncoderFamily("roberta.", after_padding=True),
    "RobertaForMaskedLM": EncoderFamily("roberta.", after_padding=True),
    "XLMRobertaModel": EncoderFamily("roberta.", after_padding=True),
    "XLMRobertaForMaskedLM": EncoderFamily("roberta.", after_padding=True),
    "BertForSequenceClassification": EncoderFamily("bert.", head=POOLED),
    "RobertaForSequenceClassification": EncoderFamily("roberta.", after_padding=True, head=DENSE),
    "XLMRobertaForSequenceClassification": EncoderFamily(
        "roberta.", after_padding=True, head=DENSE
    ),
}
"""By what config.json names; see `kvrt.model.encoder.weights` for their tensors."""
