"""`kvrt` as a process: signals, pipes, and a real terminal."""

import io
import json
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli
from kvrt_cli.progress import loading_bar
from kvrt_cli.terminal import PICTURES, Terminal

from .conftest import DUMMY, Screen

Start = Callable[..., "subprocess.Popen[bytes]"]
At = Callable[..., Screen]
ENDLESS = ("--ignore-eos", "-n", "60000")


def test_without_a_prompt_tiny_continues_its_own(start: Start) -> None:
    process = start("run", "--backend", "cpu", "-n", "12", "--seed", "7", "--ignore-eos")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    assert b"no prompt was given, so tiny continues this" in stderr
    assert b"def read_lines(path):" in stderr
    assert len(stdout.strip()) > 10


def test_ctrl_c_prints_what_there_is_and_exits_with_130(start: Start, plain_model: str) -> None:
    process = start("run", plain_model, "hello", *DUMMY, *ENDLESS)
    assert process.stdout is not None
    first = process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr.decode()
    assert len(first) == 10
    assert rest.endswith(b"\n")
    assert b"Traceback" not in stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_ends_a_batch_and_prints_every_answer_that_was_begun(
    start: Start, plain_model: str, tmp_path: Path, number: int, code: int
) -> None:
    file = tmp_path / "prompts"
    file.write_text('{"prompt": "a", "max_tokens": 2}\nb\nc\n')
    process = start("run", plain_model, *DUMMY, *ENDLESS, "--prompts", str(file))
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(number)
    rest, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr.decode()
    rows = [first, *map(json.loads, rest.splitlines())]
    assert [(row["line"], row["finish_reason"]) for row in rows] == [
        (1, "length"), (2, "abort"), (3, "abort"),
    ]  # fmt: skip
    assert b"Traceback" not in stderr


@pytest.mark.parametrize(
    "after",
    [
        "over float32 KV",
        *(
            pytest.param(text, marks=pytest.mark.extra)
            for text in ("cpu:0", "memory: ", "over int8 KV", "a chunk of")
        ),
    ],
)
def test_sigterm_ends_the_doctor_in_the_middle_of_a_check(start: Start, after: str) -> None:
    process = start("doctor", "--only", "cpu")
    assert process.stdout is not None
    while after.encode() not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, b"")


def test_a_reader_that_goes_away_ends_it_quietly(start: Start, plain_model: str) -> None:
    process = start("run", plain_model, "hello", *DUMMY, *ENDLESS, "--quiet")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


def test_a_full_disk_is_an_error_like_any_other(start: Start) -> None:
    with open("/dev/full", "wb") as full:
        process = start("--version", stdout=full)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert stderr.decode().splitlines() == ["error: No space left on device"]


def test_a_pipe_that_stays_open_is_said_to_be_waited_for(start: Start) -> None:
    process = start("run", "tiny", "hello", stdin=subprocess.PIPE)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(b"reading standard input until it ends")
    _, stderr = process.communicate(b"\xff", timeout=30)
    assert b"byte 0xff at offset 0" in stderr
    assert process.returncode == 2


def test_a_conversation_at_a_terminal(at_terminal: At, chat_model: str) -> None:
    screen = at_terminal("run", chat_model, *DUMMY, "-n", "20")
    assert "on cpu:0" in screen.wait_for(">>> ")

    screen.type("hello\n")
    screen.wait_for("hello")
    screen.wait_for(">>> ")

    screen.type("/show info\n")
    assert "messages             2" in screen.wait_for(">>> ")

    screen.type('"""two\n')
    screen.wait_for("... ")
    screen.type('lines"""\n')
    screen.wait_for(">>> ")

    screen.type("/set parameter temperature 99999\n")
    assert "temperature is 99999; it must be" in screen.wait_for(">>> ")
    screen.type("/set parameter warmth 1\n")
    assert "there is no parameter 'warmth'" in screen.wait_for(">>> ")
    screen.type("/nonsense\n")
    assert "no such command: /nonsense" in screen.wait_for(">>> ")

    # Ctrl-C stops the answer, not the program; what was said stays.
    screen.type("/set parameter ignore_eos true\n")
    screen.wait_for(">>> ")
    screen.type("/set parameter max_tokens 60000\n")
    screen.wait_for(">>> ")
    screen.type("go on\n")
    screen.wait_for("go on\r\n")
    assert screen.more(30)
    screen.type("\x03")
    screen.wait_for(">>> ")
    screen.type("/show info\n")
    shown = screen.wait_for(">>> ")
    assert "messages             6" in shown
    assert "max_tokens           60000" in shown

    # Ctrl-C with nothing to stop, then a system message: a new conversation. The interpreter prints
    # its prompt a moment before it waits for keys; a signal in between is seen with the next key.
    screen.wait_until_asleep()
    screen.type("\x03")
    assert "Ctrl-D or /bye leaves" in screen.wait_for(">>> ")
    screen.type("/set system be brief\n")
    screen.wait_for(">>> ")
    screen.type("/set parameter max_tokens 4\n")
    screen.wait_for(">>> ")
    screen.type("/set verbose\n")
    screen.wait_for(">>> ")
    screen.type("again\n")
    assert "time to first token" in screen.wait_for(">>> ")
    screen.type("/show info\n")
    shown = screen.wait_for(">>> ")
    assert "system               be brief" in shown
    assert "messages             2" in shown

    screen.type("\x04")
    assert screen.exit_code() == 0
    assert "Traceback" not in screen.text


def test_a_conversation_outlives_what_it_cannot_answer(at_terminal: At, chat_model: str) -> None:
    screen = at_terminal(
        "run", chat_model, *DUMMY, "-n", "20", "--max-model-len", "200", "--color", "never"
    )
    screen.wait_for(">>> ")
    refused = {
        f"/set parameter temperature {'9' * 400}": "temperature is ",
        "/set parameter stop 5": "stop is ",
        "/ set it right, please": "no such command\r\n",
        "x" * 300: "the prompt has 318 tokens",
    }
    for text, cause in refused.items():
        screen.type(f"{text}\n")
        screen.wait_for(f"error: {cause}")
        assert "/clear" not in screen.wait_for(">>> ")
    # Once something was said, room can be had by forgetting it.
    screen.type("hello\n")
    screen.wait_for(">>> ")
    screen.type("y" * 150 + "\n")
    screen.wait_for("error: the prompt has")
    assert "fix: /clear forgets the conversation" in screen.wait_for(">>> ")
    screen.type("/clear\n")
    screen.wait_for(">>> ")
    screen.type("y" * 150 + "\n")
    assert "error" not in screen.wait_for(">>> ")
    screen.type("/bye\n")
    assert screen.exit_code() == 0


def test_progress_is_drawn_on_a_terminal_and_the_answers_go_where_they_should(
    at_terminal: At, plain_model: str, tmp_path: Path
) -> None:
    prompts, answers = tmp_path / "prompts", tmp_path / "answers"
    prompts.write_text("a prompt\n" * 8)
    args = ("run", plain_model, *DUMMY, "-n", "100", "--prompts", str(prompts))
    with answers.open("wb") as file:
        screen = at_terminal(*args, stdout=file)
        assert screen.exit_code() == 0, screen.text
    assert "answering" in screen.text
    assert "8/8" in screen.text
    rows = map(json.loads, answers.read_text().splitlines())
    assert [row["line"] for row in rows] == list(range(1, 9))


def test_a_benchmark_at_a_terminal_hides_its_bar_from_its_table(
    at_terminal: At, plain_model: str
) -> None:
    args = ("-p", "8", "-n", "4", "-r", "1", "--color", "never")
    screen = at_terminal("bench", plain_model, *DUMMY, *args)
    assert screen.exit_code() == 0, screen.text
    rows = [line for line in screen.text.split("\r\n") if line.endswith(" |")]
    assert len(rows) == 4, "the heading, a rule and two tests, each on a line of its own"
    assert "2/4" in screen.text


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_download_is_drawn_on_a_terminal_once_there_are_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stderr", screen := Tty())
    with loading_bar(Terminal()) as progress:
        assert screen.getvalue() == ""
        assert progress is not None
        progress(512, 1024)
    assert "loading" in screen.getvalue()
    with loading_bar(Terminal(quiet=True)) as progress:
        assert progress is None


def test_text_for_a_terminal_has_no_control_characters() -> None:
    assert "a\x1b[2Jb\x07\x9bc\n\td".translate(PICTURES) == "a␛[2Jb␇\ufffdc\n\td"


def test_a_thread_that_cannot_take_signals_can_run_a_command(plain_model: str) -> None:
    codes: list[int] = []

    def work() -> None:
        args = ["run", plain_model, "x", *DUMMY, "-n", "2"]
        codes.append(CliRunner().invoke(cli, args).exit_code)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert codes == [0]
