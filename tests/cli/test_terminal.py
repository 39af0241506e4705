"""What is printed where, and in which colours."""

import io
import logging

import pytest
from kvrt_cli.progress import loading_bar
from kvrt_cli.terminal import ColorMode, LogLines, Terminal

BOLD_RED = "\x1b[31m\x1b[1merror: \x1b[0m"


class Stream(io.StringIO):
    """Perhaps a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _nothing_is_said_about_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)


def streams(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = True) -> tuple[Stream, Stream]:
    """Standard output and error from here on."""
    out, err = Stream(terminal=terminal), Stream(terminal=terminal)
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    return out, err


@pytest.mark.parametrize(
    ("color", "terminal", "environ", "colored"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("auto", True, {"TERM": "xterm"}, True),
        ("always", False, {"NO_COLOR": "1", "TERM": "xterm"}, True),
        ("never", True, {}, False),
    ],
)
def test_colours_are_for_terminals_unless_they_are_asked_for_or_refused(
    color: ColorMode, terminal: bool, environ: dict[str, str], colored: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal=terminal)
    assert Terminal(color).colored(stream) == colored
    console = Terminal(color).console(stream)
    assert (console.color_system is not None) == colored
    console.print("[bold]1 :smile: 'a'", style="red")
    assert "[bold]1 :smile: 'a'" in stream.getvalue(), "text prints as it is"
    assert ("\x1b[31m" in stream.getvalue()) == colored


@pytest.mark.parametrize("quiet", [False, True])
def test_who_wants_quiet_is_told_of_errors_and_what_was_asked_for(
    quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = streams(monkeypatch)
    terminal = Terminal("never", quiet=quiet)
    assert terminal.progress != quiet
    terminal.say("answer\x07\n")
    terminal.note("a note")
    terminal.warn("a warning")
    terminal.plain("statistics")
    terminal.error("a cause")
    terminal.error("a cause", "a fix")
    assert out.getvalue() == "answer\u2407\n"
    noted = ["a note", "warning: a warning"] if not quiet else []
    errors = ["error: a cause", "error: a cause", "  fix: a fix"]
    assert err.getvalue().splitlines() == [*noted, "statistics", *errors]


@pytest.mark.parametrize("terminal", [False, True])
def test_terminals_get_progress_and_a_red_error_and_no_characters_that_steer_them(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = streams(monkeypatch, terminal=terminal)
    assert Terminal().progress == terminal
    Terminal().error("a cause")
    Terminal().say("a\x07")
    assert err.getvalue() == (f"{BOLD_RED}a cause\n" if terminal else "error: a cause\n")
    assert out.getvalue() == ("a\u2407" if terminal else "a\x07")


@pytest.mark.parametrize("debug", [False, True])
def test_what_is_logged_is_told_by_how_bad_it_is(
    debug: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err = streams(monkeypatch)
    handler = LogLines(Terminal("never", debug=debug))
    try:
        raise ValueError("the reason")
    except ValueError as error:
        Terminal("never", debug=debug).traceback(error)
        told = err.getvalue()
        assert told.endswith("ValueError: the reason\n") if debug else not told
        for level in (logging.INFO, logging.WARNING, logging.ERROR):
            record = logging.LogRecord("kvrt.part", level, "", 0, "said %d", (1,), None)
            handler.emit(record)
        record.exc_info = (ValueError, error, error.__traceback__)
        handler.emit(record)
    rest = err.getvalue()[len(told) :].splitlines()
    assert rest[:4] == ["kvrt.part: said 1", "warning: said 1", "error: said 1", "error: said 1"]
    assert (rest[-1] == "ValueError: the reason") == debug


def test_a_bar_of_bytes_shows_how_many_of_all_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = streams(monkeypatch)
    with loading_bar(Terminal("never")) as show:
        assert show is not None
        show(3 << 20, 12 << 20)
    assert "3.0/12.0 MiB" in err.getvalue()
    with loading_bar(Terminal("never", quiet=True)) as show:
        assert show is None
