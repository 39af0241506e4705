"""A device writes what the CPU backend writes of what is said."""

from pathlib import Path

import pytest

from kvrt import Transcriber
from tests.speech.speakers import make_speaker, sound

pytestmark = pytest.mark.extra


def test_tokens_and_times_are_those_of_the_cpu(backend: str, tmp_path: Path) -> None:
    make_speaker(tmp_path)
    sounds = [sound(seconds, seed) for seed, seconds in enumerate((0.5, 1.9, 4.2))]
    with Transcriber(tmp_path, backend="cpu") as transcriber:
        want = transcriber.transcribe(sounds, language="de")
    with Transcriber(tmp_path, backend=backend) as transcriber:
        made = transcriber.transcribe(sounds, language="de")
        assert transcriber.transcribe(sounds, language="de") == made
    assert [[own.tokens for own in each.segments] for each in made] == [
        [own.tokens for own in each.segments] for each in want
    ]
