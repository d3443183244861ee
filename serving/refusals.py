"""From what a route raises to what the client reads: every refusal as problem details."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from optimizer.errors import AdloopError, BadInput, FieldError
from serving.operate import storage_problem
from serving.problems import PROBLEM_JSON, Problem, invalid
from serving.wire import NotJSON


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
            return _refusal(Problem(422, str(error), [FieldError("body", "a record too large", "less", "send less")]))
        case _:
            # Starlette raises it on after this answer, so that uvicorn logs it with its traceback.
            return _refusal(Problem(500, "the server failed; the reason is in its log"))


def _of_router(request: Request, error: HTTPException) -> Problem:
    """What the router itself refuses: no such page, or not with this method."""
    path, headers = request.url.path, dict(error.headers or {})
    if error.status_code == 405:
        field = FieldError("method", request.method, headers.get("Allow", "another"), "use an allowed method")
        return Problem(405, field.sentence(), [field], headers)
    if error.status_code == 404:
        field = FieldError("path", path[:80], "a path of /openapi.json", "correct the path")
        return Problem(404, field.sentence(), [field], headers)
    return Problem(error.status_code, str(error.detail), (), headers)


Handler = Callable[[Request, Exception], Awaitable[Response]]
_KINDS = (AdloopError, HTTPException, RequestValidationError, ClientDisconnect, OSError, Exception)
HANDLERS: dict[type[Exception], Handler] = dict.fromkeys(_KINDS, on_problem)
