"""What a process is started with, from its command line and its environment, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from optimizer.errors import ConfigError
from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.stream.open import sqlite_url
from optimizer.stream.tokens import TOKEN_KEYS_FILE, TokenKeys, parse_secrets, read_secrets
from serving.auth import KeyRing, check_exposure, check_secrets, is_loopback


@dataclass(frozen=True)
class Settings:
    """What a process is started with; `model` None means the tiny model. `joiners`: where those in other processes show
    their metrics. `extra_retention_ms`: the same as of their `join`, or tokens do not expire with their
    decisions."""

    data: Path
    log_url: str
    api_keys: KeyRing
    token_keys: TokenKeys
    all_roles: bool = False
    model: str | None = None
    joiners: tuple[str, ...] = ()
    extra_retention_ms: int = EXTRA_RETENTION_MS


class Options(Protocol):
    """The command line as parsed (serving/__main__.py)."""

    verb: str | None
    data: str
    host: str
    log: str | None
    all: bool
    production: bool
    model: str | None
    joiner: list[str] | None
    extra_retention_ms: int


def settings_from(options: Options, environment: Mapping[str, str]) -> Settings:
    """Everything that start-up needs, checked; makes the data folder and, in development mode, its token keys. Raises
    ConfigError."""
    data = Path(options.data)
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data {data}: the folder cannot be made ({error}); choose another") from error
    private = not options.production and is_loopback(options.host)
    why = "--production" if options.production else f"--host {options.host}"
    api_keys = KeyRing.parse(environment.get("ADLOOP_API_KEYS", ""), weak=private)
    if options.joiner and options.all:
        raise ConfigError("--joiner: got one with --all, which has its joiner in this process; leave one of them out")
    if options.verb is None:
        check_exposure(options.host, options.production, api_keys)
    return Settings(
        data=data,
        log_url=options.log or _own_log(data),
        api_keys=api_keys,
        token_keys=_token_keys(environment, data, private, why),
        all_roles=options.all,
        model=options.model,
        joiners=tuple(map(_joiner_url, options.joiner or ())),
        extra_retention_ms=options.extra_retention_ms,
    )


def _token_keys(environment: Mapping[str, str], data: Path, private: bool, why: str) -> TokenKeys:
    """From ADLOOP_TOKEN_KEYS, else from the data folder, where development mode makes them; elsewhere they must be
    there, and secrets."""
    text, file = environment.get("ADLOOP_TOKEN_KEYS"), data / TOKEN_KEYS_FILE
    if private:
        return TokenKeys.load_or_create(data) if text is None else TokenKeys.parse(text)
    if text is None and not file.exists():
        raise ConfigError(
            f"ADLOOP_TOKEN_KEYS: got none, expected kid:base64[,...] with {why} (or {file}); "
            "set it: every process that signs or checks tokens needs the same keys"
        )
    secrets = parse_secrets(read_secrets(file) if text is None else text)
    keys = TokenKeys(secrets)
    check_secrets(secrets)
    return keys


def _own_log(data: Path) -> str:
    """The URL of the data folder's own log, whatever the folder is called."""
    return sqlite_url(data / "log.db")


def _joiner_url(text: str) -> str:
    """The base URL of a joiner's metrics, without its path. Raises ConfigError."""
    try:
        parts = urlsplit(text)
        # Of both a mistake shows only when they are read.
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    plain = text.isascii() and text.isprintable() and not set(text) & set(" ?#")
    if not (whole and plain):
        raise ConfigError(
            f"--joiner: got {text!r}, expected http://HOST:PORT of a `join --metrics-port PORT`; correct the URL"
        )
    return text.rstrip("/").removesuffix("/metrics")
