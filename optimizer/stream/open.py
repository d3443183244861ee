"""From a log's URL to the log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote

from optimizer.clock import Clock, SystemClock
from optimizer.errors import ConfigError
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import KAFKA_PREFIX, MOST_DIGITS, parse_kafka_url
from optimizer.stream.log import EventLog
from optimizer.stream.sqlite_log import SqliteLog

SQLITE_PREFIX = "sqlite:///"


def open_log(url: str, clock: Clock | None = None, create: bool = True) -> EventLog:
    """Open `sqlite:///PATH[?partitions=N&synchronous=full|off]` (three slashes and the path, so `/x` makes it four) or
    `kafka://HOST:PORT[,HOST:PORT][?prefix=adloop.&...]` (docs/kafka.md has the options).

    Makes the file, or the topics, where there are none; with `create` False that is an error. Raises ConfigError,
    naming the part of the URL that is wrong, and OSError where no broker answers.
    """
    clock = clock if clock is not None else SystemClock()
    if url.startswith(KAFKA_PREFIX):
        return KafkaLog(parse_kafka_url(url, os.environ), clock, create)
    if not url.startswith(SQLITE_PREFIX):
        scheme = url.partition(":")[0][:80]
        raise ConfigError(f"log: got {scheme!r}, expected sqlite:///PATH or kafka://HOST:PORT; correct the log's URL")
    path, options = _sqlite_options(url)
    if not path:
        raise ConfigError(f"log: got {url!r}, expected a path after {SQLITE_PREFIX}; name the file")
    if not create and not Path(path).is_file():
        raise ConfigError(f"log: got {url!r}, expected an existing log; there is no file {path}")
    return SqliteLog(path, clock, _partitions(options), _synchronous(options))


def sqlite_url(path: Path) -> str:
    """The URL of this file's log, whatever it and its folders are called."""
    return SQLITE_PREFIX + str(path).replace("%", "%25").replace("?", "%3F")  # what a URL reads as its own marks


def sqlite_path(url: str) -> Path | None:
    """The file behind a `sqlite:///` URL; None for any other log."""
    return Path(_sqlite_options(url)[0]) if url.startswith(SQLITE_PREFIX) else None


def _sqlite_options(url: str) -> tuple[str, dict[str, str]]:
    path, _, query = url.removeprefix(SQLITE_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - {"partitions", "synchronous"}):
        raise ConfigError(f"log: got option {unknown[0]!r}, expected partitions or synchronous; correct the log's URL")
    path = unquote(path)
    if "\0" in path:
        raise ConfigError(f"log: got {path!r}, expected a path without a null byte; correct the log's URL")
    return path, options


def _partitions(options: dict[str, str]) -> int | None:
    text = options.get("partitions")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise ConfigError(f"partitions: got {text[:80]!r}, expected a whole number from 1; correct the log's URL")
    return int(text)


def _synchronous(options: dict[str, str]) -> Literal["full", "off"]:
    match options.get("synchronous", "full"):
        case "full":
            return "full"
        case "off":
            return "off"
        case other:
            raise ConfigError(f"synchronous: got {other!r}, expected full or off; correct the log's URL")
