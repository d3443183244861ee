"""The HTTP server in the main thread: a socket of our own, signals left to the caller, one line when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from optimizer.errors import ConfigError
from serving.limits import DeadlineProtocol

GRACEFUL_S = 2
BACKLOG = 1024
POLL_S = 0.02


class Server(uvicorn.Server):
    """uvicorn without its signal handling, which ends the process by the signal instead of with status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error}); choose another port") from error
    return listening


def url_of(listening: socket.socket) -> str:
    """The URL under which the socket is reached from this machine."""
    host, port = listening.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


async def serve(
    app: ASGIApp,
    listening: socket.socket,
    ready: Callable[[], bool],
    announce: Callable[[], None],
    stop: asyncio.Event,
    closing: Callable[[], None],
) -> None:
    """Serve until `stop` is set.

    `announce` is called once, when `ready` first says so; `closing` first of all when the end has come, so that answers
    without an end of their own (event streams) end too.
    """
    config = uvicorn.Config(
        app,
        http=DeadlineProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_S,
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    waiting = asyncio.create_task(_announce(server, ready, announce))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        stopping.cancel()
        closing()
        server.should_exit = True
        await serving


async def _announce(server: uvicorn.Server, ready: Callable[[], bool], announce: Callable[[], None]) -> None:
    while not (server.started and ready()):
        await asyncio.sleep(POLL_S)
    announce()
