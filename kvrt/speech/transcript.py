"""What comes out: texts with their times."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of what is said.

    Args:
        start, end: seconds from the beginning of the sound.
        text: of it.
        tokens: that it was written with, its times included.
        logprob: mean of their logarithms of how likely they were, among those that might come.
        no_speech: how likely it is that nothing is said in its window.
        seek: seconds from the beginning of the sound to that of its window.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    logprob: float
    no_speech: float
    seek: float


@dataclass(frozen=True, slots=True)
class Transcript:
    """What is said in a sound.

    Args:
        text: all of it.
        language: the code of what is spoken, such as ``de``; None: the model knows one language.
        duration: seconds of sound.
        segments: the same text in pieces.
    """

    text: str
    language: str | None
    duration: float
    segments: tuple[Segment, ...]
