"""Signed tokens: what ties an event to the decision that was really made (docs/api.md, Tokens).

A compact JWS (RFC 7515) with HS256 and a `kid`. Verification is strict: exactly this algorithm, no `crit`, canonical
base64url without padding, all six claims there and of the right kind. Extra claims and header fields are ignored.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from optimizer.errors import AdloopError, ConfigError
from optimizer.files import sync_folder, unused_beside, write_new
from optimizer.stream.guarded import UNREADABLE
from optimizer.types import ID_PATTERN, Decision

MIN_KEY_BYTES: Final = 32
MAX_TOKEN_CHARS: Final = 8192  # a token of ours has about 400; longer ones are refused unread
TOKEN_KEYS_FILE: Final = "token_keys"
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class TokenError(AdloopError):
    """A token that does not verify; `reason` is the quarantine reason."""

    def __init__(self, reason: Literal["bad_token", "unknown_key"], detail: str) -> None:
        self.reason: Literal["bad_token", "unknown_key"] = reason
        super().__init__(detail)


class Claims(Struct, frozen=True, gc=False):
    """What a token says: tenant, decision_id, variant_id, propensity, policy version, expiry (epoch seconds)."""

    ten: str
    sub: str
    var: str
    prp: float
    pol: str
    exp: int

    def matches(self, decision: Decision) -> bool:
        """True where the token was made for this very decision. The propensity is compared exactly: JSON carries a
        double round trip unchanged."""
        return (
            self.sub == decision.decision_id
            and self.ten == decision.tenant
            and self.var == decision.variant_id
            and self.prp == decision.propensity
            and self.pol == decision.policy_version
        )


class TokenKeys:
    """Signing keys by id: the first signs, all verify. Immutable and thread-safe."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ConfigError("ADLOOP_TOKEN_KEYS: got no key, expected kid:base64[,kid:base64]; name at least one key")
        for kid, key in keys.items():
            if not ID_PATTERN.fullmatch(kid):
                raise ConfigError(
                    f"ADLOOP_TOKEN_KEYS: got key id {kid[:80]!r}, expected 1 to 64 of A-Za-z0-9._:-; rename the key"
                )
            if len(key) < MIN_KEY_BYTES:
                raise ConfigError(
                    f"ADLOOP_TOKEN_KEYS: key {kid!r} has {len(key)} bytes, expected {MIN_KEY_BYTES} or more; make one "
                    "with `head -c 32 /dev/urandom | base64`"
                )
        self._macs = {kid: _Mac(key) for kid, key in keys.items()}
        self._signing_kid = next(iter(keys))
        self._signer = self._macs[self._signing_kid]
        header = msgspec.json.encode({"alg": "HS256", "kid": self._signing_kid, "typ": "JWT"})
        self._header = _encode(header)

    @classmethod
    def parse(cls, text: str) -> TokenKeys:
        """From `kid:base64,kid:base64` (standard base64). Raises ConfigError."""
        return cls(parse_secrets(text))

    @classmethod
    def load(cls, file: Path) -> TokenKeys:
        """From a file in the form of `parse`. Raises ConfigError."""
        return cls(parse_secrets(read_secrets(file)))

    @classmethod
    def load_or_create(cls, data: Path) -> TokenKeys:
        """The keys of a data folder, from `DIR/token_keys` (mode 0600); made on first use. Safe against a second
        process that does the same at the same time."""
        file = data / TOKEN_KEYS_FILE
        if not file.exists():
            data.mkdir(parents=True, exist_ok=True)
            kid = f"k-{secrets.token_hex(4)}"
            text = f"{kid}:{base64.b64encode(secrets.token_bytes(MIN_KEY_BYTES)).decode()}\n"
            new = unused_beside(file)
            write_new(new, text.encode(), mode=0o600)
            try:
                os.link(new, file)  # unlike a rename, never replaces the keys that another process made first
            except FileExistsError:
                return cls.load(file)
            finally:
                new.unlink()
            sync_folder(data)
        return cls.load(file)

    def sign(self, decision: Decision, exp_s: int) -> str:
        """The token of a decision; `exp_s` is the decision's ts + its retention in seconds, rounded up."""
        claims = Claims(
            decision.tenant,
            decision.decision_id,
            decision.variant_id,
            decision.propensity,
            decision.policy_version,
            exp_s,
        )
        signed = self._header + b"." + _encode(msgspec.json.encode(claims))
        return (signed + b"." + self._signer.tag(signed)).decode()

    def verify(self, token: str) -> Claims:
        """The claims of a token that one of the keys signed. Raises TokenError. Whether it has expired or belongs to
        the event at hand is for the caller to say."""
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenError("bad_token", f"token: got {len(token)} characters, expected at most {MAX_TOKEN_CHARS}")
        try:
            head, payload, signature = token.encode("ascii").split(b".")
        except ValueError as error:
            raise TokenError("bad_token", "token: expected three base64url parts joined by dots") from error
        mac = self._signer if head == self._header else self._mac_of(head)
        # The encoding is compared, not the bytes: a second spelling of the same signature is refused with that.
        if not hmac.compare_digest(signature, mac.tag(head + b"." + payload)):
            raise TokenError("bad_token", "token: its signature does not verify")
        try:
            return _CLAIMS.decode(_decode(payload))
        except UNREADABLE as error:
            raise TokenError("bad_token", f"token: its claims are not as expected ({error})") from error

    def _mac_of(self, head: bytes) -> _Mac:
        kid = _key_id(head)
        mac = self._macs.get(kid)
        if mac is None:
            raise TokenError(
                "unknown_key", f"token: got key id {kid[:80]!r}, which is none of the {len(self._macs)} known"
            )
        return mac


def parse_secrets(text: str) -> dict[str, bytes]:
    """The secrets of `kid:base64,kid:base64` by their ids. Raises ConfigError, which shows none of them."""
    keys: dict[str, bytes] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        # An id may contain colons, base64 never does: the last one separates.
        kid, colon, encoded = entry.rpartition(":")
        if not colon:
            raise ConfigError("ADLOOP_TOKEN_KEYS: got an entry without ':', expected kid:base64; name the key id")
        if kid in keys:
            raise ConfigError(f"ADLOOP_TOKEN_KEYS: got key id {kid!r} twice, expected each once; rename one")
        try:
            keys[kid] = base64.b64decode(encoded, validate=True)
        except ValueError as error:  # also for what is not ASCII
            raise ConfigError(
                f"ADLOOP_TOKEN_KEYS: key {kid!r} is not standard base64 ({error}); make one with "
                "`head -c 32 /dev/urandom | base64`"
            ) from error
    return keys


def read_secrets(file: Path) -> str:
    """The text of a file of keys. Raises ConfigError."""
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token keys {file}: can't be read ({error}); give ADLOOP_TOKEN_KEYS instead") from error


_CLAIMS: Final = msgspec.json.Decoder(Claims)


class _Mac:
    """HMAC-SHA256 under one key (RFC 2104). The two padded keys are hashed once and copied from then on, which takes
    less than half of the time that `hmac.digest` does for a token."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes) -> None:
        block = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def tag(self, signed: bytes) -> bytes:
        """The signature as a token carries it: base64url without padding."""
        inner = self._inner.copy()
        inner.update(signed)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return _encode(outer.digest())


def _key_id(head: bytes) -> str:
    """The `kid` of a header that is strictly HS256 without extensions."""
    try:
        header: Any = msgspec.json.decode(_decode(head))
    except UNREADABLE as error:
        raise TokenError("bad_token", "token: its header is not JSON") from error
    if not isinstance(header, dict) or header.get("alg") != "HS256" or "crit" in header:
        raise TokenError("bad_token", "token: expected a header with alg HS256 and no crit")
    kid = header.get("kid")
    if not isinstance(kid, str):
        raise TokenError("bad_token", "token: expected a header with a kid")
    return kid


def _encode(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).translate(_URL_SAFE).rstrip(b"=")


def _decode(part: bytes) -> bytes:
    """base64url without padding, in its one canonical spelling: what does not come back the same is refused."""
    try:
        data = binascii.a2b_base64(part.translate(_STANDARD) + b"==")
    except binascii.Error:
        data = b""
    if not data or _encode(data) != part:
        raise TokenError("bad_token", "token: its parts are not canonical base64url")
    return data
