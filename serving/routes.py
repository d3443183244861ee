"""The routes of docs/api.md, Requests: read the request strictly, call the service, encode. No logic of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from optimizer.errors import BadInput, FieldError
from serving.auth import Access, KeyRing, Role
from serving.campaigns import campaign_body
from serving.health import Health, Metrics
from serving.limits import CLOUDEVENT, CLOUDEVENTS, JSON, read_body
from serving.openapi import components, docs_page, operation
from serving.operate import Operator
from serving.problems import Problem
from serving.schemas import MAX_EVENTS, CampaignIn, CampaignPath, EventResults, GenerateIn, GenerateOut
from serving.service import AdService
from serving.wire import NotJSON, convert, decode_json, refuse_overflow, shown

logger = logging.getLogger(__name__)

T = TypeVar("T")
WORKERS = 32  # threads that wait for the log's group commit
DESK_WORKERS = 4
FRESH_WORKERS = 2
FRESH_TIMEOUT_S = 20.0
MAX_KEY_CHARS = 255
# A body of at most so many bytes is parsed on the event loop. Measured on two busy cores: a usual one takes 0.08 ms, a
# hop to a thread 0.15 ms (5 ms at the 99th percentile). The worst of 4 KiB takes 2 to 8 ms, the worst of a megabyte one
# to three seconds, in which nobody else would be answered.
INLINE_BYTES = 4_096


@dataclass
class Parts:
    """What the routes work on; made once by whoever starts the server."""

    service: AdService
    operator: Operator
    keys: KeyRing
    health: Health
    metrics: Metrics
    workers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "http"))
    # For what an operator asks while all of those may be waiting for the disk.
    desk: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(DESK_WORKERS, "desk"))
    samplers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(FRESH_WORKERS, "fresh"))

    def close(self) -> None:
        """Let the threads go; what they have begun is finished by them or by the process's end."""
        for pool in (self.workers, self.desk):
            pool.shutdown(wait=False, cancel_futures=True)
        self.samplers.shutdown(wait=False, cancel_futures=True)


router = APIRouter()


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _access(request: Request, role: Role) -> Access:
    """Who asks, if the key's role allows the route. Raises Problem 401 or 403."""
    access = _parts(request).keys.identify(request.headers.get("authorization"))
    access.require(role)
    return access


async def _in_thread(request: Request, work: Callable[[], T]) -> T:
    """Run blocking work (it waits for the disk, or for the views' lock) off the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_parts(request).workers, work)


async def _at_desk(request: Request, work: Callable[[], T]) -> T:
    """The same for reads of the views and what an operator does: in threads of their own, which no request that waits
    for the log takes."""
    return await asyncio.get_running_loop().run_in_executor(_parts(request).desk, work)


async def _parsed(request: Request, raw: bytes, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a body; off the event loop where that may take long."""
    return parse(raw) if len(raw) <= INLINE_BYTES else await _at_desk(request, lambda: parse(raw))


async def _body(request: Request, kind: type[T]) -> T:
    """The request's JSON object as a `kind`. Raises Problem, NotJSON or BadInput."""

    def parse(raw: bytes) -> T:
        value = decode_json(raw)
        if not isinstance(value, (dict, list)):
            raise NotJSON(shown(value), "a JSON object")
        refuse_overflow(value)
        return convert(value, kind)

    return await _parsed(request, await read_body(request), parse)


def _answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)


# -- campaigns --------------------------------------------------------------------------------------------------------


@router.put(
    "/v1/campaigns/{campaign_id}",
    openapi_extra=operation("admin", "CampaignIn", None, 200, 400, 401, 403, 413, 415, 422),
)
async def put_campaign(request: Request, campaign_id: str) -> Response:
    """Create (201) or replace (200) a campaign; answers it with its defaults filled in."""
    access = _access(request, "admin")
    body = await _body(request, CampaignIn)
    _check_id(campaign_id)
    service = _parts(request).service
    campaign, new = await _in_thread(request, lambda: service.put_campaign(access.tenant, campaign_id, body))
    return _answer(campaign_body(campaign), 201 if new else 200)


@router.get("/v1/campaigns", openapi_extra=operation("reader"))
async def list_campaigns(request: Request) -> Response:
    """All campaigns of the tenant."""
    access = _access(request, "reader")
    service = _parts(request).service
    return _answer({"campaigns": await _at_desk(request, lambda: service.list_campaigns(access.tenant))})


@router.get("/v1/campaigns/{campaign_id}", openapi_extra=operation("reader", None, None, 200, 401, 403, 404))
async def get_campaign(request: Request, campaign_id: str) -> Response:
    """One campaign."""
    access = _access(request, "reader")
    service = _parts(request).service
    return _answer(campaign_body(await _at_desk(request, lambda: service.get_campaign(access.tenant, campaign_id))))


@router.delete(
    "/v1/campaigns/{campaign_id}", openapi_extra=operation("admin", None, None, 204, 401, 403, 404), status_code=204
)
async def delete_campaign(request: Request, campaign_id: str) -> Response:
    """Delete a campaign: nothing is served for it any more. Its decisions still take events."""
    access = _access(request, "admin")
    service = _parts(request).service
    await _in_thread(request, lambda: service.delete_campaign(access.tenant, campaign_id))
    return Response(status_code=204)


def _check_id(campaign_id: str) -> None:
    """A new id must be one; for one that is only looked up the answer is 404 anyway."""
    convert({"campaign_id": campaign_id}, CampaignPath)


# -- generate and events ----------------------------------------------------------------------------------------------


@router.post(
    "/v1/generate",
    openapi_extra=operation(
        "serve", "GenerateIn", "GenerateOut", 200, 400, 401, 403, 404, 409, 413, 415, 422, 503, 504
    ),
)
async def generate(request: Request) -> Response:
    """Choose texts to show; 200 means that the decisions are durable.

    The header `Idempotency-Key` gives the same answer for 10 minutes.
    """
    access = _access(request, "serve")
    key = request.headers.get("idempotency-key")
    if key is not None and not (1 <= len(key) <= MAX_KEY_CHARS and key.isascii() and key.isprintable()):
        raise BadInput(
            FieldError(
                "Idempotency-Key",
                shown(key),
                f"1 to {MAX_KEY_CHARS} visible characters",
                "send such a key, or no such header",
            )
        )
    body = await _body(request, GenerateIn)
    parts = _parts(request)
    if body.fresh:
        answer = await _fresh(request, lambda gone: parts.service.generate(access.tenant, body, key, gone))
    else:
        answer = await _in_thread(request, lambda: parts.service.generate(access.tenant, body, key))
    for variant in answer.variants:
        parts.metrics.decisions.labels(variant.source).inc()
    return _answer(answer)


async def _fresh(request: Request, work: Callable[[Callable[[], bool]], GenerateOut]) -> GenerateOut:
    """Sample for this request alone: cancelled when its client leaves, given up after FRESH_TIMEOUT_S."""
    gone = threading.Event()
    running = asyncio.get_running_loop().run_in_executor(_parts(request).samplers, lambda: work(gone.is_set))
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {running, leaving}
        await asyncio.wait(either, timeout=FRESH_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        if leaving.done():
            raise ClientDisconnect
        error = FieldError("fresh", "no sample in time", f"one within {FRESH_TIMEOUT_S:g} s", "leave out `fresh`")
        raise Problem(504, error.sentence(), [error])
    finally:
        gone.set()
        leaving.cancel()
        running.add_done_callback(_retrieved)


def _retrieved(done: asyncio.Future[GenerateOut]) -> None:
    """Nobody waits for an abandoned sample any more; its error is worth a line in the log, no more."""
    if not done.cancelled() and (error := done.exception()) is not None:
        logger.info("a fresh sample ended with: %s", error)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


@router.post(
    "/v1/events",
    status_code=202,
    openapi_extra=operation("ingest", "EventIn", "EventResults", 202, 400, 401, 403, 413, 415),
)
async def post_events(request: Request) -> Response:
    """Take one event or up to 1,000, plain or as CloudEvents. Each is accepted (durable) or rejected by itself."""
    access = _access(request, "ingest")
    # How deep each event is nested is that event's matter.
    raw = await read_body(request, (JSON, CLOUDEVENT, CLOUDEVENTS))
    value = await _parsed(request, raw, lambda body: decode_json(body, deep=True))
    if not isinstance(value, (dict, list)):
        raise NotJSON(shown(value), "an event as a JSON object, or a list of events")
    raws = value if isinstance(value, list) else [value]
    if len(raws) > MAX_EVENTS:
        error = FieldError("body", f"{len(raws)} events", f"at most {MAX_EVENTS}", "send them in several requests")
        raise Problem(413, error.sentence(), [error])
    parts = _parts(request)
    results = await _in_thread(request, lambda: parts.service.post_events(access.tenant, raws))
    for result in results:
        parts.metrics.events.labels(result.status, result.reason or "").inc()
    return _answer(EventResults(results), 202)


# -- what is going on -------------------------------------------------------------------------------------------------


@router.get("/v1/stats", openapi_extra=operation("reader"))
async def stats(request: Request) -> Response:
    """Impressions, clicks, conversions, reward and lift by campaign, from the last revisions of the outcomes."""
    access = _access(request, "reader")
    service = _parts(request).service
    return _answer(await _at_desk(request, lambda: service.stats(access.tenant)))


@router.get("/v1/policies", openapi_extra=operation("reader"))
async def policies(request: Request) -> Response:
    """Policy versions with stage, parent and the evidence for the stage: about the 1,000 newest, and whatever their age
    the live one, the first, and those that were rolled back."""
    _access(request, "reader")
    return _answer({"policies": await _at_desk(request, _parts(request).operator.policies)})


@router.post("/v1/policies/{version}/promote", openapi_extra=operation("admin", None, None, 200, 401, 403, 404, 409))
async def promote(request: Request, version: str) -> Response:
    """Make a version live."""
    _access(request, "admin")
    return _answer(await _in_thread(request, lambda: _parts(request).operator.promote(version)))


@router.post("/v1/policies/{version}/rollback", openapi_extra=operation("admin", None, None, 200, 401, 403, 404, 409))
async def rollback(request: Request, version: str) -> Response:
    """Take a version out of use for good; answers the record that is live afterwards."""
    _access(request, "admin")
    return _answer(await _in_thread(request, lambda: _parts(request).operator.rollback(version)))


@router.post("/v1/learner/pause", openapi_extra=operation("admin"))
async def pause(request: Request) -> Response:
    """No further learning until it is resumed, also after a restart."""
    _access(request, "admin")
    await _at_desk(request, _parts(request).operator.pause)
    return _answer({"paused": True})


@router.post("/v1/learner/resume", openapi_extra=operation("admin"))
async def resume(request: Request) -> Response:
    """Learn on, also where the sentinel has halted learning."""
    _access(request, "admin")
    await _at_desk(request, _parts(request).operator.resume)
    return _answer({"paused": False})


@router.get("/healthz", openapi_extra=operation("none"))
async def healthz() -> Response:
    """The process answers. Needs no key."""
    return _answer({"status": "ok"})


@router.get("/readyz", openapi_extra=operation("none", None, None, 200, 503))
async def readyz(request: Request) -> Response:
    """200 when traffic may come, else a problem that says why not. Needs no key."""
    health = _parts(request).health
    problems = health.problems()
    if problems:
        errors = [FieldError(part, state, "running", "see the server's log") for part, state in problems.items()]
        raise Problem(503, "; ".join(f"{part}: {state}" for part, state in problems.items()), errors)
    return _answer({"status": "ready", "roles": health.roles})


@router.get("/metrics", openapi_extra=operation("reader"))
async def metrics(request: Request) -> Response:
    """Prometheus text format."""
    _access(request, "reader")
    registry = _parts(request).metrics.registry
    return Response(await _at_desk(request, lambda: generate_latest(registry)), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", openapi_extra=operation("reader"))
async def openapi_json(request: Request) -> Response:
    """This interface as an OpenAPI document."""
    _access(request, "reader")
    return JSONResponse(_document(request.app))


@router.get("/docs", openapi_extra=operation("reader"))
async def docs(request: Request) -> Response:
    """This interface as a page."""
    _access(request, "reader")
    return HTMLResponse(docs_page(_document(request.app)))


def _document(app: FastAPI) -> dict[str, Any]:
    document = app.openapi()
    document.setdefault("components", {}).setdefault("schemas", {}).update(components())
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return document
