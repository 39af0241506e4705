"""Sound from files: WAV by itself, FLAC, Ogg and MP3 with the package soundfile."""

import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from kvrt.errors import RequestError
from kvrt.speech.features import RATE
from kvrt.speech.resample import resampled

Audio = str | Path | bytes | NDArray[np.floating]
"""A file's name, its content, or samples at 16,000 a second, of one channel."""

LONGEST_S = 4 * 3600
"""Seconds of sound that are taken."""

RATES = (100, 1_000_000)
CHANNELS = 64
MAX_WIDTH = 4
"""Bytes of a sample."""

AT_ONCE = 1 << 20
"""Numbers that are read at once."""

UNKNOWN = 0xFFFFFF00
"""Bytes that a header tells of from here on mean: written to a pipe, and as long as it is."""

PARAM = "audio"
INSTALL = "pip install 'kvrt[audio]', or convert it to WAV with 16-bit samples"


def read_audio(audio: Audio, name: str | None = None) -> NDArray[np.float32]:
    """Samples of one channel, `RATE` a second, from -1 to 1.

    Args:
        name: what an error calls it; None: its path, or ``the audio``.

    Raises:
        RequestError: there is no such file, it is damaged, empty, too long, or of a kind that
            cannot be read.
    """
    called = name or (str(audio) if isinstance(audio, str | Path) else "the audio")
    if isinstance(audio, np.ndarray):
        samples = _given(audio, called)
    elif isinstance(audio, bytes):
        samples = _read(io.BytesIO(audio), called)
    else:
        try:
            with Path(audio).expanduser().open("rb") as file:
                samples = _read(file, called)
        except (OSError, ValueError, RuntimeError) as error:
            why = error.strerror if isinstance(error, OSError) else None
            raise RequestError(
                f"{called}: cannot be read: {why or 'it is no name of a file'}", param=PARAM
            ) from None
    if not len(samples):
        raise RequestError(f"{called}: has no sound", param=PARAM)
    if not np.isfinite(samples).all():
        raise RequestError(f"{called}: has samples that are not finite numbers", param=PARAM)
    return samples


def _given(audio: NDArray[np.floating], called: str) -> NDArray[np.float32]:
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise RequestError(
            f"{called}: is an array {list(audio.shape)} of {audio.dtype}; expected floats from -1"
            f" to 1 in one dimension, {RATE:,} a second",
            param=PARAM,
        )
    _check_length(len(audio), RATE, called)
    return audio.astype(np.float32)


def _read(file: BinaryIO, called: str) -> NDArray[np.float32]:
    first = file.read(12)
    file.seek(0)
    if not first:
        raise RequestError(f"{called}: is empty", param=PARAM)
    if first[:4] == b"RIFF" and first[8:] == b"WAVE":
        try:
            return _wav(file, called)
        except RequestError:
            raise
        except (wave.Error, EOFError, RuntimeError, ValueError) as error:  # wave raises any of them
            if "format" not in str(error):
                raise RequestError(
                    f"{called}: is a damaged WAV file: {error or 'it ends too early'}", param=PARAM
                ) from None
        file.seek(0)
    return _other(file, called)


def _wav(file: BinaryIO, called: str) -> NDArray[np.float32]:
    with wave.open(file) as sound:
        channels, width, rate = sound.getnchannels(), sound.getsampwidth(), sound.getframerate()
        _check_shape(channels, rate, called)
        if width > MAX_WIDTH:
            raise RequestError(
                f"{called}: has samples of {8 * width} bits; those of {8 * MAX_WIDTH} can be read",
                param=PARAM,
            )
        said = sound.getnframes()
        known = said * channels * width < UNKNOWN
        if known:
            _check_length(said, rate, called)
        pieces, count = list[NDArray[np.float32]](), 0
        while data := sound.readframes(max(1, AT_ONCE // channels)):
            whole = len(data) - len(data) % (channels * width)
            piece = _numbers(data[:whole], width).reshape(-1, channels)
            count += len(piece)
            _check_length(count, rate, called)
            pieces.append(piece.mean(axis=1, dtype=np.float32))
        if known and count < said:
            raise RequestError(
                f"{called}: is cut off: its header tells of {said:,} frames, and it has {count:,}",
                param=PARAM,
                fix="copy it again",
            )
    return _joined(pieces, rate)


def _numbers(data: bytes, width: int) -> NDArray[np.float32]:
    """Samples from -1 to 1; those of one byte are unsigned, those of three are put behind a 0."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    return np.frombuffer(data, f"<i{width}").astype(np.float32) / 2.0 ** (8 * width - 1)


def _other(file: BinaryIO, called: str) -> NDArray[np.float32]:
    try:
        import soundfile
    except (ImportError, OSError):  # the latter: its library is not there
        raise RequestError(
            f"{called}: is no WAV file of whole numbers; others need what is not installed:"
            " soundfile",
            param=PARAM,
            fix=INSTALL,
        ) from None
    try:
        with soundfile.SoundFile(file) as sound:
            channels, rate = sound.channels, sound.samplerate
            _check_shape(channels, rate, called)
            _check_length(sound.frames, rate, called)
            return _joined(_blocks(sound, channels), rate)
    except (soundfile.SoundFileError, RuntimeError):
        raise RequestError(
            f"{called}: is damaged, or of a kind that is not known; WAV, FLAC, Ogg and MP3 are",
            param=PARAM,
            fix="convert it to WAV",
        ) from None


def _blocks(sound: "object", channels: int) -> Iterator[NDArray[np.float32]]:
    while len(piece := sound.read(AT_ONCE // channels, dtype="float32", always_2d=True)):  # type: ignore[attr-defined]
        yield piece.mean(axis=1, dtype=np.float32)


def _joined(
    pieces: "list[NDArray[np.float32]] | Iterator[NDArray[np.float32]]", rate: int
) -> NDArray[np.float32]:
    return resampled(np.concatenate([np.empty(0, np.float32), *pieces]), rate, RATE)


def _check_shape(channels: int, rate: int, called: str) -> None:
    low, high = RATES
    if not low <= rate <= high or not 1 <= channels <= CHANNELS:
        raise RequestError(
            f"{called}: has {channels} channels of {rate:,} samples a second; from 1 to {CHANNELS}"
            f" of {low} to {high:,} can be read",
            param=PARAM,
        )


def _check_length(frames: int, rate: int, called: str) -> None:
    if frames > LONGEST_S * rate:
        raise RequestError(
            f"{called}: is longer than {LONGEST_S // 3600} hours, which is the most that is taken",
            param=PARAM,
            fix="give it in parts",
        )
