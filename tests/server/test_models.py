"""Several models in one server, in memory for one and a half of them."""

import contextlib
import http.client
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ollama
import pytest
from safetensors.torch import load_file, save_file

from kvrt.model.files.resolve import resolve
from kvrt.runtime import Runtime
from kvrt.sampling import SamplingParams

from .conftest import PROMPT, Server, started, until

NAMES = ("big", "small", "other")
ASKED: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
ROOM = "15MiB"
"""That all have. The big one needs 9.3 MiB with the smallest cache, the others 6.8 each."""


def save_variant(folder: Path, layers: int, factor: float) -> Path:
    """The bundled model with the first layers alone, which says something else."""
    tiny = resolve("tiny")
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    config = json.loads((tiny / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    tensors = {
        name: tensor * (factor if "mlp" in name else 1.0)
        for name, tensor in load_file(tiny / "model.safetensors").items()
        if ".layers." not in name or int(name.split(".")[2]) < layers
    }
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_variant(folder / "big", 4, 0.9)
    save_variant(folder / "small", 2, 1.0)
    save_variant(folder / "other", 2, 3.0)
    return folder


@pytest.fixture(scope="module")
def right(folder: Path) -> dict[str, str]:
    """What each says alone."""
    found = {}
    for name in NAMES:
        with Runtime(folder / name, backend="cpu", memory_limit="64MiB") as runtime:
            params = SamplingParams(max_tokens=6, ignore_eos=True)
            found[name] = runtime.generate(PROMPT, params)[0].text
    assert len(set(found.values())) == len(found), "else nobody could tell who has answered"
    return found


@pytest.fixture(scope="module")
def models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    args = ("--models", str(folder), "--memory-limit", ROOM, "--chat-template", "plain")
    with started(tmp_path_factory.mktemp("server"), *args, model=str(folder / "big")) as server:
        yield server


def states(server: Server) -> dict[str, dict[str, Any]]:
    listed = json.loads(server.ask("GET", "/v1/models")[2])["data"]
    return {each["id"]: each["status"] for each in listed}


def settle(server: Server) -> None:
    """Until nothing is loaded, goes, or is asked for."""
    resting = {"loaded", "sleeping", "unloaded", "failed"}
    until(
        lambda: all(
            each["value"] in resting and not each["running"] and not each["waiting"]
            for each in states(server).values()
        )
    )


def say(server: Server, name: str) -> str:
    status, answer = server.post("/v1/completions", {"model": name, **ASKED})
    assert status == 200, answer
    assert answer["model"] == name
    text: str = answer["choices"][0]["text"]
    return text


def test_of_many_requests_at_random_none_is_lost_and_memory_is_kept_to(
    models: Server, right: dict[str, str]
) -> None:
    draws = random.Random(14)
    wanted = [draws.choice(NAMES) for _ in range(200)]
    over = threading.Event()
    held: list[int] = []

    def watch() -> None:
        while not over.is_set():
            held.append(sum(each["held_bytes"] for each in states(models).values()))
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(16) as pool:
        said = list(pool.map(lambda name: say(models, name), wanted))
    over.set()
    watching.join()
    assert said == [right[name] for name in wanted]
    assert max(held) <= 15 << 20
    assert models.metrics()["kvrt_model_loads_total,outcome=loaded"] > 3


def test_a_stream_goes_on_while_another_model_is_loaded(
    models: Server, right: dict[str, str]
) -> None:
    """How little it pauses depends on what else the machine does."""
    say(models, "small")
    for name in ("big", "other"):
        models.post("/models/unload", {"model": name})
    until(lambda: {states(models)[name]["value"] for name in ("big", "other")} == {"unloaded"})
    asked = {"model": "small", **ASKED, "max_tokens": 900, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", models.port, timeout=60)
    with contextlib.closing(connection), ThreadPoolExecutor(1) as pool:
        connection.request("POST", "/v1/completions", json.dumps(asked))
        response = connection.getresponse()
        assert response.readline()
        loading = pool.submit(say, models, "other")
        meanwhile = 0
        while not loading.done():
            line = response.readline()
            assert line, "the stream has ended too soon"
            meanwhile += line.startswith(b"data: {")
        assert loading.result() == right["other"]
        assert meanwhile > 3
        while b"[DONE]" not in line:
            line = response.readline()


def test_a_client_that_leaves_while_it_waits_costs_nobody_his_place(
    models: Server, right: dict[str, str]
) -> None:
    settle(models)
    say(models, "big")
    stream = models.open_stream(model="big")  # it is busy, and the two others fit only without it
    waiting = [
        http.client.HTTPConnection("127.0.0.1", models.port, timeout=60) for _ in ("small", "other")
    ]
    for name, each in zip(("small", "other"), waiting, strict=True):
        each.request("POST", "/v1/completions", json.dumps({"model": name, **ASKED}))
    until(lambda: sum(each["waiting"] + each["running"] for each in states(models).values()) >= 2)
    for each in waiting:
        each.close()
    until(lambda: not any(each["waiting"] for each in states(models).values()))
    stream.close()
    settle(models)
    assert states(models)["big"]["value"] == "loaded"
    assert say(models, "big") == right["big"]


def test_a_model_that_cannot_be_loaded_is_an_error_to_those_who_ask_for_it(
    models: Server, right: dict[str, str]
) -> None:
    status, answer = models.post("/v1/completions", {"model": "broken", **ASKED})
    assert status == 503
    assert answer["error"]["message"].startswith("broken cannot be loaded: ")
    status, headers, _ = models.ask("POST", "/v1/completions", {"model": "broken", **ASKED})
    assert (status, headers["retry-after"]) == (503, "1")
    assert say(models, "small") == right["small"]
    assert states(models)["broken"]["value"] == "failed"
    assert models.ask("GET", "/readyz")[0] == 200


@pytest.mark.parametrize("name", ["nobody", "../big", "big/", ""])
def test_a_model_that_is_not_there_is_refused_and_nothing_is_loaded(
    models: Server, name: str
) -> None:
    before = models.metrics()["kvrt_model_loads_total,outcome=loaded"]
    status, answer = models.post("/v1/completions", {"model": name, **ASKED})
    assert status == 404
    assert answer["error"]["code"] == "model_not_found"
    assert models.metrics()["kvrt_model_loads_total,outcome=loaded"] == before


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"model": 3}', 400), (b"{}", 400), (b'{"model": null}', 400)],
)
def test_a_request_that_names_no_model_is_refused(models: Server, body: bytes, status: int) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/tokenize"):
        assert models.ask("POST", path, body)[0] == status


def test_what_a_model_is_asked_beside_answers_goes_to_that_model(models: Server) -> None:
    status, answer = models.post("/tokenize", {"model": "other", "prompt": PROMPT})
    assert status == 200
    assert answer["count"] == len(answer["tokens"]) > 3
    assert models.post("/api/show", {"model": "other:latest"})[0] == 200


def test_operators_load_and_unload_and_events_tell_of_it(models: Server) -> None:
    settle(models)
    connection = http.client.HTTPConnection("127.0.0.1", models.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/models/sse")
        response = connection.getresponse()

        def next_change(name: str) -> str:
            while True:
                line = response.readline()
                assert line
                if line.startswith(b"data: "):
                    told = json.loads(line.removeprefix(b"data: "))
                    if told["model"] == name:
                        return str(told["status"]["value"])

        first = next_change("small")
        assert first in ("loaded", "sleeping", "unloaded")
        for verb, state in (("load", "loaded"), ("sleep", "sleeping"), ("wake", "loaded"),
                            ("unload", "unloaded")):  # fmt: skip
            status, answer = models.post(f"/models/{verb}", {"model": "small"})
            assert (status, answer["success"]) == (200, True)
            seen = first
            while seen != state:
                seen = next_change("small")
            first = state
    for path in ("load", "unload", "sleep", "wake"):
        assert models.post(f"/models/{path}", {"model": "nobody"})[0] == 404
        assert models.post(f"/models/{path}", {})[0] == 400


def test_ollamas_clients_say_how_long_a_model_stays(models: Server) -> None:
    client = ollama.Client(host=models.url)
    try:
        assert {each.model for each in client.list().models} >= set(NAMES)
        client.generate("small", "a", options={"num_predict": 1}, keep_alive=-1)
        (held,) = [each for each in client.ps().models if each.model == "small"]
        assert held.expires_at is not None
        assert held.expires_at.year == 9999
        answer = client.generate("small", keep_alive=0)
        assert answer.done_reason == "unload"
        until(lambda: states(models)["small"]["value"] == "unloaded")
        client.generate("small", "a", options={"num_predict": 1}, keep_alive="0s")
        until(lambda: states(models)["small"]["value"] == "unloaded")
        client.generate("small", keep_alive="10m")
        assert states(models)["small"]["value"] == "loaded"
        with pytest.raises(ollama.ResponseError, match="keep_alive"):
            client.generate("small", "a", keep_alive="soon")
    finally:
        client._client.close()


def test_metrics_and_status_are_told_by_model(models: Server, right: dict[str, str]) -> None:
    say(models, "big")
    metrics = models.metrics()
    assert metrics["kvrt_requests_total,model=big,outcome=length"] > 0
    assert metrics["kvrt_model_state,model=big,state=loaded"] == 1
    told = json.loads(models.ask("GET", "/status?model=big")[2])
    assert told["model"]["names"][0] == "big"
    assert {each["name"] for each in told["models"]} >= set(NAMES)
    assert models.ask("GET", "/status?model=nobody")[0] == 404


def test_a_model_that_comes_into_the_folder_is_there(models: Server, folder: Path) -> None:
    save_variant(folder / "late", 1, 1.0)
    assert say(models, "late")
    shutil.rmtree(folder / "late")


def test_memory_of_a_model_that_is_unloaded_comes_back(tmp_path: Path) -> None:
    """A tenth of a gigabyte, so that it shows."""
    tiny = resolve("tiny")
    wide = tmp_path / "wide"
    wide.mkdir()
    shutil.copy(tiny / "tokenizer.json", wide)
    config = json.loads((tiny / "config.json").read_text())
    config |= {"num_hidden_layers": 48, "intermediate_size": 1280}
    (wide / "config.json").write_text(json.dumps(config))
    args = ("--models", str(tmp_path), "--load-format", "dummy", "--memory-limit", "256MiB")
    with started(tmp_path, *args, model="tiny") as server:
        say_nothing = {**ASKED, "max_tokens": 1}
        server.post("/v1/completions", {"model": "tiny", **say_nothing})
        before = server.rss
        server.post("/v1/completions", {"model": "wide", **say_nothing})
        weights = states(server)["wide"]["bytes"]
        assert server.rss > before + 0.7 * weights
        server.post("/models/unload", {"model": "wide"})
        until(lambda: states(server)["wide"]["value"] == "unloaded")
        assert server.rss < before + 0.3 * weights


def test_models_are_loaded_and_unloaded_by_admins_alone(tmp_path: Path) -> None:
    from kvrt.server.access.keys import add_key
    from kvrt.server.access.limits import Limits

    keys = tmp_path / "keys"
    made = {role: add_key(keys, role, role, Limits()) for role in ("user", "admin")}
    with started(tmp_path, "two=tiny", "--keys", str(keys)) as server:
        for role, status in (("user", 403), ("admin", 200)):
            bearer = {"authorization": f"Bearer {made[role]}"}
            for verb in ("load", "unload"):
                answer = server.post(f"/models/{verb}", {"model": "two"}, headers=bearer)
                assert answer[0] == status
            assert server.ask("GET", "/v1/models", headers=bearer)[0] == 200
        assert server.end() == 0
