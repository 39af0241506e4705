"""A trained model of speech, as people have it, and a text that was spoken."""

import re
from pathlib import Path

import pytest
import torch
from transformers import WhisperForConditionalGeneration

import kvrt
from kvrt.speech.features import features_of
from tests.models.real import here
from tests.models.spoken import spoken
from tests.models.whisper import PACKAGE, make_folder

pytestmark = pytest.mark.extra
TEXT = """
She sells sea shells by the sea shore, and the weather is warm today. Memory is taken as the
conversation grows, and given back when it ends. Nobody knows what the future will bring. In the
morning we will walk along the river, and in the evening we will sit by the fire and talk about old
times. Please remember to close the window before you leave the house. The train to London leaves at
seven fifteen from platform nine. She opened the letter slowly, read it twice, and then put it back
into the drawer without a word. Two thousand people came to the concert last Saturday, and most of
them stayed until the very end.
"""


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@pytest.mark.filterwarnings("ignore")  # of transformers' own calls
def test_what_whisper_tiny_writes_is_what_transformers_writes_and_what_was_said(
    tmp_path: Path,
) -> None:
    here(PACKAGE / "model.bin")
    samples = spoken(TEXT)
    assert len(samples) > 31 * 16000  # so that there are two windows
    folder = make_folder(tmp_path)
    with kvrt.Transcriber(folder, backend="cpu") as transcriber:
        assert transcriber.languages == ()
        [long, short] = transcriber.transcribe([samples, samples[: 6 * 16000]])
        [plain] = transcriber.transcribe(samples[: 6 * 16000], timestamps=False)
    reference = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        whole = reference.generate(
            features_of(samples, 80, 3000)[None], return_timestamps=True, return_segments=True
        )["segments"][0]
        piece = features_of(samples[: 6 * 16000], 80, 3000)[None]
        [want] = reference.generate(piece, return_timestamps=False).tolist()
    assert [[*own.tokens] for own in long.segments] == [own["tokens"].tolist() for own in whole]
    assert [own.end for own in long.segments] == pytest.approx([float(own["end"]) for own in whole])
    assert [*plain.segments[0].tokens] == [token for token in want if token < 50256]
    assert "sea" in words(short.text)
    wanted, got = words(TEXT), words(long.text)
    assert len({*wanted} & {*got}) > 0.75 * len({*wanted})
