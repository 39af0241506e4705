"""``kvrt transcribe``."""

import json
from pathlib import Path

import pytest

from kvrt import Transcriber
from tests.speech.speakers import make_speaker, sound
from tests.speech.test_audio import wav

from .conftest import Kvrt


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    make_speaker(tmp_path / "model")
    paths = [tmp_path / f"{name}.wav" for name in ("one", "two", "three")]
    for seed, path in enumerate(paths):
        path.write_bytes(wav(sound(1.0 + 1.5 * seed, seed)))
    return [str(path) for path in paths]


def test_what_is_said_is_printed_in_all_forms(kvrt: Kvrt, tmp_path: Path, files: list[str]) -> None:
    with Transcriber(tmp_path / "model", backend="cpu") as transcriber:
        want = transcriber.transcribe(files, language="de")
    model = ("--model", str(tmp_path / "model"), "--language", "de", "--backend", "cpu")
    plain = kvrt("transcribe", *files, *model)
    assert plain.exit_code == 0, plain.stderr
    lines = []
    for file, own in zip(files, want, strict=True):
        lines += [f"==> {file} <==", *(segment.text.strip() for segment in own.segments)]
    assert plain.stdout.splitlines() == lines
    as_json = kvrt("transcribe", *files, *model, "--json")
    for line, file, own in zip(as_json.stdout.splitlines(), files, want, strict=True):
        made = json.loads(line)
        assert (made["file"], made["text"], made["language"]) == (file, own.text, "de")
        assert [each["text"] for each in made["segments"]] == [s.text for s in own.segments]
    timed = kvrt("transcribe", files[2], *model, "--timestamps").stdout.splitlines()
    assert timed[0].startswith("[00:00:00.")
    assert len(timed) == len(want[2].segments)
    srt = kvrt("transcribe", files[2], *model, "--srt").stdout
    assert srt.startswith("1\n00:00:00,")
    assert srt.count(" --> ") == len(want[2].segments)
    vtt = kvrt("transcribe", files[2], *model, "--vtt").stdout
    assert vtt.startswith("WEBVTT\n\n00:00:00.")
    through = kvrt("transcribe", "-", *model, input=Path(files[2]).read_bytes())
    assert through.stdout.splitlines() == [segment.text.strip() for segment in want[2].segments]


def test_what_cannot_be_read_or_done_is_an_error_of_its_kind(
    kvrt: Kvrt, tmp_path: Path, files: list[str]
) -> None:
    model = ("--model", str(tmp_path / "model"), "--backend", "cpu")
    (tmp_path / "cut.wav").write_bytes(Path(files[0]).read_bytes()[:-500])
    for args, told in (
        ((files[0], str(tmp_path / "nothing.wav"), *model), "nothing.wav: cannot be read"),
        ((str(tmp_path / "cut.wav"), *model), "cut.wav: is cut off"),
        ((*files, *model, "--srt"), "one file at a time"),
        (("-", "-", *model), "once"),
        ((files[0], *model, "--language", "xx"), "language is none"),
    ):
        refused = kvrt("transcribe", *args)
        assert refused.exit_code == 2, refused.stderr
        assert told in refused.stderr
    other = kvrt("transcribe", files[0], "--model", "tiny", "--backend", "cpu")
    assert "writes nothing of what is said" in other.stderr
