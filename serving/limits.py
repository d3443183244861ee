"""Limits on what a client may send, and how slowly: sizes, media types, framing, and a deadline for whole requests."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import h11
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from optimizer.errors import FieldError
from serving.problems import PROBLEM_JSON, Problem

if TYPE_CHECKING:
    from collections.abc import Collection

MAX_BODY_BYTES = 1024 * 1024
REQUEST_DEADLINE_S = 8.0
JSON = "application/json"
CLOUDEVENT = "application/cloudevents+json"
CLOUDEVENTS = "application/cloudevents-batch+json"
_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')  # a quoted value may hold semicolons


async def read_body(request: Request, types: Collection[str] = (JSON,), limit: int = MAX_BODY_BYTES) -> bytes:
    """The raw body, of one of the media types. Raises Problem 415, or 413 once more than `limit` bytes have come."""
    _check_media(request, types)
    length = request.headers.get("content-length", "")
    if length.isdigit() and (len(length) > 12 or int(length) > limit):
        raise _too_large(f"{length[:20]} bytes", limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(f"more than {limit} bytes", limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _check_media(request: Request, types: Collection[str]) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _unsupported("Content-Encoding", encoding, "none", "send the body uncompressed")
    given = request.headers.get("content-type")
    media, _, _ = (given or "").partition(";")
    if media.strip().lower() not in types:
        got = "nothing" if given is None else given
        raise _unsupported("Content-Type", got, " or ".join(types), f"send Content-Type: {next(iter(types))}")
    charsets = [value for name, value in _PARAMETER.findall(given or "") if name.lower() == "charset"]
    if any(charset.strip('" \t').lower() not in ("utf-8", "utf8") for charset in charsets):
        raise _unsupported("Content-Type", given or "", "charset utf-8", "send UTF-8: JSON is always that")


def _unsupported(field: str, got: str, expected: str, fix: str) -> Problem:
    error = FieldError(field, got[:80], expected, fix)
    return Problem(415, error.sentence(), [error])


def _too_large(got: str, limit: int) -> Problem:
    error = FieldError("body", got, f"at most {limit} bytes", "send less at once")
    return Problem(413, error.sentence(), [error])


class FramingGuard:
    """ASGI middleware: a request with both Content-Length and Transfer-Encoding is refused and its connection closed.

    The parser would pick one; a proxy in front may have picked the other (request smuggling, RFC 9112 section 6.1).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and {b"content-length", b"transfer-encoding"} <= {n for n, _ in scope["headers"]}:
            error = FieldError("Content-Length", "Transfer-Encoding as well", "one of the two", "send only one")
            body = Problem(400, error.sentence(), [error]).body()
            headers = [
                (b"content-type", PROBLEM_JSON.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a deadline for receiving a whole request, header and body.

    uvicorn closes idle connections, but waits for ever for the next byte of a request that has begun. Here the clock
    starts with the connection, or with the first byte after an answer, and stops when the request is complete.
    """

    deadline_s = REQUEST_DEADLINE_S
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # A pipelined request, or the rest of a body that was refused unread, may still be on its way.
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Run the clock exactly while a request has begun to come and is not complete."""
        state = self.conn.their_state
        if state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0]):
            self._start()
        else:
            self._stop()

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.deadline_s, self._expire)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            error = FieldError("request", "too slow", f"a whole request within {self.deadline_s:g} s", "send it faster")
            body = Problem(408, error.sentence(), [error]).body()
            head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: {PROBLEM_JSON}\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
