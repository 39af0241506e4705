"""A model of speech computes what transformers' does."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import WhisperFeatureExtractor

from kvrt.errors import ModelError
from kvrt.model.speech.loader import SpeechModel, load_speech
from kvrt.registry import open_device
from kvrt.speech.features import features_of
from kvrt.speech.pages import SpeechPages
from kvrt.spi import Device, KVLayout
from tests.speech.speakers import FRAMES, START, forget, make_speaker, sound


def pages_of(model: SpeechModel, device: Device, limit: int = 64 << 20) -> SpeechPages:
    spec = model.spec
    layout = KVLayout.packed(
        model.kept,
        layers=spec.decoder_layers,
        kv_heads=spec.decoder_heads,
        head_dim=spec.head_dim,
        page_size=16,
    )
    return SpeechPages(device, layout, model.decoder, limit, lambda: 0.0)


@pytest.fixture(params=["cpu", "null"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    opened = open_device(request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "changes",
    [{}, {"activation_function": "gelu_new", "decoder_attention_heads": 1}],
    ids=["plain", "other"],
)
def test_logits_are_those_of_transformers_alone_and_in_a_batch(
    tmp_path: Path, device: Device, changes: dict[str, Any]
) -> None:
    reference = make_speaker(tmp_path, **changes)
    model = load_speech(tmp_path, device)
    pages = pages_of(model, device)
    features = [features_of(sound(2, seed), 80, 2 * FRAMES) for seed in range(3)]
    about = [0, 0, 1, 2]
    texts = [[START, *range(count, 2 * count)] for count in (1, 9, 17, 30)]
    held = [
        pages.hold(bytes([at]), lambda own=own: model.encoder.states(own), FRAMES)
        for at, own in enumerate(features)
    ]
    with torch.inference_mode():
        rows = [pages.begin() for _ in texts]
        done = [0] * len(texts)
        got: list[list[torch.Tensor]] = [[] for _ in texts]
        for part in (slice(0, 1), slice(1, 12), slice(12, None)):  # as they grow, together
            new = [text[part] for text in texts]
            going = [at for at, own in enumerate(new) if own]
            plans = pages.grow(
                [rows[at] for at in going],
                [held[about[at]] for at in going],
                [len(new[at]) for at in going],
            )
            tokens = torch.tensor([token for at in going for token in new[at]])
            places = torch.tensor([done[at] + own for at in going for own in range(len(new[at]))])
            made = model.decoder.forward(tokens, places, *plans, torch.arange(len(tokens)))
            for at, own in zip(going, made.split([len(new[at]) for at in going]), strict=True):
                got[at].append(own)
                done[at] += len(own)
        for text, which, own in zip(texts, about, got, strict=True):
            want = reference(features[which][None], decoder_input_ids=torch.tensor([text])).logits
            worst = (torch.cat(own) - want[0]).abs().max() / want.abs().max()
            assert worst < 1e-4
    pages.check_integrity()
    pages.close()


@pytest.mark.parametrize(
    ("seconds", "chunk", "bins"), [(5.3, 30, 80), (0.01, 30, 128), (31.7, 30, 80), (97.003, 2, 128)]
)
def test_features_are_those_of_transformers(seconds: float, chunk: int, bins: int) -> None:
    extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=chunk)
    samples = sound(seconds)
    short = len(samples) <= chunk * 16000
    want = extractor(
        samples,
        sampling_rate=16000,
        return_tensors="pt",
        truncation=False,
        padding="max_length" if short else "longest",
    ).input_features[0]
    made = features_of(samples, bins, chunk * 100)
    assert made.shape == want.shape
    assert (made - want).abs().max() < 1e-5
    more = WhisperFeatureExtractor(feature_size=128)(samples, sampling_rate=16000)
    assert (
        features_of(samples, 128, 3000)[:, :3000] - torch.tensor(more.input_features[0])
    ).abs().max() < 1.0


@pytest.mark.parametrize(
    ("file", "fields", "match"),
    [
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "writes nothing of what is said"),
        ("config.json", {"decoder_attention_heads": 3}, "decoder_attention_heads is 3"),
        ("config.json", {"encoder_layers": None}, "encoder_layers is missing"),
        ("config.json", {"d_model": 64}, "config.json makes it"),
        ("config.json", {"activation_function": "swish"}, "activation_function"),
        ("config.json", {"scale_embedding": True}, "scale_embedding"),
        ("config.json", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("config.json", {"num_mel_bins": 128}, "conv1"),
        ("generation_config.json", {"no_timestamps_token_id": 10**6}, "no_timestamps_token_id"),
        ("generation_config.json", {"suppress_tokens": [-5]}, "suppress_tokens"),
        ("generation_config.json", {"lang_to_id": {"<|en|>": "x"}}, "lang_to_id"),
        ("generation_config.json", {"task_to_id": {"transcribe": 1}}, "no token for translate"),
        ("preprocessor_config.json", {"hop_length": 80}, "hop_length is 80"),
        ("preprocessor_config.json", {"feature_size": 128}, "feature_size is 128"),
    ],
)
def test_a_model_that_is_damaged_or_another_is_refused_by_its_field(
    tmp_path: Path, file: str, fields: dict[str, Any], match: str
) -> None:
    make_speaker(tmp_path)
    if not (tmp_path / file).exists():
        (tmp_path / file).write_text("{}")
    forget(tmp_path, file, **fields)
    with closing(open_device("cpu")) as device, pytest.raises(ModelError, match=match):
        load_speech(tmp_path, device)
