"""What a model of speech is, and how its config.json says it."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from kvrt.model.config import MAX_HEADS, MAX_VOCAB, UNGATED, read_dtype
from kvrt.model.families.family import MAX_WIDTH
from kvrt.model.families.windows import MAX_LAYERS
from kvrt.model.files.jsonfile import Fields, read_object, shown
from kvrt.model.spec import MLPActivation
from kvrt.model.speech import WHISPER
from kvrt.spi import DType

NORM_EPS = 1e-5
"""Of every norm; config.json does not say it."""

FEATURES = {"sampling_rate": 16000, "hop_length": 160, "n_fft": 400}
"""How sound is heard by all models there are, as preprocessor_config.json has it."""

MAX_BINS = 1024
MAX_FRAMES = 1 << 16


@dataclass(frozen=True, slots=True)
class SpeechSpec:
    """The shape of a model (see the package).

    Args:
        vocab: rows of the embedding, which is the output matrix, too.
        hidden: width of a frame's and of a token's state.
        bins: of a frame of sound, how many numbers it has.
        frames: that the encoder makes of a window; it reads twice as many.
        positions: tokens of the longest answer, what it begins with included.
        encoder_layers, encoder_heads, encoder_wide: of the encoder; the last is the width of its
            feed-forward layers.
        decoder_layers, decoder_heads, decoder_wide: of the decoder.
        activation: of all feed-forward layers.
        start: the token that answers begin with.
        eos: the token that ends them.
        dtype: of the weights, as config.json has it.
    """

    vocab: int
    hidden: int
    bins: int
    frames: int
    positions: int
    encoder_layers: int
    encoder_heads: int
    encoder_wide: int
    decoder_layers: int
    decoder_heads: int
    decoder_wide: int
    activation: MLPActivation
    start: int
    eos: int
    dtype: DType

    @property
    def head_dim(self) -> int:
        """Width of a head of the decoder."""
        return self.hidden // self.decoder_heads


def read_speech(path: Path) -> SpeechSpec:
    """The model that a config.json describes.

    Raises:
        ModelError: the file is missing or damaged, it is another kind of model, or a field is
            missing or out of range. The message names the field.
    """
    fields = Fields(str(path), read_object(path))
    names = fields.items("architectures", str)
    if WHISPER not in names:
        wanted = ", ".join(names) or "nothing"
        near = difflib.get_close_matches(wanted, [WHISPER], n=1)
        raise fields.error(
            "architectures",
            f"names {shown(wanted)}, which writes nothing of what is said; supported is {WHISPER}",
            fix="" if near else "give a Whisper model, such as openai/whisper-tiny",
        )
    hidden = fields.integer("d_model", 1, MAX_WIDTH)
    vocab = fields.integer("vocab_size", 1, MAX_VOCAB)
    for name, value in {"tie_word_embeddings": True, "scale_embedding": False}.items():
        if fields.flag(name, value) != value:
            raise fields.error(name, f"is {str(not value).lower()}, which is not supported")
    activation = fields.text("activation_function", "gelu")
    if activation not in UNGATED:
        raise fields.error(
            "activation_function", f"is {shown(activation)}; supported are {', '.join(UNGATED)}"
        )
    return SpeechSpec(
        vocab=vocab,
        hidden=hidden,
        bins=fields.integer("num_mel_bins", 1, MAX_BINS, 80),
        frames=fields.integer("max_source_positions", 1, MAX_FRAMES, 1500),
        positions=fields.integer("max_target_positions", 8, MAX_FRAMES, 448),
        encoder_layers=fields.integer("encoder_layers", 1, MAX_LAYERS),
        encoder_heads=_heads(fields, "encoder_attention_heads", hidden),
        encoder_wide=fields.integer("encoder_ffn_dim", 1, MAX_WIDTH),
        decoder_layers=fields.integer("decoder_layers", 1, MAX_LAYERS),
        decoder_heads=_heads(fields, "decoder_attention_heads", hidden),
        decoder_wide=fields.integer("decoder_ffn_dim", 1, MAX_WIDTH),
        activation=UNGATED[activation],
        start=fields.integer("decoder_start_token_id", 0, vocab - 1),
        eos=fields.integer("eos_token_id", 0, vocab - 1),
        dtype=read_dtype(fields),
    )


def _heads(fields: Fields, name: str, hidden: int) -> int:
    heads = fields.integer(name, 1, MAX_HEADS)
    if hidden % heads:
        raise fields.error(name, f"is {heads}, which does not split {hidden}")
    return heads


def check_features(path: Path, spec: SpeechSpec) -> None:
    """Look whether a preprocessor_config.json, if there is one, is as this is made for.

    Raises:
        ModelError: a field is another. The message names it.
    """
    if not path.exists():
        return
    fields = Fields(str(path), read_object(path))
    for name, value in {**FEATURES, "feature_size": spec.bins}.items():
        if (given := fields.integer(name, 1, 1 << 20, value)) != value:
            raise fields.error(name, f"is {given}; supported is {value}")
