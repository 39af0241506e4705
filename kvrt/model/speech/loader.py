"""A model of speech from a folder to a device."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch

from kvrt.errors import ModelError
from kvrt.model.choice import choose_dtype
from kvrt.model.decoder.activations import computed_in
from kvrt.model.decoder.ops import TorchOps
from kvrt.model.speech.control import Control, read_control
from kvrt.model.speech.decoder import SpeechDecoder
from kvrt.model.speech.encoder import SoundEncoder
from kvrt.model.speech.spec import SpeechSpec, check_features, read_speech
from kvrt.model.speech.weights import SpeechFiles
from kvrt.model.tokens.tokenizer import Tokenizer, read_tokenizer
from kvrt.spi import DenseOps, Device, DType


class SpeechModel(NamedTuple):
    """A model that writes what is said.

    Args:
        kept: what keys and values are kept in.
    """

    spec: SpeechSpec
    encoder: SoundEncoder
    decoder: SpeechDecoder
    tokenizer: Tokenizer
    control: Control
    kept: DType

    def close(self) -> None:
        """Give the weights back. It writes no more."""
        self.encoder.close()
        self.decoder.close()


def load_speech(
    folder: Path, device: Device, *, dtype: DType | Literal["auto"] = "auto"
) -> SpeechModel:
    """Load a model from a folder in the Hugging Face layout.

    Args:
        dtype: of the matrices; ``auto`` is that of the files, or float32 if the device cannot use
            it.

    Raises:
        ModelError: the model is missing, damaged or not supported.
        ConfigError: `dtype` cannot be used here.
        CapacityError: it does not fit in the device's free memory.
    """
    config = folder / "config.json"
    spec = read_speech(config)
    check_features(folder / "preprocessor_config.json", spec)
    heads = device.info.head_dims
    if heads and spec.head_dim not in heads:
        raise ModelError(
            f"{config}: heads are {spec.head_dim} wide, but attention on {device.info.backend} is"
            f" made for {', '.join(map(str, heads))}",
            fix="load another model, or look for another backend: kvrt doctor lists them",
        )
    tokenizer = read_tokenizer(folder, spec.vocab)
    control = read_control(folder, spec, tokenizer)
    files = SpeechFiles(folder, spec)
    chosen = choose_dtype(dtype, files.dtype, device)
    encoder, decoder = files.load(device, chosen)
    kept = computed_in(chosen, device.info)
    computed: torch.dtype = getattr(torch, kept)
    dense = device.extension(DenseOps)  # type: ignore[type-abstract]
    ops: DenseOps = TorchOps(device.attention) if dense is None else dense
    return SpeechModel(
        spec,
        SoundEncoder(spec, encoder, ops, computed),
        SpeechDecoder(spec, decoder, ops, device.attention, computed),
        tokenizer,
        control,
        kept,
    )
