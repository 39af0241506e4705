"""Who may ask: bearers of tokens that an OpenID provider, or any OAuth 2 server, has signed.

A token is a JWT (RFC 7519) in which issuer, audience, subject and expiry are required (RFC 9068).
It is checked here, with the issuer's public keys, which are fetched at the start and again every
few minutes: no request makes the server connect anywhere, so a token signed with a key that is
newer than that is refused until then. Needs the extra ``oidc``.
"""

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from kvrt.errors import ConfigError
from kvrt.server.access.keys import NAME, Keys, Owner, Role
from kvrt.server.wire.outgoing import LARGEST, fetch, is_private

log = logging.getLogger(__name__)

REFRESH_S = 300.0
LEEWAY_S = 30
"""Clocks may differ by so much."""

DISCOVERY = "/.well-known/openid-configuration"
SUBJECT = re.compile(r"[\w.@:|/+=-]{1,100}", re.ASCII)
WORKSPACE_NAME = re.compile(NAME, re.ASCII)
OF_ALL = "*"
"""In place of a workspace: an admin is one of the whole server."""

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
              "EdDSA")  # fmt: skip
"""Signatures by keys of which only the issuer has the private half. ``none`` and secrets that both
sides know are no such thing."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose tokens are taken.

    Args:
        issuer: their ``iss``.
        audience: what their ``aud`` has to name: this server.
        keys: where the issuer's keys are, as a JWK set: a URL or a file; None: where its discovery
            document says.
        role: the claim that has a role or a list of them; without it, everybody is a user.
        workspace: the claim that names a workspace, also one of keys, or for an admin ``*``: all;
            without it, everybody has one by himself.
    """

    issuer: str
    audience: str
    keys: str | None = None
    role: str | None = None
    workspace: str | None = None


class Issuer:
    """Takes tokens.

    Args:
        trust: whose.

    Raises:
        ConfigError: the issuer's keys cannot be had, or the extra is not installed.
    """

    def __init__(self, trust: Trust) -> None:
        try:
            import jwt
        except ImportError:
            raise ConfigError(
                "tokens need what is not installed: PyJWT", fix="pip install 'kvrt[oidc]'"
            ) from None
        self._jwt = jwt
        self._trust = trust
        self._where = trust.keys or _found(trust.issuer)
        self._keys: dict[str | None, Any] = {}
        self.fetch()

    def fetch(self) -> None:
        """Read the issuer's keys again. Raises `ConfigError`; those that were known stay then."""
        told = _object(self._where)
        try:
            listed = self._jwt.PyJWKSet.from_dict(told).keys
        except self._jwt.PyJWTError as error:
            raise ConfigError(f"{self._where} has no keys: {type(error).__name__}") from None
        found = {key.key_id: key.key for key in listed if key.key_type in ("RSA", "EC", "OKP")}
        if not found:
            raise ConfigError(f"{self._where} has no public keys")
        self._keys = found

    async def keep_fresh(self) -> None:
        """Fetch the keys again, now and then, until this is cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await asyncio.to_thread(self.fetch)
            except ConfigError as error:
                log.warning("the keys of before are used on: %s", error)

    def owner(self, token: str) -> Owner | None:
        """Whose token it is; None: it is none, not ours, or not valid now."""
        try:
            name = self._jwt.get_unverified_header(token).get("kid")
            key = self._keys.get(name)
            if key is None and name is None and len(self._keys) == 1:
                (key,) = self._keys.values()
            if key is None:
                return None
            claims = self._jwt.decode(
                token, key, ALGORITHMS, audience=self._trust.audience, issuer=self._trust.issuer,
                leeway=LEEWAY_S, options={"require": ["exp", "iss", "aud", "sub"]},
            )  # fmt: skip
        except (self._jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        subject = claims["sub"]
        role = self._role(claims)
        workspace = self._workspace(claims, role)
        if role is None or not isinstance(subject, str) or not SUBJECT.fullmatch(subject):
            return None
        return None if workspace is None else Owner(f"jwt:{subject}", role, workspace=workspace)

    def _workspace(self, claims: dict[str, Any], role: Role | None) -> str | None:
        """That the token names; empty: none is asked for, or an admin is of all; None: it names
        none."""
        if self._trust.workspace is None:
            return ""
        said = claims.get(self._trust.workspace)
        if said == OF_ALL and role == "admin":
            return ""
        return said if isinstance(said, str) and WORKSPACE_NAME.fullmatch(said) else None

    def _role(self, claims: dict[str, Any]) -> Role | None:
        """The greatest of those that the token names; None: none of ours."""
        if self._trust.role is None:
            return "user"
        said = claims.get(self._trust.role)
        named = said if isinstance(said, list) else [said]
        ranked: tuple[Role, ...] = get_args(Role)
        return next((role for role in ranked if role in named), None)


class Credentials:
    """Keys of a file, tokens of an issuer, or both.

    Args:
        keys: of a file.
        issuer: of tokens.
    """

    def __init__(self, keys: Keys | None, issuer: Issuer | None) -> None:
        self.keys = keys
        self._issuer = issuer

    @property
    def of(self) -> "list[Keys | Issuer]":
        """Both, as far as there are."""
        return [each for each in (self.keys, self._issuer) if each is not None]

    def owner(self, given: Sequence[str]) -> Owner | None:
        """Whose credential a request brings; None: nobody's, or it brings several."""
        owner = None if self.keys is None else self.keys.owner(given)
        if owner is None and self._issuer is not None and len(set(given)) == 1:
            owner = self._issuer.owner(given[0])
        return owner


def _found(issuer: str) -> str:
    """Where an issuer says that its keys are (OpenID Connect Discovery 1.0)."""
    where = issuer.rstrip("/") + DISCOVERY
    told = _object(where)
    if told.get("issuer") != issuer:
        raise ConfigError(f"{where} is of another issuer", fix="name it as it names itself")
    keys = told.get("jwks_uri")
    if not isinstance(keys, str):
        raise ConfigError(f"{where} names no jwks_uri", fix="say where the keys are: --jwt-keys")
    return keys


def _object(where: str) -> dict[str, Any]:
    """A JSON object, from a file or a URL."""
    try:
        told = json.loads(_read(where))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "reason", None) or type(error).__name__
        raise ConfigError(
            f"{where} cannot be read: {why}", fix="name a JWK set: an https URL or a file"
        ) from None
    if not isinstance(told, dict):
        raise ConfigError(f"{where} is no JSON object")
    return told


def _read(where: str) -> bytes:
    if "://" not in where:
        with Path(where).expanduser().open("rb") as file:
            return file.read(LARGEST)
    if not is_private(where):
        raise ConfigError(f"{where} is not https, so anybody on the way could be the issuer")
    return fetch(where)
