"""`Transcriber`: what is said in sound, as text.

with kvrt.Transcriber("openai/whisper-tiny") as transcriber:
    for transcript in transcriber.transcribe(["talk.wav", "answer.flac"]):
        print(transcript.text)
"""

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kvrt.checks import (
    Checks,
    Flag,
    Maybe,
    Number,
    Of,
    OneOf,
    Size,
    Text,
    check_options,
    check_request,
)
from kvrt.config import OPTIONS
from kvrt.embedding.closing import Closing
from kvrt.embedding.opening import device_of, folder_of
from kvrt.engine.prompts import root_of
from kvrt.engine.sizing import FREE_SHARE
from kvrt.errors import RequestError
from kvrt.model.speech.control import TASKS, Task
from kvrt.model.speech.loader import load_speech
from kvrt.speech.audio import Audio, read_audio
from kvrt.speech.features import HOP, RATE, features_of
from kvrt.speech.pages import Sound, SpeechMemory, SpeechPages
from kvrt.speech.transcript import Segment, Transcript
from kvrt.speech.windows import FRAMES, SECONDS, cut
from kvrt.speech.writing import Asked, Writer, Written
from kvrt.spi import DType, KVLayout
from kvrt.units import parse_bytes

OPENING: Checks = {
    "model": Of((str, Path)),
    **{name: OPTIONS[name] for name in ("backend", "device", "dtype", "threads", "offline")},
    "revision": OPTIONS["revision"],
    "memory_limit": Maybe(Size()),
    "audio_ttl": Number(0, math.inf),
}
ASKING: Checks = {
    "language": Maybe(Text(64)),
    "task": OneOf(TASKS),
    "timestamps": Flag(),
    "prompt": Maybe(Text()),
}
"""Of each argument, what it may be."""

PAGE_SIZE = 16
ROOT = b"sound"
"""What names of sounds begin with, before their salt."""

AT_ONCE = 16
"""Sounds whose windows are written together."""

Heard = Callable[[int, Segment], None]
"""Told of each segment when it is written: which sound it is of, and what it is."""


@dataclass
class _Listening:
    """A sound that is being written."""

    features: Tensor
    frames: int
    duration: float
    language: str | None
    root: bytes
    begin: int = 0
    held: list[Segment] = field(default_factory=list)


class Transcriber(Closing):
    """A model that writes what is said. Any thread may ask it; sounds are taken in turn.

    What an encoder makes of a window of sound is in pages of elastic KV memory, beside those of the
    texts. It stays for a while, so that who asks about the same sound again waits for no encoder.

    Args:
        model: a folder in the Hugging Face layout, or a hub id.
        backend, device, dtype, threads, offline, revision: as of `RuntimeConfig`.
        memory_limit: physical memory that pages may take: bytes, or a text such as ``4GiB`` or
            ``50%`` (of the device's). None: 60 % of what is free.
        audio_ttl: seconds after which a sound that nobody asked about again is forgotten.

    Attributes:
        languages: codes of those that the model knows, such as ``de``; empty: it knows one.
        longest: tokens that a window's text has at most, what it begins with included.

    Raises:
        ConfigError: an option has a bad value.
        BackendUnavailable: the backend cannot be used here.
        ModelError: the model is missing, damaged or not supported.
        CapacityError: it does not fit in the memory there is.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str = "auto",
        device: int = 0,
        dtype: DType | Literal["auto"] = "auto",
        threads: int | None = None,
        offline: bool = False,
        revision: str | None = None,
        memory_limit: int | str | None = None,
        audio_ttl: float = 60.0,
    ) -> None:
        checked = check_options(
            OPENING,
            model=model,
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            offline=offline,
            revision=revision,
            memory_limit=memory_limit,
            audio_ttl=audio_ttl,
        )
        self.name = str(model)
        folder = folder_of(model, "speech", offline=offline, revision=revision)
        opened = device_of(backend, checked["device"], threads)
        try:
            self._model = load_speech(folder, opened, dtype=dtype)
            spec, free = self._model.spec, opened.memory.info().free
            self._total = opened.info.total_bytes
            limit = checked["memory_limit"]
            limit = int(free * FREE_SHARE) if limit is None else self._bytes(limit)
            layout = KVLayout.packed(
                self._model.kept,
                layers=spec.decoder_layers,
                kv_heads=spec.decoder_heads,
                head_dim=spec.head_dim,
                page_size=PAGE_SIZE,
            )
            self._pages = SpeechPages(opened, layout, self._model.decoder, limit, time.monotonic)
        except BaseException:
            opened.close()
            raise
        self._where = opened.info.torch_device
        self._window = FRAMES * spec.frames
        self._ttl: float = checked["audio_ttl"]
        self._timer: threading.Timer | None = None
        self._writer = Writer(self._model, self._pages)
        self.languages = tuple(sorted(self._model.control.languages))
        self.longest = spec.positions
        super().__init__("transcriber", self._pages, self._model, opened)

    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        *,
        language: str | None = None,
        task: Task = "transcribe",
        timestamps: bool = True,
        prompt: str | None = None,
        cache_salt: str = "",
        heard: Heard | None = None,
    ) -> list[Transcript]:
        """What is said in some sounds, which depends on nothing but the sound itself.

        Args:
            audio: one or more, each a file's name, its content, or samples at 16,000 a second.
            language: that is spoken, by its code; None: found out by the first window.
            task: ``translate`` writes in English.
            timestamps: False: what fits in a window is written without times, as one segment. What
                is longer always has them, since they say where the next window begins.
            prompt: a text that might have come before: names, or a style.
            cache_salt: who asks with another finds none of these sounds in memory, so that nobody
                learns by the time it takes what others have sent.
            heard: told of each segment when it is written. What it raises ends all.

        Raises:
            RequestError: a sound cannot be read or is too long, the model does not know the
                language or the task, or an argument cannot be used.
            CapacityError: there is no memory for the pages.
            ConfigError: it is closed.
        """
        asked = check_request(
            ASKING, language=language, task=task, timestamps=timestamps, prompt=prompt
        )
        self._check_words(asked["language"], asked["task"])
        before = self._before(asked["prompt"])
        root = root_of(ROOT, cache_salt)
        single = isinstance(audio, str | Path | bytes | np.ndarray)
        listed: Any = [audio] if single else audio
        if not isinstance(listed, list | tuple) or not all(
            isinstance(one, str | Path | bytes | np.ndarray) for one in listed
        ):
            raise RequestError("audio is neither a sound nor a list of sounds", param="audio")
        transcripts: dict[int, Transcript] = {}
        with self._asked():
            self._stop_timer()
            try:
                for begin in range(0, len(listed), AT_ONCE):
                    some = range(begin, min(begin + AT_ONCE, len(listed)))
                    sounds = {
                        number: self._listen(listed[number], language, root) for number in some
                    }
                    going = dict(sounds)
                    while going:
                        self._hear(going, asked["task"], asked["timestamps"], before, heard)
                        going = {
                            number: one for number, one in going.items() if one.begin < one.frames
                        }
                    transcripts |= {number: self._told(one) for number, one in sounds.items()}
            finally:
                self._forget()
        return [transcripts[number] for number in range(len(listed))]

    def stats(self) -> SpeechMemory:
        """Of the pages."""
        return self._pages.stats()

    def set_memory_limit(self, limit: int | str) -> None:
        """Change how much physical memory pages may take, from any thread: what a call in flight
        needs goes on, as far as it fits.

        Args:
            limit: as `memory_limit`.

        Raises:
            ConfigError: it is none.
        """
        checked = check_options({"limit": Size()}, limit=limit)["limit"]
        self._pages.limit = self._bytes(checked)
        if self._lock.acquire(blocking=False):  # else the call in flight sees it at its next step
            try:
                if not self._closed:
                    self._pages.shrink()
            finally:
                self._lock.release()

    def close(self) -> None:
        super().close()
        self._stop_timer()

    # --- within --------------------------------------------------------------------------------

    def _bytes(self, size: int | str) -> int:
        return parse_bytes(size, whole=self._total) if isinstance(size, str) else size

    def _check_words(self, language: str | None, task: Task) -> None:
        if language is not None and language not in self.languages:
            known = ", ".join(self.languages) or "none: it writes in one language"
            raise RequestError(
                f"language is none that this model can be told: {known}", param="language"
            )
        if task != "transcribe" and not self.languages:
            raise RequestError(f"task is {task}, and this model knows one language", param="task")

    def _before(self, prompt: str | None) -> list[int]:
        """Tokens of a prompt: the last ones, of which half an answer has room."""
        control = self._model.control
        if not prompt or not prompt.strip():
            return []
        if control.previous is None:
            raise RequestError("prompt: this model takes none", param="prompt")
        tokens = self._model.tokenizer.encode(f" {prompt.strip()}", special=False)
        kept = self._model.spec.positions // 2 - 1
        return [control.previous, *tokens[-kept:]]

    def _listen(self, audio: Audio, language: str | None, root: bytes) -> _Listening:
        samples = read_audio(audio)
        features = features_of(samples, self._model.spec.bins, self._window)
        frames = min(-(-len(samples) // HOP), features.shape[1])
        return _Listening(features, frames, len(samples) / RATE, language, root)

    def _hear(
        self,
        sounds: dict[int, _Listening],
        task: Task,
        timestamps: bool,
        before: list[int],
        heard: Heard | None,
    ) -> None:
        """Write the next window of each."""
        held: list[Sound] = []
        try:
            for one in sounds.values():
                held.append(self._hold(one))
            self._find_languages(list(sounds.values()), held)
            asked = []
            for one, sound in zip(sounds.values(), held, strict=True):
                times = timestamps or one.features.shape[1] > self._window
                opening = self._model.control.opening(one.language, task, times=times)
                asked.append(Asked(sound, [*before, *opening], times))
            all_written = self._writer.write(asked)
        finally:
            for sound in held:
                self._pages.let_go(sound)
        for (number, one), written in zip(sounds.items(), all_written, strict=True):
            for segment in self._segments(one, written):
                one.held.append(segment)
                if heard is not None:
                    heard(number, segment)

    def _hold(self, one: _Listening) -> Sound:
        """The window that comes next."""
        window = one.features[:, one.begin : one.begin + self._window]
        features = torch.nn.functional.pad(window, (0, self._window - window.shape[1]))
        name = hashlib.sha256(one.root + features.contiguous().numpy().tobytes()).digest()
        return self._pages.hold(name, partial(self._encode, features), self._model.spec.frames)

    @torch.inference_mode()
    def _encode(self, features: Tensor) -> Tensor:
        return self._model.encoder.states(features.to(self._where))

    def _find_languages(self, sounds: Sequence[_Listening], held: Sequence[Sound]) -> None:
        """Of those whose language is not known."""
        unknown = [at for at, one in enumerate(sounds) if one.language is None and self.languages]
        if unknown:
            found = self._writer.languages([held[at] for at in unknown])
            for at, language in zip(unknown, found, strict=True):
                sounds[at].language = language

    def _segments(self, one: _Listening, written: Written) -> list[Segment]:
        """Those of a window, after which the next one is due."""
        frames = min(self._window, one.frames - one.begin)
        parts, after = cut(written.tokens, self._model.control.first_time, frames)
        seek = one.begin * HOP / RATE
        logprobs = written.logprobs
        one.begin += after
        return [
            Segment(
                start=seek + part.start * SECONDS,
                end=seek + part.end * SECONDS,
                text=self._text(part.tokens),
                tokens=tuple(part.tokens),
                logprob=_mean(logprobs[part.first : part.first + len(part.tokens)]),
                no_speech=written.no_speech,
                seek=seek,
            )
            for part in parts
        ]

    def _text(self, tokens: Sequence[int]) -> str:
        first = self._model.control.first_time
        return self._model.tokenizer.decode([token for token in tokens if token < first])

    def _told(self, one: _Listening) -> Transcript:
        tokens = [token for segment in one.held for token in segment.tokens]
        return Transcript(self._text(tokens).strip(), one.language, one.duration, tuple(one.held))

    # --- sounds that nobody asks about any more ---------------------------------------------------

    def _forget(self) -> None:
        """Forget what is due, and look again when more is."""
        if self._pages.forget(time.monotonic() - self._ttl) and self._ttl < math.inf:
            self._timer = threading.Timer(self._ttl, self._forget_later)
            self._timer.daemon = True
            self._timer.start()

    def _forget_later(self) -> None:
        with self._lock:
            if not self._closed:
                self._forget()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _mean(logprobs: Sequence[float]) -> float:
    return sum(logprobs) / len(logprobs) if logprobs else 0.0
