"""Subtitles are as their formats have them."""

from kvrt import Segment
from kvrt.speech.subtitles import srt, vtt


def segment(start: float, end: float, text: str) -> Segment:
    return Segment(start, end, text, (), 0.0, 0.0, 0.0)


SEGMENTS = [
    segment(0.0, 1.9996, " Hello\n\nthere. "),
    segment(59.9996, 3661.0214, "1 --> 2"),
]


def test_times_and_lines_are_as_subrip_has_them() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:02,000\nHello there.\n\n"
        "2\n00:01:00,000 --> 01:01:01,021\n1 -> 2\n"
    )
    assert srt([]) == ""


def test_times_and_lines_are_as_webvtt_has_them() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nHello there.\n\n"
        "00:01:00.000 --> 01:01:01.021\n1 -> 2\n"
    )
    assert vtt([]) == "WEBVTT\n"
