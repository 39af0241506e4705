"""Sound is read from files as it was written to them."""

import io
import sys
import wave
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvrt import RequestError
from kvrt.speech import audio
from kvrt.speech.audio import read_audio
from kvrt.speech.resample import resampled
from tests.speech.speakers import sound

TONE = sound(0.7)


def wav(
    samples: NDArray[np.float32], *, width: int = 2, channels: int = 1, rate: int = 16000
) -> bytes:
    """A WAV file whose channels are all the same."""
    whole = np.repeat(np.rint(samples.astype(np.float64) * (2 ** (8 * width - 1) - 1)), channels)
    if width == 1:
        data = (whole + 128).astype(np.uint8).tobytes()
    elif width == 3:
        data = whole.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        data = whole.astype(f"<i{width}").tobytes()
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return made.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_wav_files_of_all_widths_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, channels: int
) -> None:
    monkeypatch.setattr(audio, "AT_ONCE", 999)
    path = tmp_path / "tone.wav"
    path.write_bytes(wav(TONE, width=width, channels=channels))
    made = read_audio(path)
    assert len(made) == len(TONE)
    assert np.abs(made - TONE).max() < 2.0 ** (2 - 8 * width) + 1e-6
    assert np.array_equal(made, read_audio(path.read_bytes()))
    assert np.array_equal(made, read_audio(str(path)))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 16001, 7919])
def test_a_tone_at_another_rate_is_the_same_tone(rate: int) -> None:
    def tone(at: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.sin(2 * np.pi * 440.0 * at + 0.3).astype(np.float32)

    made = resampled(tone(np.arange(rate // 2) / rate), rate, 16000)
    assert len(made) == -(-(rate // 2) * 16000 // rate)
    inner = slice(400, -400)  # at the ends, it begins from silence
    assert np.abs(made - tone(np.arange(len(made)) / 16000))[inner].max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_left_out() -> None:
    at = np.arange(48000) / 48000
    for hertz, most in ((7000.0, 1.1), (9000.0, 2e-3), (20000.0, 2e-3)):
        made = resampled(np.sin(2 * np.pi * hertz * at).astype(np.float32), 48000, 16000)
        assert np.abs(made[400:-400]).max() < most
    assert (
        np.abs(resampled(np.sin(2 * np.pi * 7000 * at).astype(np.float32), 48000, 16000)).max()
        > 0.9
    )


@given(st.integers(100, 200_000), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_any_rate_and_length_gives_as_many_samples_as_it_lasts(rate: int, count: int) -> None:
    made = resampled(np.ones(count, np.float32), rate, 16000)
    assert len(made) == -(-count * 16000 // rate)
    assert np.isfinite(made).all()


WHOLE = wav(TONE)
DAMAGED = {
    "empty": (b"", "is empty"),
    "no frames": (wav(TONE[:0]), "has no sound"),
    "cut off": (WHOLE[:-1000], "is cut off"),
    "header only": (WHOLE[:20], "is a damaged WAV file"),
    "no data": (WHOLE[:36] + b"junk", "is a damaged WAV file"),
    "many channels": (wav(TONE[:100], channels=65), "65 channels"),
    "slow": (wav(TONE, rate=99), "99 samples a second"),
    "text": (b"not a sound at all, my secret", "soundfile|of a kind that is not known"),
}


@pytest.mark.parametrize(("data", "match"), DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_damaged_is_refused_with_its_name(
    tmp_path: Path, data: bytes, match: str
) -> None:
    path = tmp_path / "talk.wav"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=match) as refused:
        read_audio(path)
    assert str(path) in str(refused.value)
    assert refused.value.param == "audio"
    assert "secret" not in f"{refused.value} {refused.value.fix}"


@given(st.integers(0, 60), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_any_damage_to_a_header_is_refused_or_read(at: int, bytes_: bytes) -> None:
    data = wav(TONE[:500])
    with suppress(RequestError):
        assert np.isfinite(read_audio(data[:at] + bytes_ + data[at + len(bytes_) :])).all()


def test_a_sound_that_is_too_long_is_refused_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(audio, "LONGEST_S", 0.5)
    for given_ in (WHOLE, TONE):
        with pytest.raises(RequestError, match="hours"):
            read_audio(given_)
    piped = bytearray(WHOLE)
    piped[40:44] = b"\xff\xff\xff\xff"  # the length is not known
    with pytest.raises(RequestError, match="hours"):
        read_audio(bytes(piped))
    monkeypatch.undo()
    assert np.array_equal(read_audio(bytes(piped)), read_audio(WHOLE))


def test_folders_and_names_that_are_none_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.wav", "\0", "~nobody-here/x.wav"):
        with pytest.raises(RequestError, match="cannot be read"):
            read_audio(path)


@pytest.mark.parametrize(
    ("kind", "subtype", "most"),
    [("FLAC", "PCM_16", 1e-4), ("WAV", "FLOAT", 1e-6), ("OGG", "VORBIS", 0.2)],
)
def test_other_kinds_are_read_with_soundfile(
    tmp_path: Path, kind: str, subtype: str, most: float
) -> None:
    soundfile = pytest.importorskip("soundfile", reason="the extra `audio` is not installed")
    path = tmp_path / "tone"
    both = np.stack([TONE, TONE], axis=1)
    soundfile.write(path, both, 16000, format=kind, subtype=subtype)
    made = read_audio(path)
    assert np.abs(made[: len(TONE)] - TONE).mean() < most
    with pytest.raises(RequestError):
        read_audio(path.read_bytes()[:40])


def test_without_soundfile_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(RequestError, match="soundfile") as refused:
        read_audio(b"fLaC and more")
    assert "kvrt[audio]" in refused.value.fix
