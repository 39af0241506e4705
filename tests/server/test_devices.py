"""Several models on several devices, placed and loaded by the rules that the simulator tries."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvrt.errors import ConfigError
from kvrt.server.config import ServerConfig
from kvrt.server.fleet.places import Place, read_places

from .conftest import PROMPT, Server, launch, listening, until
from .test_models import NAMES, save_variant, states

PLUGINS = Path(__file__).parents[1] / "plugins"
ENVIRONMENT = {"PYTHONPATH": str(PLUGINS)}
ASKED: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
ROOMS = {"cpu:0": 10 << 20, "null:0": 10 << 20}
"""Each has room for one of the models; no device has it for two."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for number, name in enumerate(NAMES):
        save_variant(folder / name, 2, 1.0 + number)
    return folder


@pytest.fixture(scope="module")
def devices(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The processors, and a make-believe device beside them."""
    args = ("--models", str(folder), "--devices", "cpu=10MiB,null=10MiB", "--slo", "ttft_p95=5s")
    home = tmp_path_factory.mktemp("server")
    log, model = home / "log", str(folder / NAMES[0])
    server = launch(log, model, "--port", "0", "--chat-template", "plain", *args, env=ENVIRONMENT)
    with listening(server):
        yield server


def say(server: Server, name: str) -> str:
    status, answer = server.post("/v1/completions", {"model": name, **ASKED})
    assert status == 200, answer
    text: str = answer["choices"][0]["text"]
    return text


def test_models_are_spread_over_devices_and_none_is_given_more_than_it_has(devices: Server) -> None:
    said = {name: say(devices, name) for name in NAMES[:2]}
    there = {name: states(devices)[name] for name in NAMES[:2]}
    assert {told["device"] for told in there.values()} == set(ROOMS), "one on each"
    assert {told["value"] for told in there.values()} == {"loaded"}
    say(devices, NAMES[2])  # for which the one of less worth goes
    loaded = [told for told in states(devices).values() if told["value"] == "loaded"]
    assert len(loaded) == 2
    draws = random.Random(14)
    with ThreadPoolExecutor(6) as pool:
        wanted = [draws.choice(NAMES) for _ in range(40)]
        answers = list(pool.map(lambda name: (name, say(devices, name)), wanted))
    for name, text in answers:
        if name in said:
            assert text == said[name], "wherever it is"
    held = dict.fromkeys(ROOMS, 0)
    for told in states(devices).values():
        if told["device"] is not None:
            held[told["device"]] += told["held_bytes"]
    assert all(held[name] <= ROOMS[name] for name in ROOMS)


def test_a_model_whose_device_is_said_to_be_none_is_unloaded(devices: Server) -> None:
    status, _ = devices.post("/models/unload", {"model": NAMES[0]})
    assert status == 200
    until(lambda: states(devices)[NAMES[0]]["value"] == "unloaded")
    assert states(devices)[NAMES[0]]["device"] is None


def test_a_device_that_is_not_there_is_told_before_anybody_can_connect(
    folder: Path, tmp_path: Path
) -> None:
    server = launch(
        tmp_path / "log", "--models", str(folder), "--devices", "cpu,cpu:1", "--port", "0"
    )
    assert server.process.wait(120) == 4
    assert "there is no cpu device 1" in server.said()


@pytest.mark.parametrize(
    ("text", "why"),
    [("cpu,,", "is none"), ("cpu:x", "is none"), ("cpu,cpu:0", "twice"), ("cpu=much", "size")],
)
def test_devices_that_are_none_are_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        read_places(text)


def test_devices_are_read_as_they_are_written() -> None:
    assert read_places("cuda:1=20GiB, cpu") == [Place("cuda", 1, "20GiB"), Place("cpu", 0)]
    assert ServerConfig(devices="cuda:0,cuda:1").devices == "cuda:0,cuda:1"
