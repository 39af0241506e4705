"""Routes for vLLM's server without vLLM: a real application, a real ledger, and a balloon that
answers. `test_vllm_routes.py` has the same in vLLM's own server."""

import asyncio
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from kvrt.integrations.vllm.balloon import Balloon
from kvrt.integrations.vllm.ground import Layout, Run
from kvrt.integrations.vllm.obeying import obey
from kvrt.integrations.vllm.routes import Routes, share_of
from kvrt.sharing.tenant import Tenant, Terms

from .test_balloon import BLOCKS, Pool

MIB = 1 << 20
TOTAL = BLOCKS * MIB
LAYOUT = Layout((Run(0, MIB, MIB),), 2 * MIB)


@pytest.fixture(autouse=True)
def shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVRT_SHARE_DIR", str(tmp_path / "shares"))
    return tmp_path / "shares"


@pytest.fixture
def tenant(shares: Path) -> Iterator[Tenant]:
    """An engine of this process, as far as it is asked: a balloon on a share."""
    shares.mkdir(mode=0o700)
    tenant = Tenant(shares / "gpu.cpu0", TOTAL, Terms("chat"))
    balloon = Balloon(Pool(), headroom=2, keep=0)
    balloon.lay(LAYOUT, limit_bytes=None, longest=8, tenant=tenant)
    tenant.listen(partial(obey, balloon, tenant))
    yield tenant
    tenant.close()


def transfer(connector: str = "ElasticConnector", **options: object) -> Any:
    return SimpleNamespace(kv_connector=connector, kv_connector_extra_config=options)


@pytest.fixture
def client() -> Iterator[TestClient]:
    """Of a server whose engine is on the share."""
    with served(transfer(share="gpu:64MiB")) as one:
        yield one


def served(config: Any, servers: int = 1) -> TestClient:
    routes, app = Routes(), Starlette()
    routes.attach_router(app)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(kv_transfer_config=config))
    asyncio.run(routes.init_state(engine, app.state, Namespace(api_server_count=servers)))
    return TestClient(app)


def test_memory_says_what_the_engine_holds_and_on_which_share(
    client: TestClient, tenant: Tenant
) -> None:
    tenant.take(6 * MIB)
    (engine,) = client.get("/v1/kvrt/memory").json()["engines"]
    assert (engine["share"], engine["device"], engine["size"]) == ("gpu", "cpu0", TOTAL)
    assert engine["held"] == engine["held_by_all"] == tenant.held
    assert (engine["tenant"], engine["guaranteed"], engine["cached"]) == ("chat", 0, 0)


def test_a_limit_is_changed_numbered_and_refused_where_it_is_too_small(
    client: TestClient, tenant: Tenant
) -> None:
    half = client.post("/v1/kvrt/limit", json={"size": "50%", "revision": 4})
    assert half.json() == {"outcome": "applied", "revision": 4}
    late = client.post("/v1/kvrt/limit", json={"size": "8MiB", "revision": 3})
    assert late.json() == {"outcome": "stale", "revision": 4}
    small = client.post("/v1/kvrt/limit", json={"size": 4 * MIB})
    assert small.status_code == 409
    assert "longest request" in small.json()["error"]["message"]


def test_guarantee_and_reclaim_are_asked_for_too(client: TestClient, tenant: Tenant) -> None:
    done = client.post("/v1/kvrt/guarantee", json={"size": "16MiB"})
    assert done.json()["outcome"] == "applied"
    (engine,) = client.get("/v1/kvrt/memory").json()["engines"]
    assert engine["guaranteed"] == 16 * MIB
    assert client.post("/v1/kvrt/guarantee", json={"size": "65MiB"}).status_code == 409
    assert client.post("/v1/kvrt/reclaim").json()["outcome"] == "applied"


@pytest.mark.parametrize(
    ("verb", "body", "why"),
    [
        ("limit", b"{}", "needs a size"),
        ("limit", b"{", "no JSON object"),
        ("limit", b"[1]", "no JSON object"),
        ("limit", b'{"size": "much"}', "size"),
        ("limit", b'{"size": "120%"}', "must be a size"),
        ("limit", b'{"size": "8MiB", "revision": 0}', "revision"),
        ("limit", b'{"size": "8MiB", "process": 1}', "has engines"),
        ("guarantee", b'{"bytes": 5}', "takes no bytes"),
        ("reclaim", b'{"size": "8MiB"}', "takes no size"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_changes_nothing(
    client: TestClient, tenant: Tenant, verb: str, body: bytes, why: str
) -> None:
    answer = client.post(f"/v1/kvrt/{verb}", content=body)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]
    assert client.post("/v1/kvrt/reclaim").json()["revision"] == 1


def test_an_engine_of_another_server_is_not_this_ones(client: TestClient, shares: Path) -> None:
    shares.mkdir(mode=0o700)
    with stranger(shares):
        answer = client.get("/v1/kvrt/memory")
        assert answer.status_code == 404
        assert "no engine of this server" in answer.json()["error"]["message"]


def test_several_servers_of_one_engine_find_it_beside_them(tenant: Tenant) -> None:
    """One process has started all of them, and the engine: here, what started this one."""
    with served(transfer(share="gpu"), servers=2) as one:
        assert len(one.get("/v1/kvrt/memory").json()["engines"]) == 1


def stranger(shares: Path) -> "subprocess.Popen[bytes]":
    """A tenant that is no child of this process: its parent, which was, has ended."""
    program = (
        "import os, sys\n"
        "if os.fork():\n os._exit(0)\n"
        "os.setsid()\n"
        "from pathlib import Path; from kvrt.sharing.tenant import Tenant, Terms\n"
        f"tenant = Tenant(Path({str(shares / 'gpu.cpu0')!r}), {TOTAL}, Terms('chat'))\n"
        "print('there', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    return process


@pytest.mark.parametrize("config", [None, transfer("Other"), transfer(memory_limit="1GiB")])
def test_without_a_share_it_is_said_what_is_missing(config: Any) -> None:
    with served(config) as one:
        for answer in (one.get("/v1/kvrt/memory"), one.post("/v1/kvrt/reclaim")):
            assert answer.status_code == 404
            assert "share" in answer.json()["error"]["message"]


def test_the_share_is_found_within_a_multi_connector() -> None:
    inner = [
        {
            "kv_connector": "OffloadingConnector",
            "kv_connector_extra_config": {"tiers": "host:1GiB"},
        },
        {"kv_connector": "ElasticConnector", "kv_connector_extra_config": {"share": "gpu0:60GiB"}},
    ]
    assert share_of(transfer("MultiConnector", connectors=inner)) == "gpu0"
    assert share_of(transfer("MultiConnector", connectors=inner[:1])) is None
