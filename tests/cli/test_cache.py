"""`kvrt run` and `kvrt bench` with pages that outlive their request."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from kvrt.kv.tiers.pagefile import PageFile

from .conftest import DUMMY, Kvrt, Screen

At = Callable[..., Screen]
PAGE = 16
PROMPT = "Once upon a time there was a page of keys and values. " * 4
SHORT = (*DUMMY, "-n", "8", "--ignore-eos")


def as_object(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert isinstance(value, dict)
    return value


# --- reuse -----------------------------------------------------------------------------------


def test_lines_that_begin_alike_compute_their_beginning_once(
    kvrt: Kvrt, plain_model: str, tmp_path: Path
) -> None:
    file = tmp_path / "prompts"
    file.write_text("".join(f"{PROMPT}{n}\n" for n in range(4)))
    args = ("run", plain_model, "--prompts", str(file), *SHORT, "--verbose")
    full = len(PROMPT) // PAGE * PAGE
    for option, cached in (("--prefix-cache", full), ("--no-prefix-cache", 0)):
        result = kvrt(*args, option)
        assert result.exit_code == 0, result.stderr
        rows = [json.loads(line) for line in result.stdout.splitlines()]
        assert sorted(row["usage"]["cached_tokens"] for row in rows) == [0, *[cached] * 3]
        assert (f"{3 * full} of them cached" in result.stderr) == bool(cached)


def test_the_next_turn_of_a_conversation_computes_what_is_new(
    at_terminal: At, chat_model: str
) -> None:
    screen = at_terminal("run", chat_model, *SHORT, "--verbose")
    screen.wait_for(">>> ")
    screen.type(f"{PROMPT}\n")
    assert "of them cached" not in screen.wait_for("\npreemptions")
    screen.wait_for(">>> ")
    screen.type("and then?\n")
    shown = screen.wait_for("\npreemptions")
    cached = re.search(r"\d+ tokens, (\d+) of them cached; \d+ computed", shown)
    assert cached is not None, shown
    assert int(cached[1]) >= len(PROMPT) // PAGE * PAGE
    screen.wait_for(">>> ")
    screen.type("/show info\n")
    held = re.search(r"KV cached +([\d.]+ KiB)", screen.wait_for(">>> "))
    assert held is not None
    screen.type("/bye\n")
    assert screen.exit_code() == 0


def test_memory_at_the_end_is_told_apart_into_pages_that_are_cached_and_the_rest(
    kvrt: Kvrt, plain_model: str
) -> None:
    with_pages, without = (
        as_object(kvrt("run", plain_model, PROMPT, *SHORT, "--json", option))["statistics"]
        for option in ("--prefix-cache", "--no-prefix-cache")
    )
    assert with_pages["kv_cached_bytes"] > 0
    assert with_pages["kv_end_bytes"] >= with_pages["kv_cached_bytes"]
    assert without["kv_cached_bytes"] == 0


def test_a_benchmark_computes_every_prompt_unless_it_is_asked_to_reuse(
    kvrt: Kvrt, plain_model: str
) -> None:
    args = ("bench", plain_model, *DUMMY, "--quiet", "-r", "2", "-p", "64", "-n", "0", "-o", "json")
    for options, cached in (((), 0), (("--prefix-cache",), 2 * 48)):
        result = kvrt(*args, *options)
        assert result.exit_code == 0, result.stderr
        (row,) = json.loads(result.stdout)
        assert row["cached_tokens"] == cached
        assert row["prefix_cache"] is bool(cached)
        assert (row["offload"], row["preemption"]) == ("none", "auto")


# --- over restarts ---------------------------------------------------------------------------


def test_a_cache_folder_serves_the_next_call(kvrt: Kvrt, plain_model: str, tmp_path: Path) -> None:
    args = ("run", plain_model, PROMPT, *SHORT, "--json", "--cache-dir", str(tmp_path / "kv"))
    first, again = (as_object(kvrt(*args)) for _ in range(2))
    assert first["token_ids"] == again["token_ids"]
    assert first["usage"]["cached_tokens"] == 0
    assert again["usage"]["cached_tokens"] == len(PROMPT) // PAGE * PAGE
    assert again["statistics"]["fetched_tokens"] == len(PROMPT) // PAGE * PAGE
    assert again["statistics"]["disk_pages"] > 0


def test_what_is_evicted_goes_to_the_tiers(kvrt: Kvrt, plain_model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts"
    file.write_text(f"{PROMPT}\n{PROMPT}\n")
    disk = f"host:1MiB,disk:{tmp_path / 'pages'}:64MiB"
    options = ("--offload", disk, "--offload-write", "through", "--preemption", "move", "-v")
    result = kvrt("run", plain_model, "--prompts", str(file), *SHORT, *options)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"KV tiers +\d+ KiB in host memory", result.stderr)
    assert list((tmp_path / "pages").iterdir())


def test_ctrl_c_ends_the_saving_of_pages_and_those_saved_are_whole(
    kvrt: Kvrt, plain_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half a minute for all of them; Ctrl-C comes with the fifth."""
    main, write, written = threading.get_ident(), PageFile.write, 0

    def slow(self: PageFile, name: Any, data: Any) -> bool:
        nonlocal written
        written += 1
        if written == 5:
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.5)
        return write(self, name, data)

    monkeypatch.setattr(PageFile, "write", slow)
    args = ("run", plain_model, PROMPT * 5, *SHORT, "--json", "--cache-dir", str(tmp_path))
    result = kvrt(*args)
    assert result.exit_code == 130
    assert "interrupted it after" in result.stderr
    assert "saving cached pages in" in result.stderr
    assert written <= 6
    monkeypatch.setattr(PageFile, "write", write)
    again = as_object(kvrt(*args))
    assert again["usage"]["cached_tokens"] in (4 * PAGE, 5 * PAGE)
    cold = as_object(kvrt(*args[:-2], "--no-prefix-cache"))
    assert again["token_ids"] == json.loads(result.stdout)["token_ids"] == cold["token_ids"]


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--prefix-cache-policy", "mru"], "'mru' is not one of 'lru', 'lfu', 'cost'"),
        (["--prefix-cache-ttl", "-1"], "'-1' is not a number of seconds from 0 on"),
        (["--prefix-cache-ttl", "nan"], "'nan' is not a number of seconds"),
        (["--prefix-cache-ttl", "soon"], "'soon' is not a number of seconds"),
        (["--offload", "8GiB"], "'8GiB' is not a tier"),
        (["--offload", "host:much"], "'much' is not a size"),
        (["--offload", "host:1GiB,host:2GiB"], "tier host comes twice"),
        (["--offload", "disk:/dev/null:1GiB"], "'/dev/null' is not a folder"),
        (["--offload-write", "never"], "'never' is not one of 'back', 'through'"),
        (["--cache-dir", "/dev/null"], "'/dev/null' is not a folder"),
        (["--cache-dir", ""], "'' is not a folder"),
        (["--preemption", "swap"], "'swap' is not one of 'auto', 'move', 'recompute'"),
        (["--no-prefix-cache", "--cache-dir", "x"], "--cache-dir finds pages by their tokens"),
        (["--no-prefix-cache", "--offload", "host:1GiB"], "--offload finds pages by their tokens"),
    ],
)
def test_a_bad_value_is_refused_before_a_model_is_loaded(
    kvrt: Kvrt, options: list[str], cause: str
) -> None:
    result = kvrt("run", "./no-such-model", "a", *options)
    assert result.exit_code == 2, result.stderr
    assert cause in result.stderr
    assert "  fix: " in result.stderr


def test_a_benchmark_refuses_tiers_without_reuse(kvrt: Kvrt) -> None:
    result = kvrt("bench", "./no-such-model", "--offload", "host:1GiB")
    assert result.exit_code == 2
    assert "add --prefix-cache" in result.stderr
