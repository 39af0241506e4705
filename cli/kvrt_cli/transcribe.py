"""``kvrt transcribe``: what is said in sound, as text."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from kvrt_cli.naming import model_name
from kvrt_cli.options import OPENING, color_option, opening_options
from kvrt_cli.progress import listening_bar
from kvrt_cli.terminal import Terminal

if TYPE_CHECKING:
    from kvrt import Segment, Transcriber, Transcript
    from kvrt.speech.audio import Audio

STDIN = "-"
STDIN_LIMIT = 1 << 30


@click.command("transcribe", short_help="What is said in sound, as text.")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--model",
    required=True,
    type=model_name,
    help="A Whisper model: a folder in the Hugging Face layout, or a hub id.",
)
@click.option(
    "--language",
    metavar="CODE",
    help="What is spoken, such as de. Default: found out from the first 30 seconds.",
)
@click.option(
    "--task",
    type=click.Choice(("transcribe", "translate")),
    default="transcribe",
    help="translate writes in English. Default: transcribe.",
)
@click.option("--prompt", metavar="TEXT", help="What might have come before: names, or a style.")
@click.option("--timestamps", is_flag=True, help="When each line is said, in front of it.")
@click.option("--json", "form", flag_value="json", help="One JSON object for each file.")
@click.option("--srt", "form", flag_value="srt", help="Subtitles, as SubRip has them.")
@click.option("--vtt", "form", flag_value="vtt", help="Subtitles, as WebVTT has them.")
@opening_options
@color_option
@click.pass_obj
def transcribe(terminal: Terminal, /, files: tuple[str, ...], **options: Any) -> None:
    """Print what is said in each of the FILES, line by line as it is written.

    WAV files are read by kvrt itself; FLAC, Ogg and MP3 with pip install 'kvrt[audio]'. "-" is
    standard input. Sound of any length is heard in windows of 30 seconds.
    """
    from kvrt.speech.transcriber import AT_ONCE, Transcriber

    if options["form"] in ("srt", "vtt") and len(files) > 1:
        raise click.UsageError("subtitles are for one file at a time")
    if files.count(STDIN) > 1:
        raise click.UsageError("standard input can be read once")
    with Transcriber(options["model"], **{name: options[name] for name in OPENING}) as transcriber:
        for begin in range(0, len(files), AT_ONCE):
            some = files[begin : begin + AT_ONCE]
            if options["form"] is None:
                _print_lines(terminal, transcriber, some, several=len(files) > 1, **options)
            else:
                made = _transcripts(terminal, transcriber, some, lambda *one: None, options)
                for file, transcript in zip(some, made, strict=True):
                    _print(terminal, options["form"], file, transcript)


def _print_lines(
    terminal: Terminal,
    transcriber: "Transcriber",
    files: Sequence[str],
    *,
    several: bool,
    **options: Any,
) -> None:
    lines = Lines(terminal, files, several=several, timestamps=options["timestamps"])
    _transcripts(terminal, transcriber, files, lines.take, options)
    lines.end()


def _transcripts(
    terminal: Terminal,
    transcriber: "Transcriber",
    files: Sequence[str],
    take: "Callable[[int, Segment], None]",
    options: Mapping[str, Any],
) -> "list[Transcript]":
    """Of some files; each segment goes to `take` when it is written."""
    asked = {name: options[name] for name in ("language", "task", "prompt")}
    with listening_bar(terminal) as show:

        def heard(number: int, segment: "Segment") -> None:
            show(files[number], segment.end)
            take(number, segment)

        return transcriber.transcribe([_audio(file) for file in files], heard=heard, **asked)


class Lines:
    """Prints segments as lines, file after file, though they are written together.

    Args:
        files: their names.
        several: each name stands before its lines.
        timestamps: times stand before texts.
    """

    def __init__(
        self, terminal: Terminal, files: Sequence[str], *, several: bool, timestamps: bool
    ) -> None:
        self._terminal = terminal
        self._files = files
        self._several = several
        self._timestamps = timestamps
        self._waiting: list[list[Segment]] = [[] for _ in files]
        self._begin(0)

    def take(self, number: int, segment: "Segment") -> None:
        """Print a segment of the first file, and keep one of another until its turn."""
        if number:
            self._waiting[number].append(segment)
        else:
            self._line(segment)

    def end(self) -> None:
        """Print what was kept."""
        for number, segments in enumerate(self._waiting[1:], 1):
            self._begin(number)
            for segment in segments:
                self._line(segment)

    def _begin(self, number: int) -> None:
        if self._several:
            self._terminal.say(f"==> {self._files[number]} <==\n")

    def _line(self, segment: "Segment") -> None:
        from kvrt.speech.subtitles import clock

        text = " ".join(segment.text.split())
        if self._timestamps:
            text = f"[{clock(segment.start)} --> {clock(segment.end)}] {text}"
        self._terminal.say(f"{text}\n")


def _audio(file: str) -> "Audio":
    if file != STDIN:
        return file
    data = sys.stdin.buffer.read(STDIN_LIMIT + 1)
    if len(data) > STDIN_LIMIT:
        raise click.UsageError(f"standard input has more than {STDIN_LIMIT:,} bytes")
    return data


def _print(terminal: Terminal, form: str, file: str, made: "Transcript") -> None:
    from kvrt.speech.subtitles import srt, vtt

    if form == "json":
        terminal.json(
            {
                "file": file,
                "language": made.language,
                "duration": made.duration,
                "text": made.text,
                "segments": [
                    {"start": round(own.start, 3), "end": round(own.end, 3), "text": own.text}
                    for own in made.segments
                ],
            }
        )
    else:
        terminal.say((srt if form == "srt" else vtt)(made.segments))
