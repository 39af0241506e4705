"""Transcripts as subtitles: SubRip (SRT) and WebVTT (W3C)."""

from collections.abc import Iterable

from kvrt.speech.transcript import Segment

ARROW = "-->"
"""Stands between two times, and so in no text."""


def srt(segments: Iterable[Segment]) -> str:
    """As SubRip has it."""
    return "\n".join(
        f"{number}\n{_times(segment, ',')}\n{_line(segment)}\n"
        for number, segment in enumerate(segments, 1)
    )


def vtt(segments: Iterable[Segment]) -> str:
    """As WebVTT has it."""
    return "\n".join(
        ["WEBVTT\n", *(f"{_times(segment, '.')}\n{_line(segment)}\n" for segment in segments)]
    )


def clock(seconds: float, mark: str = ".") -> str:
    """As ``00:01:02.345``."""
    whole = round(seconds * 1000)
    minutes, rest = divmod(whole, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _times(segment: Segment, mark: str) -> str:
    return f"{clock(segment.start, mark)} {ARROW} {clock(segment.end, mark)}"


def _line(segment: Segment) -> str:
    """Its text on one line: an empty one would end it."""
    return " ".join(segment.text.split()).replace(ARROW, "->")
