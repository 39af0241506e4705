"""Who may ask, from where, and what a server refuses to be started with."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from kvrt_cli.main import cli

from kvrt.errors import ConfigError
from kvrt.server.access.guard import OPEN
from kvrt.server.access.keys import Keys, add_key
from kvrt.server.config import ServerConfig

from .conftest import Server, started

ROUTES = ["/models", "/models/tiny", "/embeddings", "/completions", "/chat/completions",
          "/responses", "/responses/input_tokens", "/v1/models", "/v1/models/tiny",
          "/v1/completions", "/v1/chat/completions", "/tokenize", "/v1/embeddings", "/detokenize",
          "/v1/messages", "/v1/messages/count_tokens", "/metrics", "/version", "/",
          "/v1/responses", "/v1/responses/input_tokens", "/nothing", "/api/chat", "/api/generate",
          "/api/tags", "/api/ps", "/api/show", "/api/version", "/status", "/page.css", "/page.js",
          "/chat.js", "/live.js", "/icon.svg", "/v1/files", "/v1/files/x", "/v1/files/x/content",
          "/v1/batches", "/v1/batches/x", "/v1/batches/x/cancel", "/v1/batches/x/retry",
          "/v1/batches/x/failed",
          "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/rerank", "/v1/rerank",
          "/v2/rerank", "/audio/transcriptions", "/audio/translations",
          "/v1/audio/transcriptions", "/v1/audio/translations", "/answers", "/moves",
          "/v2/models/tiny/ready", "/openai/v1/models", "/openai/v1/chat/completions",
          "/usage", "/profile", "/keys", "/keys/x", "/requests/x", "/tokens/v1/completions",
          "/tokens/v1/chat/completions",
          "/tokens/v1/messages", "/tokens/v1/responses", "/tokens/api/chat",
          "/tokens/api/generate"]  # fmt: skip
TRICKS = ["/{}", "/v1/..{}", "{}/", "{}/.", "{}%2e", "/%2e%2e{}", "{}?a=/livez", "{};/livez",
          "/livez/..{}", "/livez/{}", "/livez%00{}", "/LIVEZ{}", "{}#/livez"]  # fmt: skip


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys of each role, and the file's path as ``file``."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    keys = {role: add_key(path, f"{role}-1", role) for role in ("user", "admin", "metrics")}  # type: ignore[arg-type]
    return {**keys, "other": add_key(path, "user-2"), "file": str(path)}


@pytest.fixture(scope="module")
def guarded(keyed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("guarded"), "--keys", keyed["file"]) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.promise("P28")
def test_without_a_key_every_route_but_the_probes_is_refused(
    guarded: Server, keyed: dict[str, str]
) -> None:
    for path in OPEN:
        assert guarded.ask("GET", path)[0] == 200
    paths = {trick.format(route) for route in ROUTES for trick in ("{}", *TRICKS)}
    for path in paths:
        if path.partition("?")[0].partition("#")[0] in OPEN:
            continue
        for method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE"):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            found = guarded.raw(f"{head}\r\n".encode(), 5)
            assert found.split()[1] in (b"401", b"400"), (method, path, found[:100])
    key = keyed["user"]
    for lines in (
        "Authorization: Bearer wrong\r\n",
        f"Authorization: Bearer {key[:-1]}\r\n",
        f"Authorization: Basic {key}\r\n",
        f"Authorization: {key}\r\n",
        f"Authorization: Bearer {key}\r\nAuthorization: Bearer wrong\r\n",
        f"X-Api-Key: {key}\r\nAuthorization: Bearer\r\n",
        "X-Forwarded-For: 127.0.0.1\r\nX-Original-URL: /livez\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: YQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n",
        "Authorization: Bearer \xff\xfe\r\n",
    ):
        request = f"GET /v1/models HTTP/1.1\r\nHost: x\r\n{lines}Connection: close\r\n\r\n"
        found = guarded.raw(request.encode("latin-1"), 5)
        assert found.split()[1] in (b"401", b"400"), (lines, found[:100])


@pytest.mark.promise("P28")
def test_a_key_opens_what_its_role_is_for(guarded: Server, keyed: dict[str, str]) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 1}
    for role, asks, sees in (("user", 200, 403), ("metrics", 403, 200), ("admin", 200, 200)):
        headers = bearer(keyed[role])
        assert guarded.post("/v1/completions", body, headers=headers)[0] == asks
        assert guarded.ask("GET", "/metrics", headers=headers)[0] == sees
    assert guarded.ask("GET", "/v1/models", headers={"x-api-key": keyed["user"]})[0] == 200
    with guarded.client(api_key=keyed["user"]) as client:
        assert client.models.list().data[0].id == "tiny"


@pytest.mark.promise("P30")
def test_pages_are_found_again_under_the_same_key_alone(
    guarded: Server, keyed: dict[str, str]
) -> None:
    body = {"model": "tiny", "prompt": [7] * 100, "max_tokens": 1, "cache_salt": "user-1"}
    cached = []
    for name in ("user", "other", "user", "other"):
        _, answer = guarded.post("/v1/completions", body, headers=bearer(keyed[name]))
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached[:2] == [0, 0]
    assert min(cached[2:]) > 80


def test_every_route_of_the_server_is_among_those_tried() -> None:
    source = (Path(__file__).parents[2] / "kvrt/server/app.py").read_text()
    named = set(re.findall(r'"(/[^"]*)"', source))
    assert len(named) >= 11
    named = {path.replace("{name:path}", "tiny").replace("{id}", "x") for path in named}
    named = {path.replace("{path}", "/v1/completions") for path in named}
    assert named <= {*ROUTES, *OPEN}


@pytest.mark.promise("P28")
@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "localhost:8000", 200),
        ("Host", "127.0.0.1", 200),
        ("Host", "[::1]:80", 200),
        ("Host", "evil.example", 403),
        ("Host", "localhost.evil.example", 403),
        ("Host", "[", 403),
        ("Origin", "http://localhost:3000", 200),
        ("Origin", "https://evil.example", 403),
        ("Origin", "null", 403),
    ],
)
def test_without_keys_a_page_of_another_site_is_refused(
    server: Server, header: str, value: str, status: int
) -> None:
    assert server.ask("GET", "/v1/models", headers={header: value})[0] == status


@pytest.mark.promise("P29")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "127.0.0.1.nip.io"])
def test_an_address_that_others_reach_needs_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="no keys"):
        ServerConfig(host=host)
    assert ServerConfig(host=host, without_keys=True).host == host


@pytest.mark.promise("P29", "P42")
def test_it_listens_at_this_machine_alone_whatever_the_environment_says(server: Server) -> None:
    """Kubernetes sets variables such as KVRT_PORT for a service of that name; `server` has them."""
    environ = Path(f"/proc/{server.process.pid}/environ").read_bytes()
    assert b"KVRT_PORT=tcp://10.0.0.1:80" in environ
    table = Path(f"/proc/{server.process.pid}/net/tcp").read_text()
    port = f":{server.port:04X}"
    listening = [line.split()[1] for line in table.splitlines()[1:] if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]


@pytest.mark.promise("P29")
def test_usage_that_cannot_be_is_refused_before_a_model_is_loaded(
    server: Server, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.write_text("# nobody\n")
    wrong = tmp_path / "wrong"
    wrong.write_text("alice user my-own-password\n")
    for args, said in (
        (["--host", "0.0.0.0"], "--without-keys"),
        (["--port", str(server.port)], "cannot be had"),
        (["--keys", str(tmp_path / "none")], "cannot be read"),
        (["--keys", str(empty)], "has no keys"),
        (["--keys", str(wrong)], "line 1"),
        (["--chat-template", str(tmp_path / "none")], "cannot be read"),
        (["--new-key", "me"], "--keys"),
    ):
        result = CliRunner().invoke(cli, ["serve", "/no/such/model", "--port", "0", *args])
        assert result.exit_code == 2, (args, result.output)
        assert said in result.output
        assert "my-own-password" not in result.output


def test_a_new_key_is_printed_once_and_kept_as_its_hash_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    args = ["serve", "--keys", str(path), "--new-key", "alice", "--role", "admin"]
    result = CliRunner().invoke(cli, args)
    key = result.stdout.strip()
    assert result.exit_code == 0, result.output
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    owner = Keys(path).owner([key])
    assert owner is not None
    assert (owner.name, owner.role) == ("alice", "admin")
    assert Keys(path).owner([key + "x"]) is None
    assert Keys(path).owner([]) is None
    with pytest.raises(ConfigError, match="name"):
        add_key(path, "a b")
    other = tmp_path / "other"
    other.write_text("root:x:0:0\n")
    with pytest.raises(ConfigError, match="line 1"):
        add_key(other, "alice")
    assert other.read_text() == "root:x:0:0\n"


def test_what_the_extra_brings_is_named_if_it_is_missing(tmp_path: Path) -> None:
    """A module that cannot be found, as where the extra was not installed."""
    hide = "import sys; sys.modules['msgspec'] = None; from kvrt_cli.main import main; main()"
    command = [sys.executable, "-c", hide, "serve", "tiny"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "msgspec" in result.stderr
    assert "pip install 'kvrt[serve]'" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2
