"""Who is asking: API keys with a tenant and a role, and what each role may do (docs/api.md, Requests)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from optimizer.errors import ConfigError, FieldError
from optimizer.types import ID_PATTERN
from serving.problems import Problem

logger = logging.getLogger(__name__)

Role = Literal["serve", "ingest", "reader", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
DEFAULT_TENANT = "default"
MIN_KEY_CHARS = 16
MIN_DISTINCT_CHARS = 6
MIN_OWN_CHARS = 12
MIN_DISTINCT_BYTES = 10  # 32 random bytes have about 30, as many in hexadecimal 16
# What placeholders are made of: a key that holds little else is one.
_DEFAULT_LOOKING = (
    "password",
    "changeme",
    "change-me",
    "secret",
    "example",
    "default",
    "test-key",
    "api-key",
    "goes-here",
    "placeholder",
    "your-",
    "12345678",
)


@dataclass(frozen=True)
class Access:
    """Who a request comes from."""

    tenant: str
    role: Role

    def require(self, role: Role) -> None:
        """Raises Problem 403 where the key's role is neither `role` nor admin."""
        if self.role not in (role, "admin"):
            error = FieldError("Authorization", f"a key of role {self.role}", f"role {role} or admin", "use such a key")
            raise Problem(403, error.sentence(), [error])


@dataclass(frozen=True)
class ApiKey:
    """One key as configured. Only its digest is kept, so that comparing takes the same time for every length."""

    digest: bytes
    access: Access


class KeyRing:
    """The API keys of a server; an empty ring (development mode) lets everyone in as admin of the default tenant."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    @classmethod
    def parse(cls, text: str, weak: bool = False) -> KeyRing:
        """From `KEY:TENANT:ROLE,...` (ADLOOP_API_KEYS). Raises ConfigError; no message repeats a key.

        `weak` lets short and default-looking keys pass: for a server that only this machine can reach."""
        keys: list[ApiKey] = []
        for position, entry in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            key, tenant, role = _split(entry, position)
            if not key:
                raise ConfigError(f"ADLOOP_API_KEYS: key {position} is empty; give it a key before the first colon")
            if not (key.isascii() and key.isprintable() and " " not in key):
                # No client could send it: a header's credentials are visible ASCII.
                raise ConfigError(f"ADLOOP_API_KEYS: key {position} is not all visible ASCII characters; make another")
            if not weak:
                _check_strength(key, position)
            digest = _digest(key)
            if any(digest == known.digest for known in keys):
                raise ConfigError(f"ADLOOP_API_KEYS: key {position} stands there twice; give each one key of its own")
            keys.append(ApiKey(digest, Access(tenant, role)))
        return cls(keys)

    def identify(self, authorization: str | None) -> Access:
        """Who the header `Authorization` stands for. Raises Problem 401."""
        if not self._keys:
            return Access(DEFAULT_TENANT, "admin")
        scheme, _, credentials = (authorization or "").partition(" ")
        digest = _digest(credentials.strip())
        found: Access | None = None
        for key in self._keys:
            # Every key is compared, so that the time taken tells nothing about which one came close.
            if hmac.compare_digest(key.digest, digest):
                found = key.access
        if found is None or scheme.lower() != "bearer":
            got = "no credentials" if authorization is None else "credentials that are not known"
            error = FieldError("Authorization", got, "Bearer KEY", "send a valid API key")
            raise Problem(401, error.sentence(), [error], {"WWW-Authenticate": "Bearer"})
        return found


def from_browser(authorization: str | None) -> str | None:
    """The header as `identify` takes it, where a browser sent the key as the password of HTTP Basic (RFC 7617), the
    only way in which it can send one without a script; anything else unchanged.

    For pages that a person opens, never for a route that changes something: a browser adds these credentials by itself
    also to a request that another site has made it send.
    """
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, colon, key = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:  # not ASCII, not base64, not UTF-8
        return authorization
    return f"Bearer {key}" if colon else authorization


def check_exposure(host: str, production: bool, keys: KeyRing) -> None:
    """Raises ConfigError where the server would listen beyond loopback, or in production, without API keys."""
    if keys or not (production or not is_loopback(host)):
        return
    why = "--production" if production else f"--host {host}"
    raise ConfigError(
        f"ADLOOP_API_KEYS: got none, expected KEY:TENANT:ROLE[,...] with {why}; set it, or listen on 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    """True for localhost and loopback addresses; a name that would have to be resolved is none."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(entry: str, position: int) -> tuple[str, str, Role]:
    parts = entry.rsplit(":", 2)
    if len(parts) != 3:
        raise ConfigError(f"ADLOOP_API_KEYS: entry {position} is not KEY:TENANT:ROLE; give it all three parts")
    key, tenant, role = parts
    if not ID_PATTERN.fullmatch(tenant):
        raise ConfigError(
            f"ADLOOP_API_KEYS: entry {position} has tenant {tenant[:64]!r}, expected 1 to 64 of A-Za-z0-9._:-"
        )
    for known in ROLES:
        if role == known:
            return key, tenant, known
    raise ConfigError(f"ADLOOP_API_KEYS: entry {position} has role {role[:64]!r}, expected one of {', '.join(ROLES)}")


def _check_strength(key: str, position: int) -> None:
    advice = "make one with `head -c 24 /dev/urandom | base64`"
    if len(key) < MIN_KEY_CHARS:
        raise ConfigError(
            f"ADLOOP_API_KEYS: key {position} has {len(key)} characters, expected {MIN_KEY_CHARS} or more; {advice}"
        )
    if _looks_default(key) or len(set(key)) < MIN_DISTINCT_CHARS:
        raise ConfigError(f"ADLOOP_API_KEYS: key {position} looks like a default or a placeholder; {advice}")


def check_secrets(secrets: Mapping[str, bytes]) -> None:
    """Raises ConfigError where one of the token keys is a default or a placeholder: whoever guesses it can forge
    events. One of few different bytes is told of in the log."""
    for kid, secret in secrets.items():
        if len(set(secret)) < MIN_DISTINCT_BYTES:
            logger.warning("ADLOOP_TOKEN_KEYS: key %r has few different bytes; draw it at random", kid)
        if secret.isascii() and _looks_default(secret.decode("ascii")):
            raise ConfigError(
                f"ADLOOP_TOKEN_KEYS: key {kid!r} looks like a default or a placeholder; make one with "
                "`head -c 32 /dev/urandom | base64`"
            )


def _looks_default(text: str) -> bool:
    """Whether the text holds a word of placeholders and little else."""
    own = text.lower()
    for word in _DEFAULT_LOOKING:
        own = own.replace(word, "")
    return own != text.lower() and sum(character.isalnum() for character in own) < MIN_OWN_CHARS


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
