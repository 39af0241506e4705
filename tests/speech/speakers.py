"""Tiny models of speech with random weights, made by transformers, and sounds for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.model.checkpoints import randomised, save_model

WORDS = [f"w{number}" for number in range(80)]
EOS, START, ENGLISH, GERMAN, FRENCH, TRANSLATE, TRANSCRIBE, PREVIOUS, NO_SPEECH, NO_TIMES = range(
    len(WORDS), len(WORDS) + 10
)
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|translate|>",
           "<|transcribe|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]  # fmt: skip
LANGUAGES = {"<|en|>": ENGLISH, "<|de|>": GERMAN, "<|fr|>": FRENCH}
FRAMES = 100
"""Of a window, 20 ms each: two seconds."""

SHAPE: dict[str, Any] = {
    "vocab_size": NO_TIMES + 1 + FRAMES + 1,
    "num_mel_bins": 80,
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 3,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 40,
    "max_source_positions": FRAMES,
    "max_target_positions": 40,
    "decoder_start_token_id": START,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


def make_speaker(
    folder: Path, *, seed: int = 0, one_language: bool = False, **changes: Any
) -> WhisperForConditionalGeneration:
    """transformers' own model, and its folder."""
    torch.manual_seed(seed)
    config = WhisperConfig(**{**SHAPE, **changes})
    config._attn_implementation = "eager"
    model = randomised(WhisperForConditionalGeneration(config).eval())
    with torch.no_grad():  # so that answers are of all lengths
        model.model.decoder.layer_norm.bias.normal_(0.0, 1.0)
        model.model.decoder.embed_tokens.weight[EOS] *= 2.0
    said = model.generation_config
    said.max_length = config.max_target_positions
    said.decoder_start_token_id, said.eos_token_id, said.pad_token_id = START, EOS, EOS
    said.no_timestamps_token_id, said.prev_sot_token_id = NO_TIMES, PREVIOUS
    said.suppress_tokens, said.begin_suppress_tokens = [3, 5, START, PREVIOUS], [7, EOS]
    said.max_initial_timestamp_index = 20
    said.is_multilingual = not one_language
    if not one_language:
        said.lang_to_id = LANGUAGES
        said.task_to_id = {"transcribe": TRANSCRIBE, "translate": TRANSLATE}
    save_model(model, folder)
    save_words(folder)
    return model


def save_words(folder: Path) -> None:
    """A tokenizer of whole words."""
    vocab = {token: number for number, token in enumerate([*WORDS, *SPECIAL])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))


def sound(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """Tones that come and go, 16,000 samples a second."""
    random = np.random.default_rng(seed)
    at = np.arange(int(seconds * 16000)) / 16000
    made = 0.01 * random.standard_normal(len(at))
    for _ in range(12):
        begin, length = random.uniform(0, max(seconds, 0.1)), random.uniform(0.1, 1.0)
        loud = np.exp(-(((at - begin) / length) ** 2))
        made += 0.2 * loud * np.sin(2 * np.pi * random.uniform(80, 6000) * at)
    return np.clip(made, -1, 1).astype(np.float32)


def forget(folder: Path, file: str, **fields: Any) -> None:
    """Change fields of a JSON file; None: take one away."""
    path = folder / file
    values = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
