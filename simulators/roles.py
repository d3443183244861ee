"""The real system as four processes over one log: server, joiner, learner and generator, as in production."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

from optimizer.errors import ConfigError
from optimizer.stream.log import TOPICS, whole
from optimizer.stream.open import open_log
from simulators.server import Server, python, running, start, stop


def commands(data: Path, log: str, port: int, model: str | None, joiner_port: int) -> dict[str, list[str]]:
    """The command of each role by its name, the server's first; it makes the token keys that the joiner needs."""
    chosen = [] if model is None else ["--model", model]
    joiner = f"http://127.0.0.1:{joiner_port}"
    return {
        "server": python("serving", "--data", data, "--log", log, "--port", port, "--joiner", joiner, *chosen),
        "joiner": python(
            *("optimizer", "join", "--log", log, "--state", data / "joiner", "--data", data),
            *("--group", "adloop", "--metrics-port", joiner_port),
        ),
        "learner": python("optimizer", "learn", "--log", log, "--data", data, *chosen),
        "generator": python("serving", "generate", "--data", data, "--log", log, *chosen),
    }


@asynccontextmanager
async def running_roles(data: Path, log: str, port: int, model: str | None) -> AsyncIterator[Server]:
    """Start the four roles, hand out the server once it answers, and stop them all whatever happens.

    What each says on stderr goes to `data/NAME.stderr`. Raises ServerDied where the server does not get ready.
    """
    started = commands(data, log, port, model, _free_port())
    server_command = started.pop("server")
    async with running(server_command, data / "server.stderr") as server:
        others = []
        try:
            for name, command in started.items():
                others.append(await start(name, command, data / f"{name}.stderr"))
            yield replace(server, others=tuple(others))
        finally:
            await stop(others)


def check_empty(url: str) -> None:
    """Raises ConfigError where the log holds anything already, or cannot be used; OSError where no broker answers."""
    with closing(open_log(url)) as log:
        for at, first in whole(log, *TOPICS).items():
            if log.end(at) > first:
                raise ConfigError(
                    f"--log: {url} holds records already, expected a new log; name another file, or on Kafka another "
                    "prefix: kafka://HOST:PORT?prefix=demo2."
                )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
