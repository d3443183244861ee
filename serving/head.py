"""HEAD: what GET would answer, without its body (RFC 9110 section 9.3.2)."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadIsGet:
    """ASGI middleware: the routes see a GET, the client gets status and headers. A stream is left at its first byte."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        answered = asyncio.Event()

        async def received() -> Message:
            # To the route it looks as if the client left after the headers: an answer without an end of its own ends.
            message = asyncio.ensure_future(receive())
            done = asyncio.ensure_future(answered.wait())
            await asyncio.wait({message, done}, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            if message.done():
                return message.result()
            message.cancel()
            return {"type": "http.disconnect"}

        async def headers_only(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
            elif message["type"] == "http.response.body" and not answered.is_set():
                answered.set()
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await self._app(inner, received, headers_only)
        finally:
            if "route" in inner:
                scope["route"] = inner["route"]
