"""`kvrt` itself: help, version, errors, exit codes, colours, and the documentation."""

import json
import logging
import re
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from kvrt_cli.docs import with_options
from kvrt_cli.errors import as_options, option_names
from kvrt_cli.main import EPILOG, cli
from kvrt_cli.naming import NAME, model_name

import kvrt as package
from kvrt.errors import DeviceError, ModelError

from .conftest import DUMMY, Kvrt

DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


def test_help_and_version_load_no_torch_and_are_fast() -> None:
    code = (
        "import sys, time; begun = time.process_time()\n"
        "from kvrt_cli.main import cli\n"
        "for args in (['--version'], ['--help'], ['run', '--help'], ['bench', '--help']):\n"
        "    try: cli.main(args)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print(time.process_time() - begun, 'torch' in sys.modules, 'rich' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    done = runs[0]
    _, torch, rich = done.stdout.splitlines()[-1].split()
    # The fastest, and twice what it may take alone: who shares a processor is half as fast.
    assert min(float(run.stdout.splitlines()[-1].split()[0]) for run in runs) < 0.8
    assert (torch, rich) == ("False", "False")
    assert done.stdout.startswith(f"kvrt {package.__version__}\nUsage: kvrt")


def test_the_documentation_lists_the_options_there_are() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert with_options(text) == text, "run: python -m kvrt_cli.docs docs/cli.md"
    assert {"kvrt", *cli.commands} == set(re.findall(r"<!-- options of ([\w-]+).* -->", text))


def test_help_and_documentation_have_the_same_exit_codes() -> None:
    in_docs = re.findall(r"^\| (\d+) \| \S", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    in_help = re.findall(r"^  (\d+)\s", EPILOG, re.MULTILINE)
    assert in_docs == in_help == ["0", "1", "2", "3", "4", "5", "130", "141", "143"]


@pytest.mark.parametrize(
    ("args", "code", "cause", "fix"),
    [
        (["runn"], 2, "No such command 'runn'", "kvrt --help"),
        (["run", "--tempp", "1"], 2, "--tempp", "kvrt run --help"),
        (["run", "--memory-limit", "4 apples"], 2, "'4 apples' is not a size", "--help"),
        (["run", "--dtype", "int7"], 2, "'int7' is not one of auto, float32", "--help"),
        (["run", "--kv-cache-dtype", "int7"], 2, "'int7' is not one of auto, float32", "--help"),
        (["run", "--cache-dir", "/dev/null"], 2, "'/dev/null' is not a folder", "--help"),
        (["run", "--cache-dir", ""], 2, "'' is not a folder", "--help"),
        (["run", "--cache-dir", "~no-such-user/x"], 2, "'~no-such-user/x'", "--help"),
        (["run", "--offload", "disk:/dev/null:1GiB"], 2, "'/dev/null' is not a folder", "--help"),
        (["run", "--offload", "tape:1GiB"], 2, "tape", "--help"),
        (["run", "--prefix-cache-ttl", "-0.5"], 2, "'-0.5' is not a number of", "--help"),
        (["run", "--prefix-cache-ttl", "nan"], 2, "'nan' is not a number of", "--help"),
        (["run", "--prefix-cache-ttl", "soon"], 2, "'soon' is not a number of", "--help"),
        (["run", "--max-model-len", "0"], 2, "--max-model-len", "--help"),
        (["run", "tiny", "a", "--temp", "-1"], 2, "--temperature is -1.0", "--help"),
        (["run", "tiny", "a", "--top-p", "2"], 2, "--top-p is 2.0", "--help"),
        (["run", "tiny", "a", "--seed", "-5"], 2, "--seed is -5", "--help"),
        (["run", "tiny", "a", "--logprobs", "3"], 2, "--logprobs needs --json", "--help"),
        (["run", "tiny", "a", "--prompts", "x"], 2, "not both", "--help"),
        (["run", "--prompts", "/no/such"], 2, "/no/such: No such file", "--help"),
        (["run", "./no-such-model", "a", "--backend", "cpu"], 3, "no-such-model", "tiny"),
        (["run", "", "a"], 2, "it is empty", "--help"),
        (["run", "Once upon a time"], 3, "no such model", 'kvrt run tiny "..."'),
        (["Once upon a time"], 2, "no such command", 'kvrt run tiny "..."'),
        (["run", "tiny", "--- a title"], 2, "no such option", "put -- before a prompt"),
        (["run", "tiny", "--no-such=5"], 2, "'--no-such'", "--help"),
        (["bench", "tiny", "Once upon a time"], 2, "too many arguments", "--help"),
        (["bench", "tiny", "more"], 2, "too many arguments: more", "--help"),
        (["run", "tiny", "a", "--backend", "cqu"], 4, "did you mean 'cpu'", "cpu"),
        (["run", "tiny", "a", "--device", "99", "--backend", "cpu"], 4, "99", "use device 0"),
        (
            ["run", "tiny", "a", "--kv-cache-dtype", "fp8", "--backend", "cpu"],
            2,
            "cpu cannot keep",
            "set --kv-cache-dtype to one of float32",
        ),
        (["bench", "-p", "x"], 2, "'x' is not a list of whole numbers", "--help"),
        (["bench", "-p", "9" * 20], 2, "is not from 0 to 10000000", "--help"),
        (["bench", "-p", "0", "-n", "0"], 2, "nothing to measure", "--help"),
        (["doctor", "--only", "cuda,moon"], 2, "--only moon", "--help"),
    ],
)
def test_an_error_is_a_cause_and_a_fix_and_its_exit_code(
    kvrt: Kvrt, args: list[str], code: int, cause: str, fix: str
) -> None:
    result = kvrt(*args)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert cause in result.stderr
    assert fix in result.stderr.partition("  fix: ")[2]
    assert "Traceback" not in result.stderr


PROMPTS = ("x", "Write me a poem. ", "two\nlines\n", "无空格的文字", "a(b)")
"""Repeated, and cut at every length: what somebody may ask who forgets the model."""


@pytest.mark.parametrize("text", PROMPTS)
def test_a_prompt_of_any_length_in_the_place_of_the_model_is_no_such_model(
    kvrt: Kvrt, text: str
) -> None:
    whole = text * (5000 // len(text) + 1)
    for length in range(1, 5001):
        with suppress(ModelError):
            assert NAME.fullmatch(model_name(whole[:length]))
    for length in (2, 100, 200, 201, 254, 255, 256, 257, 4095, 4096, 5000):
        for args in (["run"], ["run", "--backend", "cpu"], ["bench"]):
            result = kvrt(*args, whole[:length], input=b"and more")
            assert result.exit_code == 3, result.stderr
            named = NAME.fullmatch(whole[:length])
            assert result.stderr.startswith("error: model '" if named else "error: no such model")
            assert len(result.stderr) < 400
            assert named or whole[:length].split("\n")[0][:6] not in result.stderr


def test_what_does_not_fit_exits_with_5(kvrt: Kvrt, plain_model: str) -> None:
    result = kvrt("run", plain_model, "a", *DUMMY, "--memory-limit", "64KiB")
    assert result.exit_code == 5
    assert "64KiB" in result.stderr
    assert "give at least" in result.stderr


def test_a_prompt_longer_than_the_context_exits_with_2(kvrt: Kvrt, plain_model: str) -> None:
    result = kvrt("run", plain_model, "a" * 50, *DUMMY, "--max-model-len", "32")
    assert result.exit_code == 2
    assert "the prompt has 50 tokens" in result.stderr
    assert "raise --max-model-len" in result.stderr
    assert result.stdout == ""


def test_debugging_adds_the_traceback(kvrt: Kvrt) -> None:
    result = kvrt("run", "./no-such-model", "a", "--backend", "cpu", env={"KVRT_DEBUG": "1"})
    assert result.exit_code == 3
    assert "Traceback" in result.stderr
    assert "ModelError" in result.stderr
    assert result.stderr.splitlines()[-2].startswith("error: ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("KVRT_LOG_LEVEL", "LOUD"), ("KVRT_LOG_FORMAT", "xml"), ("KVRT_DEBUG", "maybe")],
)
def test_a_bad_environment_variable_is_named_with_the_values_it_may_have(
    kvrt: Kvrt, variable: str, value: str
) -> None:
    result = kvrt("doctor", "--only", "python", env={variable: value})
    assert result.exit_code == 2
    assert f"{variable} is {value!r}" in result.stderr
    assert "use " in result.stderr


def test_an_unexpected_exception_is_one_line_too(
    kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr("kvrt.registry.candidates", fail)
    result = kvrt("run", "--list-devices")
    assert result.exit_code == 1
    assert "error: unexpected ZeroDivisionError: somewhere deep" in result.stderr
    assert "KVRT_DEBUG=1" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (MemoryError(), 5, "error: out of memory\n  fix: close other programs\n"),
        (RuntimeError("it broke\nException raised from here\n" + "frame\n" * 900), 1,
         "error: unexpected RuntimeError: it broke\n  fix: KVRT_DEBUG=1 shows where"),
        (DeviceError("x" * 8000), 1, f"error: {'x' * 600}... (KVRT_DEBUG=1 shows all of it)\n"),
        (FileNotFoundError(2, "No such file", "x y" * 99), 1, "error: No such file\n"),
        (FileNotFoundError(2, "No such file", "/a/b"), 1, "error: /a/b: No such file\n"),
    ],
)  # fmt: skip
def test_whatever_ends_a_command_is_a_few_lines_and_its_exit_code(
    kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, shown: str
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("kvrt.registry.candidates", fail)
    result = kvrt("run", "--list-devices")
    assert result.exit_code == code
    assert result.stderr.startswith(shown)
    assert len(result.stderr) < 1000
    debugged = kvrt("run", "--list-devices", env={"KVRT_DEBUG": "1"}).stderr
    assert str(error) in debugged


def test_a_parameter_is_called_by_its_option() -> None:
    names = option_names(cli.commands["run"])
    said = {
        "seed is -1": "--seed is -1",
        "draw without a seed": "draw without a seed",
        "raise max_model_len, or memory_limit.": "raise --max-model-len, or --memory-limit.",
        "speculate is 'x'": "--speculate is 'x'",
        "bad_words 0 is empty": "--bad-word 0 is empty",
        "/models/page_size: no such file": "/models/page_size: no such file",
        "my_page_size": "my_page_size",
    }
    assert {text: as_options(text, names) for text in said} == said


def test_an_empty_variable_is_one_that_is_not_set_and_a_bad_one_stops_only_who_uses_it(
    kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = dict.fromkeys(("KVRT_LOG_LEVEL", "KVRT_DEBUG", "KVRT_BACKEND"), "")
    assert kvrt("doctor", "--only", "python", env=empty).exit_code == 0
    for name in ("KVRT_LOG_LEVEL", "KVRT_DEBUG"):
        monkeypatch.setenv(name, "nonsense")
    package.Runtime("tiny").close()


def test_colours_only_where_they_are_wanted(kvrt: Kvrt) -> None:
    assert "\x1b[" not in kvrt("run", "--no-such-option").stderr
    loud = kvrt("--color", "always", "run", "--no-such-option").stderr
    assert "\x1b[31m" in loud
    assert re.sub(r"\x1b\[[0-9;]*m", "", loud).startswith("error: ")
    assert "\x1b[" in kvrt("doctor", "--only", "python", "--color", "always").stdout
    assert "\x1b[" not in kvrt("doctor", "--only", "python").stdout


def test_what_kvrt_logs_is_shown_from_the_chosen_level_up(
    kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log() -> tuple[()]:
        logging.getLogger("kvrt.somewhere").info("by the way")
        logging.getLogger("kvrt.somewhere").warning("look out")
        return ()

    monkeypatch.setattr("kvrt.registry.candidates", log)
    assert kvrt("run", "--list-devices").stderr == "warning: look out\n"
    shown = kvrt("run", "--list-devices", env={"KVRT_LOG_LEVEL": "info"}).stderr
    assert shown == "kvrt.somewhere: by the way\nwarning: look out\n"
    told = kvrt("run", "--list-devices", env={"KVRT_LOG_FORMAT": "json"}).stderr
    line = json.loads(told)
    assert datetime.fromisoformat(line.pop("at"))
    assert line == {"level": "WARNING", "logger": "kvrt.somewhere", "message": "look out"}
    # Nothing of these calls stays behind in the process.
    assert [type(h) for h in logging.getLogger("kvrt").handlers] == [logging.NullHandler]


def test_every_option_stands_in_a_section_of_the_help_and_in_one_only(kvrt: Kvrt) -> None:
    for name in ("run", "bench"):
        text = kvrt(name, "--help").stdout
        assert "\nKV memory:\n" in text
        assert "\nOthers:\n" not in text
        command = cli.commands[name]
        for parameter in command.params:
            for option in parameter.opts if parameter.opts[0].startswith("-") else ():
                found = re.findall(rf"^  (?:-\S+, )*{option}(?![-\w])", text, re.MULTILINE)
                assert len(found) == 1, (option, found)


def test_after_ctrl_c_the_next_prompt_of_a_shell_begins_a_line(
    kvrt: Kvrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("kvrt_cli.run.read_prompt", interrupted)
    result = kvrt("run", "tiny", "a")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "\n")
