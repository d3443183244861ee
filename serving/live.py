"""The live page over HTTP: `GET /` (complete without scripts), `GET /live` (server-sent events), `GET /assets/NAME`.

A stream sends a JSON object {id of an element: its new markup}: everything at first, then only the panels that
changed, at most once a second. It ends when the client goes or the board is closed; a comment every 15 s keeps proxies
from ending it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from optimizer.clock import Clock
from optimizer.errors import FieldError
from serving.auth import KeyRing, from_browser
from serving.board import LiveBoard
from serving.page import render
from serving.page.parts import asset
from serving.problems import Problem, invalid, not_found, unavailable
from serving.summary import AxisKind

__all__ = ["LiveBoard", "live_router", "reader_tenant"]

MAX_STREAMS = 64
CACHED_VIEWS = 128
TICK_S = 1.0
LOOK_S = 0.1  # how soon a stream notices that the server stops
HEARTBEAT_S = 15.0
AXES: tuple[AxisKind, ...] = ("time", "count")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
SIGN_IN = 'Basic realm="Adloop: any user name, a reader or admin key as the password", charset="UTF-8"'
ASSETS = {
    "app.css": "text/css",
    "live.js": "text/javascript",
    "theme.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


class View(NamedTuple):
    """What one client looks at."""

    tenant: str
    campaign_id: str | None
    axis: AxisKind
    base_url: str


class Renderer:
    """Markup of views, made once per change of the board however many clients look. Thread-safe."""

    def __init__(self, board: LiveBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._lock = threading.Lock()
        self._made: dict[View, tuple[int, dict[str, str]]] = {}

    def document(self, view: View) -> str:
        """The whole page."""
        return render.page(self._snapshot(view), view.base_url)

    def panels(self, view: View) -> dict[str, str]:
        """Markup by element id: the panels, or `main` alone while there is nothing to show."""
        with self._lock:
            # Read before the snapshot: a change in between is then rendered again, never missed.
            changes = self._board.changes
            made = self._made.get(view)
            if made is None or made[0] != changes:
                snapshot = self._snapshot(view)
                empty = render.is_empty(snapshot)
                panels = {"main": render.main(snapshot, view.base_url)} if empty else render.panels(snapshot)
                made = (changes, {"chooser": render.chooser(snapshot), **panels})
                if len(self._made) >= CACHED_VIEWS:
                    self._made.clear()
                self._made[view] = made
            return made[1]

    def whole(self, view: View) -> dict[str, str]:
        """Everything between the page's head and foot, for a client that just connected or leaves the first steps."""
        snapshot = self._snapshot(view)
        return {"chooser": render.chooser(snapshot), "main": render.main(snapshot, view.base_url)}

    def _snapshot(self, view: View) -> render.Snapshot:
        return self._board.snapshot(self._clock.now_ms(), view.tenant, view.campaign_id, view.axis)


def reader_tenant(request: Request) -> str:
    """The tenant whose page the request may read, by its key (serving/auth.py). Raises Problem 401 or 403.

    A browser cannot be told to send a Bearer key, so its own dialogue is asked for: any user name, the key as password.
    """
    keys: KeyRing = request.app.state.parts.keys
    try:
        access = keys.identify(from_browser(request.headers.get("authorization")))
    except Problem as refusal:
        raise Problem(refusal.status, refusal.detail, refusal.errors, {"WWW-Authenticate": SIGN_IN}) from refusal
    access.require("reader")
    return access.tenant


def live_router(
    board: LiveBoard,
    clock: Clock,
    tenant_of: Callable[[Request], str] = reader_tenant,
    max_streams: int = MAX_STREAMS,
    heartbeat_s: float = HEARTBEAT_S,
) -> APIRouter:
    """The page's routes over a board.

    Args:
      tenant_of: says whose page the request may read, or raises Problem.
      max_streams: beyond so many open streams a further one is refused (503).
    """
    router = APIRouter(include_in_schema=False)
    renderer = Renderer(board, clock)
    streams: set[object] = set()
    files = {name: asset(name) for name in ASSETS}
    etags = {name: f'"{hashlib.sha256(content).hexdigest()[:24]}"' for name, content in files.items()}

    @router.get("/")
    async def page(request: Request) -> Response:
        view = _view(request, board, tenant_of(request))
        return HTMLResponse(await asyncio.to_thread(renderer.document, view), headers=HEADERS)

    @router.get("/live")
    async def live(request: Request) -> Response:
        view = _view(request, board, tenant_of(request))
        if len(streams) >= max_streams or board.closed.is_set():
            raise unavailable(f"at most {max_streams} live pages at a time", "close one, or reload in a moment", "live")
        events = _stream(board, renderer, view, streams, heartbeat_s)
        headers = HEADERS | {"X-Accel-Buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    @router.get("/assets/{name}")
    async def file(request: Request, name: str) -> Response:
        tenant_of(request)
        if name not in files:
            raise not_found("asset", name)
        # Revalidated at each load: a new version of Adloop is a new look at once.
        headers = HEADERS | {"Cache-Control": "no-cache", "ETag": etags[name]}
        if request.headers.get("if-none-match") == etags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=ASSETS[name], headers=headers)

    return router


def _view(request: Request, board: LiveBoard, tenant: str) -> View:
    """What is asked for. Raises Problem 404 for an unknown campaign, 422 for an unknown axis."""
    campaign_id = request.query_params.get("campaign") or None
    if campaign_id is not None and not board.knows(tenant, campaign_id):
        raise not_found("campaign", campaign_id)
    asked = request.query_params.get("axis") or "time"
    axis = next((known for known in AXES if known == asked), None)
    if axis is None:
        raise invalid([FieldError("axis", asked[:80], "time or count", "ask for one of these, or leave it out")])
    return View(tenant, campaign_id, axis, str(request.base_url).rstrip("/"))


async def _stream(
    board: LiveBoard, renderer: Renderer, view: View, streams: set[object], heartbeat_s: float
) -> AsyncIterator[bytes]:
    """The event stream of one client."""
    me = object()
    streams.add(me)
    try:
        yield b"retry: 2000\n\n"
        sent: dict[str, str] = {}
        seen, quiet_s = -1, 0.0
        while _goes_on(board, view):
            changes = board.changes
            if changes != seen:
                seen = changes
                now = await asyncio.to_thread(renderer.panels, view)
                # Another set of panels (a client that just came, the end of the first steps) needs another frame.
                news = {i: html for i, html in now.items() if sent.get(i) != html}
                if now.keys() != sent.keys():
                    news = await asyncio.to_thread(renderer.whole, view)
                sent = now
                if news:
                    quiet_s = 0.0
                    yield _event(news)
            if quiet_s >= heartbeat_s:
                quiet_s = 0.0
                yield b": still here\n\n"
            waited_s = 0.0
            while waited_s < TICK_S and not board.closed.is_set():
                await asyncio.sleep(LOOK_S)
                waited_s += LOOK_S
            quiet_s += waited_s
    finally:
        streams.discard(me)


def _goes_on(board: LiveBoard, view: View) -> bool:
    """False once the server stops or the campaign was deleted."""
    if board.closed.is_set():
        return False
    return view.campaign_id is None or board.knows(view.tenant, view.campaign_id)


def _event(markup: dict[str, str]) -> bytes:
    # JSON has no raw line breaks, so the event is one `data` line.
    return f"data: {json.dumps(markup)}\n\n".encode()
