"""Profiles: files of settings, their place between variables and defaults, and whether they fit."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvrt_cli.main import cli
from kvrt_cli.profiles.document import parse
from kvrt_cli.profiles.find import TEMPLATES
from kvrt_cli.profiles.keys import children, keys_of, of_runtime, variables, variables_of

from kvrt.errors import ConfigError

from .conftest import Kvrt

NAMES = sorted(path.stem for path in TEMPLATES.glob("*.yaml"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No profiles but the built-in ones have names."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


def profile(text: str, name: str = "mine.yaml") -> str:
    Path(name).write_text(text)
    return f"./{name}"


def shown(kvrt: Kvrt, *words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What ``kvrt config show`` says of each option: its value, its source, and its place there."""
    result = kvrt("config", "show", "--json", *words, env=env)
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)["values"]
    return {row["key"]: (row["value"], row["source"], row["place"]) for row in rows}


def test_a_flag_goes_before_a_variable_and_that_before_a_profile_and_that_before_the_default(
    kvrt: Kvrt,
) -> None:
    mine = profile("serve:\n  page-size: 32\n  max-running: 3\n  max-requests: 7\n")
    env = {"KVRT_SERVE_PAGE_SIZE": "64", "KVRT_SERVE_MAX_RUNNING": "4"}
    found = shown(kvrt, "serve", "--profile", mine, "--page-size", "128", env=env)
    assert found["page-size"] == (128, "command line", "")
    assert found["max-running"] == (4, "environment", "KVRT_SERVE_MAX_RUNNING")
    assert found["max-requests"] == (7, "profile", f"{mine}, line 4")
    assert found["port"] == (8000, "default", "")


def test_a_profile_is_what_a_command_is_told(kvrt: Kvrt, plain_model: str) -> None:
    mine = profile(
        f"runtime:\n  model: {plain_model}\n  load-format: dummy\n  backend: cpu\n"
        "run:\n  prompt: [ab, cd]\n  max-tokens: 3\n  ignore-eos: yes\n  json: true\n  seed: 1\n"
    )
    answer = json.loads(kvrt("run", "--profile", mine).stdout)
    assert len(answer["token_ids"]) == 3
    assert answer["usage"]["prompt_tokens"] == len("ab cd")
    again = json.loads(kvrt("run", "--profile", mine, "-n", "2").stdout)
    assert len(again["token_ids"]) == 2


def test_settings_of_runtimes_go_to_every_command_that_has_them(kvrt: Kvrt) -> None:
    mine = profile(
        "runtime:\n  model: tiny\n  page-size: 32\n  quantize: int8\n  weight: 5\n"
        "bench:\n  page-size: 64\n"
    )
    for words, page_size in (
        (["run"], 32),
        (["serve"], 32),
        (["batch", "run"], 32),
        (["bench"], 64),
    ):
        found = shown(kvrt, *words, "--profile", mine)
        assert found["page-size"][0] == page_size
        assert found["model"][0] in ("tiny", ["tiny"])
    assert shown(kvrt, "show", "--profile", mine)["quantize"][0] == "int8"
    # Of who has no runtime, the same word is something else.
    assert shown(kvrt, "merge", "--profile", mine)["weight"][1] == "default"


def test_a_value_is_text_as_on_a_command_line(kvrt: Kvrt) -> None:
    mine = profile(
        "serve:\n  revision: 1e3\n  alias: [no, 0x10, '']\n  lora: one=./a\n  strict-api: on\n"
        "  prefix-cache: off\n  drain-seconds: 1_0\n  memory-limit: 50%\n"
    )
    found = shown(kvrt, "serve", "--profile", mine)
    assert found["revision"][0] == "1e3"
    assert found["alias"][0] == ["no", "0x10", ""]
    assert found["lora"][0] == ["one=./a"]
    assert found["strict-api"][0] is True
    assert found["prefix-cache"][0] is False
    assert found["drain-seconds"][0] == 10.0
    assert found["memory-limit"][0] == "50%"


@pytest.mark.parametrize(
    ("text", "line", "reason", "fix"),
    [
        ("serve:\n  prot: 80\n", 2, "prot is not an option of kvrt serve", "did you mean port?"),
        ("serve:\n  page_size: 1\n", 2, "page_size is not an option", "did you mean page-size?"),
        ("srve:\n  port: 80\n", 1, "srve is neither a command nor runtime", "did you mean serve?"),
        ("port: 80\n", 1, "port is neither a command nor runtime", "use runtime, "),
        ("page-size: 8\n", 1, "page-size is neither", "put it under the command"),
        ("config:\n  x: 1\n", 1, "config is neither a command", "use runtime, "),
        ("runtime:\n  temperature: 1\n", 2, "temperature is not a setting of runtimes",
         "put it under the command that it is for"),
        ("runtime:\n  quantise: int4\n", 2, "quantise is not a setting", "did you mean quantize?"),
        ("batch:\n  page-size: 8\n", 2, "page-size is not an option of kvrt batch", "--help"),
        ("batch:\n  rum: {}\n", 2, "rum is not an option of kvrt batch", "did you mean run?"),
        ("serve:\n  port: 80\n  port: 81\n", 3, "port stands here a second time; first in line 2",
         "delete one"),
        ("serve:\n  ctx-size: 8\n  max-model-len: 9\n", 3,
         "max-model-len is another name of max-model-len, of line 2", "delete one"),
        ("serve:\n  port: 99999\n", 2, "port: 99999 is not in the range", "kvrt serve --help"),
        ("serve:\n  port:\n", 2, "port: it has no value", "leave the key out"),
        ("serve:\n  port: [1, 2]\n", 2, "port: it takes one value, and this is a list", "--help"),
        ("bench:\n  batch: [1, 2]\n", 2, "batch: it takes one value", "write batch: 1,2"),
        ("serve:\n  port: {a: 1}\n", 2, "port: it has keys under it", "--help"),
        ("serve:\n  strict-api: perhaps\n", 2, "'perhaps' is not a valid boolean", "--help"),
        ("runtime:\n  memory-limit: 4 apples\n", 2, "'4 apples' is not a size", "--help"),
        ("run:\n  model: Once upon a time\n", 2, "no such model", "kvrt run tiny"),
        ("serve: 8000\n", 1, "serve has no options under it", "indent them"),
        ("serve:\n  <<: {port: 1}\n", 2, "<< (a merge) is not known", "under runtime"),
        ("serve:\n  alias: !!python/name:os.system x\n", 2, "the tag", "delete it"),
        ("serve:\n  alias: [[a]]\n", 2, "a list has texts and numbers only", ""),
        ("serve:\n\tport: 1\n", 2, "this is not YAML", "quotes"),
        ("a: &a\n  b: *a\n", 2, "nested too deep", ""),
        ("- serve\n", 1, "a profile is keys with values", "begin it with a command"),
        ("description: [a]\n", 1, "description is not a text", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_line_the_reason_and_the_fix(
    kvrt: Kvrt, text: str, line: int, reason: str, fix: str
) -> None:
    mine = profile(text)
    result = kvrt("profile-config", "check", mine)
    assert result.exit_code == 2, result.stdout
    said = result.stdout + result.stderr
    assert f"line {line}: " in said
    assert reason in said
    assert fix in said


def test_a_command_refuses_a_profile_for_itself_alone_and_check_for_all(kvrt: Kvrt) -> None:
    mine = profile("serve:\n  prot: 80\n  hots: x\nbench:\n  repetitions: 0\nrun:\n  seed: 1\n")
    assert kvrt("config", "show", "run", "--profile", mine).exit_code == 0
    result = kvrt("serve", "--profile", mine)
    assert result.exit_code == 2
    assert (
        f"error: {mine}, line 2: prot is not an option of kvrt serve (and 1 more" in result.stderr
    )
    checked = kvrt("profile-config", "check", "--json", mine)
    assert checked.exit_code == 2
    assert [check["data"]["line"] for check in json.loads(checked.stdout)["checks"]] == [2, 3, 5]


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("servr", "there is no profile 'servr'; did you mean 'server'?"),
        ("./no.yaml", "the profile cannot be read: no.yaml: No such file"),
        ("/", "the profile cannot be read"),
        ("/dev/null", "/dev/null says nothing"),
        ("/dev/zero", "/dev/zero is no profile: it has more than"),
        ("~no-such-user/x", "there is no profile"),
        ("", "there is no profile"),
    ],
)
def test_a_profile_that_is_not_there_is_an_error_of_usage(
    kvrt: Kvrt, name: str, cause: str
) -> None:
    result = kvrt("run", "tiny", "a", "--profile", name)
    assert (result.exit_code, result.stdout) == (2, "")
    assert cause in result.stderr


def test_a_file_that_is_no_text_is_refused_with_the_line(kvrt: Kvrt) -> None:
    Path("mine.yaml").write_bytes(b"serve:\n  alias: \xff\n")
    assert "mine.yaml, line 2: it is not UTF-8" in kvrt("run", "--profile", "mine.yaml").stderr


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,?\n\t \\0é<", max_size=60))
def test_whatever_a_file_says_it_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        entries = parse(text, "it")
        assert all(0 < entry.line <= text.count("\n") + 1 for entry in entries.values())


def test_errors_of_values_say_where_these_come_from(kvrt: Kvrt) -> None:
    mine = profile("run:\n  temperature: -4\n")
    result = kvrt("run", "tiny", "a", "--profile", mine)
    assert "--temperature is -4.0; it must be a number from 0 to 100" in result.stderr
    assert f"(--temperature is from {mine}, line 2)" in result.stderr
    result = kvrt("run", "tiny", "a", env={"KVRT_RUN_PAGE_SIZE": "0"})
    assert "0 is not in the range x>=1. (--page-size is from KVRT_RUN_PAGE_SIZE)" in result.stderr
    assert "(" not in kvrt("run", "tiny", "a", "--page-size", "0").stderr


def test_what_kubernetes_sets_for_a_service_is_told_apart(kvrt: Kvrt) -> None:
    result = kvrt("serve", "tiny", env={"KVRT_SERVE_PORT": "tcp://10.0.0.1:80"})
    assert result.exit_code == 2
    assert "unset KVRT_SERVE_PORT: Kubernetes sets it" in result.stderr


def test_the_backend_of_all_commands_goes_behind_that_of_one_and_before_a_profile(
    kvrt: Kvrt,
) -> None:
    mine = profile("runtime:\n  backend: rocm\n")
    env = {"KVRT_BACKEND": "cpu"}
    assert shown(kvrt, "run", "--profile", mine, env=env)["backend"] == (
        "cpu", "environment", "KVRT_BACKEND",
    )  # fmt: skip
    env["KVRT_RUN_BACKEND"] = "cuda"
    assert shown(kvrt, "run", "--profile", mine, env=env)["backend"][0] == "cuda"


def test_secrets_are_not_shown(kvrt: Kvrt) -> None:
    url = "postgresql://me:hunter2@db/x"
    mine = profile(f"serve:\n  batch-database: {url}\n  keys: keys.txt\n")
    for form in ((), ("--json",)):
        result = kvrt("config", "show", "serve", "--profile", mine, *form)
        assert "hunter2" not in result.stdout
        assert "postgresql://me:***@db/x" in result.stdout
        assert "keys.txt" in result.stdout
    told = kvrt("doctor", "--only", "environment", env={"KVRT_SERVE_BATCH_DATABASE": url}).stdout
    assert "hunter2" not in told
    assert "[ok] KVRT_SERVE_BATCH_DATABASE=" in told


def test_an_option_that_is_called_after_a_secret_is_one() -> None:
    from kvrt_cli.profiles.keys import is_secret

    assert is_secret(click.Option(["--api-key"]))
    assert is_secret(click.Option(["--hf-token"]))
    assert is_secret(click.Option(["--anything"], prompt=True, hide_input=True))
    assert not is_secret(click.Option(["--secret"], metavar="FILE"))
    assert not is_secret(click.Option(["--max-tokens"]))


def test_config_show_is_for_a_command_with_options(kvrt: Kvrt) -> None:
    assert "choose from" in kvrt("config", "show", "srve").stderr
    assert "choose from letters, run" in kvrt("config", "show", "batch").stderr
    assert "--prot" in kvrt("config", "show", "serve", "--prot", "1").stderr
    text = kvrt("config", "show", "serve", "--port", "1").stdout
    assert [line.split() for line in text.splitlines() if line.startswith("--port")] == [
        ["--port", "1", "command", "line"]
    ]


def leaves(command: click.Command) -> list[click.Command]:
    below = children(command)
    return [leaf for each in below.values() for leaf in leaves(each)] if below else [command]


def test_every_option_of_every_command_has_a_variable_of_its_own() -> None:
    named = [
        name
        for command in leaves(cli)
        for param in command.params
        for name in variables_of(param)
        if name.startswith("KVRT_") and name != "KVRT_BACKEND"
    ]
    assert len(named) > 300
    assert len(named) == len(set(named))
    assert set(named) <= set(variables(cli))


def test_a_command_has_each_key_once() -> None:
    for command in leaves(cli):
        names = [param for param in keys_of(command).values() if isinstance(param, click.Option)]
        options = [p for p in command.params if isinstance(p, click.Option) and p.expose_value]
        assert set(map(id, options)) <= set(map(id, names)), command.name


def test_runtimes_are_set_up_by_what_the_options_of_run_say() -> None:
    of_them = {key for key, param in keys_of(cli.commands["run"]).items() if of_runtime(param)}
    assert {"model", "page-size", "ctx-size", "share", "guarantee", "speculate"} <= of_them
    assert not of_them & {"prompt", "seed", "temperature", "stop", "quiet", "json"}


# --- those that are built in ---------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_profile_is_what_its_commands_take_and_fits(
    kvrt: Kvrt, name: str, plain_model: str
) -> None:
    Path("keys").touch()
    result = kvrt("profile-config", "check", "--json", name, "--model", plain_model,
                  env={"KVRT_BACKEND": "cpu"})  # fmt: skip
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    assert found["checks"]
    assert {check["mark"] for check in found["checks"]} <= {"ok", "!"}  # a port may be taken
    assert any(check["name"] == "memory" and check["mark"] == "ok" for check in found["checks"])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sharing", "tenants")])
def test_a_model_answers_with_the_settings_that_a_built_in_profile_has_for_runtimes(
    kvrt: Kvrt, name: str, plain_model: str
) -> None:
    result = kvrt("run", plain_model, "ab", "--profile", name, "--load-format", "dummy", "-n", "2",
                  "--memory-limit", "256MiB", "--ignore-eos", "--json", "--quantized-dir", "none",
                  "--max-model-len", "64", env={"KVRT_BACKEND": "cpu"})  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["token_ids"]) == 2


def test_profiles_are_listed_with_what_they_are_for(kvrt: Kvrt) -> None:
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "kvrt" / "profiles"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("description: My own.\nrun: {seed: 3}\n")
    (folder / "broken.yaml").write_text("- no\n")
    result = kvrt("profile-config", "list", "--json")
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert set(rows) == {*NAMES, "mine"}
    assert all(row["description"] for row in rows.values())
    assert [row["name"] for row in rows.values() if not row["built_in"]] == ["mine"]
    assert "warning: broken, line 1" in result.stderr
    assert shown(kvrt, "run", "--profile", "mine")["seed"][0] == 3


def test_a_new_profile_is_a_built_in_one_and_writes_over_nothing(kvrt: Kvrt) -> None:
    assert kvrt("profile-config", "new", "laptop", "-o", "a.yaml").exit_code == 0
    assert Path("a.yaml").read_text() == (TEMPLATES / "laptop.yaml").read_text()
    assert kvrt("profile-config", "new", "laptop").stdout == Path("a.yaml").read_text()
    again = kvrt("profile-config", "new", "server", "-o", "a.yaml")
    assert again.exit_code == 2
    assert "a.yaml is there already" in again.stderr
    assert Path("a.yaml").read_text() == (TEMPLATES / "laptop.yaml").read_text()


def test_what_does_not_fit_or_go_together_is_told_with_what_would(
    kvrt: Kvrt, plain_model: str
) -> None:
    mine = profile(
        f"runtime:\n  model: {plain_model}\n  backend: cpu\n  memory-limit: 64KiB\n"
        "serve:\n  response-cache-all: true\n  port: 0\n"
    )
    result = kvrt("profile-config", "check", mine)
    assert result.exit_code == 1
    assert "[x]  --response-cache-all needs a size" in result.stdout
    assert "fix: give --response-cache SIZE" in result.stdout
    text = Path(mine).read_text().replace("  response-cache-all: true\n", "")
    result = kvrt("profile-config", "check", profile(text))
    assert result.exit_code == 1
    assert "do not fit on cpu" in result.stdout
    assert "64 KiB are the limit" in result.stdout
    result = kvrt("profile-config", "check", profile(text.replace("64KiB", "2MiB")))
    assert result.exit_code == 0
    assert "[!]" in result.stdout
    assert "less than a text of 65,536 tokens takes" in result.stdout
    assert "fix: max-model-len: " in result.stdout


def test_a_profile_without_a_model_says_how_one_is_tried(kvrt: Kvrt) -> None:
    result = kvrt("profile-config", "check", profile("serve:\n  port: 0\n"))
    assert result.exit_code == 0
    assert "[-]  it names no model" in result.stdout
    assert "--model MODEL" in result.stdout
