"""`kvrt.client` and a server of several models."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kvrt.client import ServerError, standing, words
from tests.client.driving import Driver, driving
from tests.server.conftest import Server, started
from tests.server.test_models import save_variant


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("small", "other"):
        save_variant(folder / name, 2, 1.0)
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    args = ("--models", str(folder), "--memory-limit", "32MiB", "--chat-template", "plain")
    with started(tmp_path_factory.mktemp("server"), *args, model=str(folder / "small")) as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def driver(request: pytest.FixtureRequest, models: Server) -> Iterator[Driver]:
    with driving(request.param, models.url) as one:
        yield one


def state(driver: Driver, name: str, value: str) -> words.ModelStatus:
    """Once it is so, by the events."""
    event = driver.until(
        lambda client: client.events(), lambda e: e.model == name and e.status.value == value
    )
    found: words.ModelStatus = event.status
    return found


def test_models_are_loaded_put_to_sleep_and_unloaded(driver: Driver) -> None:
    names = {each.id for each in driver.one(lambda client: client.models())}
    assert {"small", "other"} <= names
    assert driver.one(lambda client: client.load("other")).id == "other"
    loaded = state(driver, "other", "loaded")
    assert loaded.held_bytes
    assert loaded.load_seconds
    assert driver.all(lambda client: client.chat("x", model="other", max_tokens=2))
    driver.one(lambda client: client.sleep("other"))
    asleep = state(driver, "other", "sleeping").held_bytes
    assert isinstance(asleep, int)
    assert asleep < loaded.held_bytes
    driver.one(lambda client: client.wake("other"))
    state(driver, "other", "loaded")
    driver.one(lambda client: client.unload("other"))
    state(driver, "other", "unloaded")
    with pytest.raises(ServerError) as caught:
        driver.one(lambda client: client.load("none"))
    assert caught.value.status == 404


def test_every_field_that_is_said_of_several_models_has_a_type(models: Server) -> None:
    def ask(method: str, path: str, kind: Any, body: Any = None) -> Any:
        status, _, found = models.ask(method, path, body)
        assert status == 200, found
        told = msgspec.json.decode(found, type=kind)
        assert msgspec.to_builtins(told) == json.loads(found)
        return told

    with driving("sync", models.url) as driver:
        driver.one(lambda client: client.unload("small"))
        state(driver, "small", "unloaded")
        assert ask("GET", "/status", standing.Status).model is None
        ask("POST", "/models/load", words.Ordered, {"model": "broken"})
        assert state(driver, "broken", "failed").error
        ask("POST", "/models/load", words.Ordered, {"model": "small"})
        state(driver, "small", "loaded")
        assert ask("GET", "/status", standing.Status).model.names == ["small"]
        assert len(ask("GET", "/v1/models", words.Models).data) == 3
