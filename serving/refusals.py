"""From what a route raises to what the client reads: every refusal as problem details."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from optimizer.errors import AdloopError, BadInput, FieldError
from serving.operate import storage_problem
from serving.problems import PROBLEM_JSON, Problem, invalid
from serving.wire import NotJSON

logger = logging.getLogger(__name__)

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")


def _refusal(problem: Problem) -> Response:
    return Response(problem.body(), problem.status, problem.headers, PROBLEM_JSON)


async def on_problem(request: Request, error: Exception) -> Response:
    """The answer to anything that a route raises."""
    match error:
        case Problem():
            return _refusal(error)
        case BadInput():
            return _refusal(invalid(error.errors))
        case NotJSON():
            field = FieldError("body", str(error), error.expected, "correct the JSON")
            return _refusal(Problem(400, field.sentence(), [field]))
        case OSError():
            return _refusal(storage_problem(error))
        case HTTPException():
            return _refusal(_of_router(request, error))
        case ClientDisconnect():
            return Response(status_code=400)  # nobody reads it
        case AdloopError():
            # What the client sent is refused where it is read. This is the server's matter: its log, its files.
            logger.warning("%s %s: %s", request.method, request.url.path, error)
            field = FieldError("server", str(error), "a server that is ready for it", "mend that, then send it again")
            return _refusal(Problem(503, str(error), [field], {"Retry-After": "5"}))
        case _:
            # Starlette raises it on after this answer, so that uvicorn logs it with its traceback.
            field = FieldError("server", "a fault", "an answer", "look for the reason in the server's log")
            return _refusal(Problem(500, "the server failed; the reason is in its log", [field]))


def _of_router(request: Request, error: HTTPException) -> Problem:
    """What the router itself refuses: no such page, or not with this method."""
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 405:
        allowed = ", ".join(_methods(request))
        field = FieldError("method", request.method, allowed, "use an allowed method")
        return Problem(405, field.sentence(), [field], {**headers, "Allow": allowed})
    if error.status_code == 404:
        field = FieldError("path", path[:80], "a path of /openapi.json", "correct the path")
        return Problem(404, field.sentence(), [field], headers)
    field = FieldError("request", str(error.detail), "a request as /openapi.json has it", "correct it")
    return Problem(error.status_code, str(error.detail), [field], headers)


def _methods(request: Request) -> list[str]:
    """What the path takes: a route has one method, and the router names that of the first route alone. Each method is
    asked for, since routes of an included router cannot be listed in every version of FastAPI."""

    def taken(method: str) -> bool:
        scope = {**request.scope, "method": "GET" if method == "HEAD" else method}  # serving/head.py
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return [method for method in METHODS if taken(method)]


Handler = Callable[[Request, Exception], Awaitable[Response]]
_KINDS = (AdloopError, HTTPException, RequestValidationError, ClientDisconnect, OSError, Exception)
HANDLERS: dict[type[Exception], Handler] = dict.fromkeys(_KINDS, on_problem)
