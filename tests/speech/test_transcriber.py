"""What is said is written as transformers writes it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from kvrt import CapacityError, ConfigError, RequestError, Transcriber, Transcript
from kvrt.speech.features import features_of
from tests.speech.speakers import FRAMES, PREVIOUS, make_speaker, sound

LENGTHS = (0.3, 1.9, 5.3)
SOUNDS = [sound(seconds, seed) for seed, seconds in enumerate(LENGTHS)]


def tokens_of(transcript: Transcript) -> list[int]:
    return [token for segment in transcript.segments for token in segment.tokens]


def said(
    model: WhisperForConditionalGeneration, number: int, **asked: Any
) -> tuple[list[int], list[tuple[float, float]]]:
    """What transformers writes: tokens, and times of segments."""
    features = features_of(SOUNDS[number], 80, 2 * FRAMES)
    with torch.no_grad():
        made = model.generate(
            features[None], return_timestamps=True, return_segments=True, **asked
        )["segments"][0]
    tokens = [token for segment in made for token in segment["tokens"].tolist()]
    return tokens, [(float(segment["start"]), float(segment["end"])) for segment in made]


@pytest.mark.filterwarnings("ignore")  # of transformers' own calls
@pytest.mark.parametrize("seed", range(3))
def test_tokens_and_times_are_those_of_transformers(tmp_path: Path, seed: int) -> None:
    reference = make_speaker(tmp_path, seed=seed)
    with Transcriber(tmp_path, backend="cpu") as transcriber:
        together = transcriber.transcribe(SOUNDS, language="de", task="translate")
        alone = [transcriber.transcribe(own, language="de", task="translate")[0] for own in SOUNDS]
        transcriber._pages.check_integrity()
    assert together == alone
    for number, transcript in enumerate(together):
        tokens, times = said(reference, number, language="de", task="translate")
        own = [(segment.start, segment.end) for segment in transcript.segments]
        if LENGTHS[number] * 50 > FRAMES:
            assert tokens_of(transcript) == tokens
            assert np.allclose(own, times)
        else:  # transformers listens to the silence behind it as well
            assert tokens_of(transcript) == tokens[: len(tokens_of(transcript))]
        assert transcript.duration == pytest.approx(LENGTHS[number])


@pytest.mark.filterwarnings("ignore")
def test_a_language_is_found_and_a_prompt_and_no_times_are_as_in_transformers(
    tmp_path: Path,
) -> None:
    reference = make_speaker(tmp_path, seed=5)
    features = features_of(SOUNDS[1], 80, 2 * FRAMES)[None]
    with Transcriber(tmp_path, backend="cpu") as transcriber:
        found = transcriber.transcribe(SOUNDS)
        [plain] = transcriber.transcribe(SOUNDS[1], timestamps=False, language="fr")
        [prompted] = transcriber.transcribe(
            SOUNDS[1], timestamps=False, language="fr", prompt=" w1 w2  w3 "
        )
    with torch.no_grad():
        for own, samples in zip(found, SOUNDS, strict=True):
            heard = features_of(samples, 80, 2 * FRAMES)[None]
            [language] = reference.detect_language(heard, num_segment_frames=2 * FRAMES).tolist()
            codes = {token: name for name, token in reference.generation_config.lang_to_id.items()}
            assert f"<|{own.language}|>" == codes[language]
        asked = {"language": "fr", "task": "transcribe", "return_timestamps": False}
        want = reference.generate(features, **asked)[0].tolist()
        assert tokens_of(plain) == [token for token in want if token != 80]
        before = torch.tensor([PREVIOUS, 1, 2, 3])
        want = reference.generate(features, prompt_ids=before, **asked)[0].tolist()
        assert tokens_of(prompted) == [token for token in want if token != 80]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_speaker(tmp_path)
    return tmp_path


@pytest.fixture
def transcriber(folder: Path) -> Iterator[Transcriber]:
    with Transcriber(folder, backend="cpu") as opened:
        yield opened


def test_a_model_of_one_language_takes_neither_language_nor_task(tmp_path: Path) -> None:
    make_speaker(tmp_path, one_language=True)
    with Transcriber(tmp_path, backend="cpu") as transcriber:
        assert transcriber.languages == ()
        [transcript] = transcriber.transcribe(SOUNDS[1])
        assert transcript.language is None
        for asked in ({"language": "en"}, {"task": "translate"}):
            with pytest.raises(RequestError, match="one language"):
                transcriber.transcribe(SOUNDS[1], **asked)  # type: ignore[arg-type]


def count_encoded(transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a window is encoded."""
    encoded: list[int] = []
    states = transcriber._model.encoder.states

    def counted(features: torch.Tensor) -> torch.Tensor:
        encoded.append(1)
        return states(features)

    monkeypatch.setattr(transcriber._model.encoder, "states", counted)
    return encoded


def test_a_sound_is_encoded_once_for_all_who_ask_about_it(
    transcriber: Transcriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = count_encoded(transcriber, monkeypatch)
    some, asked = [SOUNDS[1], SOUNDS[1], SOUNDS[0]], {"language": "de", "timestamps": False}
    first = transcriber.transcribe(some, **asked)
    assert len(encoded) == 2
    again = transcriber.transcribe(SOUNDS[1], **asked)
    transcriber.transcribe(SOUNDS[1], timestamps=False, task="translate")
    assert len(encoded) == 2
    salted = transcriber.transcribe(SOUNDS[1], cache_salt="another", **asked)
    assert len(encoded) == 3
    assert salted == again
    assert first[0] == first[1] == again[0]


def test_sounds_that_nobody_asks_about_again_are_forgotten(folder: Path) -> None:
    with Transcriber(folder, backend="cpu", audio_ttl=0) as transcriber:
        transcriber.transcribe(SOUNDS)
        stats = transcriber.stats()
        assert (stats.sounds.used_pages, stats.texts.used_pages) == (0, 0)
    with Transcriber(folder, backend="cpu", audio_ttl=0.05) as transcriber:
        transcriber.transcribe(SOUNDS[2])
        peak = transcriber.stats().sounds.peak_mapped_bytes
        deadline = time.monotonic() + 60
        while transcriber.stats().sounds.used_pages and time.monotonic() < deadline:
            time.sleep(0.01)
        stats = transcriber.stats()
        assert stats.sounds.used_pages == 0
        assert stats.held_bytes < peak + stats.texts.peak_mapped_bytes or peak == 2 << 20


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Of which a window takes 3 MB."""
    make_speaker(tmp_path, d_model=256, decoder_attention_heads=4, decoder_layers=10)
    return tmp_path


def test_sounds_make_room_for_each_other_within_the_limit(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Transcriber(wide, backend="cpu") as transcriber:
        want = [transcriber.transcribe(own, language="de")[0] for own in SOUNDS]
        used = transcriber.stats().sounds.used_pages
    with Transcriber(wide, backend="cpu", memory_limit="14MiB") as transcriber:
        encoded = count_encoded(transcriber, monkeypatch)
        assert [transcriber.transcribe(own, language="de")[0] for own in SOUNDS] == want
        stats = transcriber.stats()
        assert stats.held_bytes <= stats.limit_bytes == 14 << 20
        assert stats.sounds.used_pages < used
        before = len(encoded)
        transcriber.transcribe(SOUNDS[0], language="de")
        assert len(encoded) > before  # it had to go
        transcriber._pages.check_integrity()
        with pytest.raises(CapacityError, match="memory_limit"):
            transcriber.transcribe([sound(2, seed) for seed in range(9)], language="de")
        assert [transcriber.transcribe(SOUNDS[1], language="de")[0]] == want[1:2]


def test_a_lower_limit_gives_memory_back_and_a_higher_one_is_used(wide: Path) -> None:
    with Transcriber(wide, backend="cpu") as transcriber:
        asked = {"language": "de", "timestamps": False}
        want = transcriber.transcribe([SOUNDS[0], SOUNDS[1], sound(1.5, 7), sound(1.5, 8)], **asked)
        held = transcriber.stats().held_bytes
        transcriber.set_memory_limit(held - (4 << 20))
        stats = transcriber.stats()
        assert stats.held_bytes <= stats.limit_bytes == held - (4 << 20)
        transcriber._pages.check_integrity()
        assert transcriber.transcribe(SOUNDS[1], **asked) == want[1:2]
        transcriber.set_memory_limit("4MiB")
        with pytest.raises(CapacityError, match="memory_limit"):
            transcriber.transcribe(SOUNDS[0], **asked)
        assert transcriber.stats().held_bytes <= 4 << 20
        transcriber.set_memory_limit("64MiB")
        assert transcriber.transcribe(SOUNDS[0], **asked) == want[:1]
        with pytest.raises(ConfigError):
            transcriber.set_memory_limit("much")


def test_segments_are_told_as_they_are_written_and_a_listener_may_end_it(
    transcriber: Transcriber,
) -> None:
    told: list[tuple[int, Any]] = []
    made = transcriber.transcribe(
        [SOUNDS[2], SOUNDS[0]], language="de", heard=lambda *one: told.append(one)
    )
    for number, transcript in enumerate(made):
        assert [segment for which, segment in told if which == number] == [*transcript.segments]

    def end(number: int, segment: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transcriber.transcribe(SOUNDS[2], language="de", heard=end)
    assert transcriber.stats().texts.used_pages == 0
    assert transcriber.transcribe(SOUNDS[2], language="de")[0] == made[0]


SECRET = "w7 my secret names"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"audio": 7}, "audio"),
        ({"audio": [SOUNDS[0], None]}, "audio"),
        ({"audio": np.zeros((2, 10), np.float32)}, "audio"),
        ({"audio": np.zeros(100, np.int16)}, "audio"),
        ({"audio": np.full(100, np.nan, np.float32)}, "audio"),
        ({"audio": np.zeros(0, np.float32)}, "audio"),
        ({"audio": b""}, "audio"),
        ({"audio": "/nowhere/talk.wav"}, "audio"),
        ({"audio": "\0"}, "audio"),
        ({"audio": SOUNDS[0], "language": "xx"}, "language"),
        ({"audio": SOUNDS[0], "language": 7}, "language"),
        ({"audio": SOUNDS[0], "task": "sing"}, "task"),
        ({"audio": SOUNDS[0], "timestamps": 1}, "timestamps"),
        ({"audio": SOUNDS[0], "prompt": [SECRET]}, "prompt"),
        ({"audio": SOUNDS[0], "cache_salt": 7}, "cache_salt"),
    ],
)
def test_a_bad_question_is_refused_by_its_argument(
    transcriber: Transcriber, asked: dict[str, Any], param: str
) -> None:
    with pytest.raises(RequestError) as refused:
        transcriber.transcribe(**asked)
    assert refused.value.param == param
    assert "secret" not in f"{refused.value} {refused.value.fix}"


def test_what_is_closed_says_so_and_has_given_all_back(folder: Path) -> None:
    transcriber = Transcriber(folder, backend="cpu")
    assert transcriber.transcribe([]) == []
    transcriber.transcribe(SOUNDS[0])
    transcriber.close()
    transcriber.close()
    with pytest.raises(ConfigError, match="closed"):
        transcriber.transcribe(SOUNDS[0])
    for bad in ({"memory_limit": -1}, {"audio_ttl": -1}, {"threads": 0}):
        with pytest.raises(ConfigError):
            Transcriber(folder, **bad)  # type: ignore[arg-type]
