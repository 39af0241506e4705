"""Tokens of a real OpenID provider's kind, with keys from a real HTTP server."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kvrt_cli.main import cli

from kvrt.errors import ConfigError
from kvrt.server.access.keys import Owner, add_key
from kvrt.server.access.oidc import Credentials, Issuer, Trust

from .conftest import started

AUDIENCE = "kvrt-at-home"
KINDS = {
    "RS256": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


class Provider:
    """An issuer: its discovery document, its keys, and how often it was asked for them."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {f"key-{kind}": (kind, key) for kind, key in KINDS.items()}
        self.asked = 0
        self.answers = True
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                known = {"/.well-known/openid-configuration": provider.discovery,
                         "/keys": provider.jwks}  # fmt: skip
                if self.path not in known or not provider.answers:
                    self.send_error(503)
                    return
                body = json.dumps(known[self.path]()).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def discovery(self) -> dict[str, str]:
        return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    def jwks(self) -> dict[str, Any]:
        found = []
        for name, (kind, key) in self.keys.items():
            algorithm = jwt.get_algorithm_by_name(kind)
            told: Any = algorithm.to_jwk(key.public_key(), as_dict=True)
            found.append({**told, "kid": name, "use": "sig"})
        return {"keys": found}

    def token(
        self, kind: str = "RS256", headers: Any = None, key: Any = None, **claims: Any
    ) -> str:
        now = int(time.time())
        told = {"iss": self.url, "aud": AUDIENCE, "sub": "alice", "exp": now + 300, "iat": now}
        told = {k: v for k, v in {**told, **claims}.items() if v is not None}
        given = {"kid": f"key-{kind}", **(headers or {})}
        given = {k: v for k, v in given.items() if v is not None}
        return jwt.encode(told, key or KINDS[kind], kind, headers=given)

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    one = Provider()
    yield one
    one.close()


@pytest.fixture
def issuer(provider: Provider) -> Issuer:
    return Issuer(Trust(provider.url, AUDIENCE, role="roles"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_the_issuer_signed_is_its_subjects(
    provider: Provider, issuer: Issuer, kind: str
) -> None:
    token = provider.token(kind, roles="user")
    assert issuer.owner(token) == Owner("jwt:alice", "user")
    several = provider.token(kind, aud=["other", AUDIENCE], roles=["x", "metrics", "user"])
    assert issuer.owner(several) == Owner("jwt:alice", "user")
    assert issuer.owner(provider.token(kind, roles=["user", "admin"])) == Owner(
        "jwt:alice", "admin"
    )
    everybody = Issuer(Trust(provider.url, AUDIENCE, f"{provider.url}/keys"))
    assert everybody.owner(provider.token(kind, roles="admin")) == Owner("jwt:alice", "user")


def test_a_claim_names_the_workspace(provider: Provider) -> None:
    issuer = Issuer(Trust(provider.url, AUDIENCE, workspace="team"))
    owner = issuer.owner(provider.token(team="acme"))
    assert owner == Owner("jwt:alice", "user", workspace="acme")
    assert owner.tenant == "acme"
    for wrong in (None, "", "a b", "x" * 65, 7, ["acme"], "jwt:bob", "acme\n"):
        assert issuer.owner(provider.token(team=wrong)) is None, wrong
    trust = Trust(provider.url, AUDIENCE, role="roles", workspace="team")
    owners = [Issuer(trust).owner(provider.token(team="*", roles=r)) for r in ("admin", "user")]
    assert owners == [Owner("jwt:alice", "admin"), None]


def forged(provider: Provider, claims: dict[str, Any], header: dict[str, Any]) -> str:
    """A token with no signature at all."""
    parts = [json.dumps(part).encode() for part in (header, claims)]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts) + "."


@pytest.mark.promise("P28")
def test_whatever_else_is_no_token(provider: Provider, issuer: Issuer) -> None:
    good = provider.token(roles="user")
    assert issuer.owner(good) is not None
    now = int(time.time())
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = KINDS["RS256"].public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    claims = {"iss": provider.url, "aud": AUDIENCE, "sub": "alice", "exp": now + 300,
              "roles": "admin"}  # fmt: skip
    by_public_key = forged(provider, claims, {"alg": "HS256", "kid": "key-RS256"})
    by_public_key += base64.urlsafe_b64encode(
        jwt.get_algorithm_by_name("HS256").sign(by_public_key[:-1].encode(), public)
    ).rstrip(b"=").decode()  # fmt: skip
    wrong = [
        *("", ".", "..", "a.b.c", "kvrt-key", good[:-2], good + ".", good + "x", "é" * 10),
        forged(provider, claims, {"alg": "none", "kid": "key-RS256"}),
        forged(provider, claims, {"alg": "RS256", "kid": "key-RS256"}),
        by_public_key,
        provider.token(roles="user", key=stranger),
        provider.token(roles="user", headers={"kid": "unknown"}),
        provider.token(roles="user", headers={"kid": None}),
        provider.token("ES256", roles="user", headers={"kid": "key-RS256"}),
        provider.token(roles="user", exp=now - 3600),
        provider.token(roles="user", nbf=now + 3600),
        *(provider.token(**{"roles": "user", name: None}) for name in ("exp", "iss", "aud", "sub")),
        provider.token(roles="user", iss="https://other.example"),
        provider.token(roles="user", aud="other"),
        *(provider.token(roles=roles) for roles in (None, "root", [], ["Admin"], 3)),
        *(provider.token(roles="user", sub=sub) for sub in ("", "a b", "a\n", "x" * 101, "é")),
    ]
    for token in wrong:
        assert issuer.owner(token) is None, token
    head, body, signature = good.split(".")
    for place in range(len(body)):
        letter = "A" if body[place] != "A" else "B"
        assert issuer.owner(f"{head}.{body[:place]}{letter}{body[place + 1 :]}.{signature}") is None


def test_keys_are_fetched_at_the_start_and_by_the_clock_and_never_for_a_request(
    provider: Provider, issuer: Issuer
) -> None:
    before = provider.asked
    fresh = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    provider.keys = {"new": ("RS256", fresh)}
    new = provider.token(headers={"kid": "new"}, key=fresh, roles="user")
    old = provider.token(roles="user")
    for _ in range(10):
        assert issuer.owner(new) is None
    assert provider.asked == before
    provider.answers = False
    with pytest.raises(ConfigError):
        issuer.fetch()
    assert issuer.owner(old) is not None, "what was known is used on"
    provider.answers = True
    issuer.fetch()
    assert issuer.owner(new) is not None
    assert issuer.owner(old) is None, "a key that was withdrawn opens nothing"


@pytest.mark.promise("P28")
def test_a_server_takes_tokens_beside_keys(provider: Provider, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "alice")
    options = ["--jwt-issuer", provider.url, "--jwt-audience", AUDIENCE, "--jwt-role", "roles",
               "--keys", str(tmp_path / "keys"), "--limit", "requests=2"]  # fmt: skip
    body = {"model": "tiny", "prompt": [7] * 100, "max_tokens": 1}
    with started(tmp_path, *options) as server:

        def post(credential: str) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {credential}"}
            status, answer = server.post("/v1/completions", body, headers=headers)
            usage = answer.get("usage", {}).get("prompt_tokens_details", {})
            return status, usage.get("cached_tokens")

        token = provider.token("ES256", roles="user")
        assert post(token) == (200, 0)
        assert post(key) == (200, 0), "a token's alice is not a key's: they share no pages"
        assert post(token)[1] > 80
        assert post(token)[0] == 429
        bob = provider.token(roles="metrics", sub="bob")
        assert post(bob)[0] == 403
        headers = {"Authorization": f"Bearer {bob}"}
        assert server.ask("GET", "/metrics", headers=headers)[0] == 200
        assert post(provider.token(roles="user", exp=1))[0] == 401


def test_an_issuer_that_cannot_be_trusted_or_reached_is_refused_at_the_start(
    provider: Provider, tmp_path: Path
) -> None:
    empty, symmetric = tmp_path / "empty", tmp_path / "symmetric"
    empty.write_text('{"keys": []}')
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "x"}
    symmetric.write_text(json.dumps({"keys": [secret]}))
    good = tmp_path / "good"
    good.write_text(json.dumps(provider.jwks()))
    assert Issuer(Trust("anybody", AUDIENCE, str(good)))
    for issuer, keys, said in (
        (provider.url + "/", None, "another issuer"),
        ("http://example.com", None, "not https"),
        ("ftp://127.0.0.1/x", None, "not https"),
        ("anybody", str(empty), "keys"),
        ("anybody", str(symmetric), "no public keys"),
        ("anybody", str(tmp_path), "cannot be read"),
        ("anybody", f"{provider.url}/nothing", "cannot be read"),
        ("anybody", "/dev/zero", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            Issuer(Trust(issuer, AUDIENCE, keys))
    for options in (
        ["--jwt-issuer", "https://a.example"],
        ["--jwt-audience", "a"],
        ["--jwt-keys", "a"],
        ["--jwt-role", "a"],
    ):
        assert CliRunner().invoke(cli, ["serve", "tiny", "--port", "0", *options]).exit_code == 2


def test_without_an_issuer_nothing_is_a_token(provider: Provider) -> None:
    assert Credentials(None, None).owner([provider.token()]) is None
    issuer = Issuer(Trust(provider.url, AUDIENCE))
    assert Credentials(None, issuer).owner([provider.token(), "other"]) is None
    assert Credentials(None, issuer).owner([]) is None
