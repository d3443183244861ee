"""Refusals as RFC 9457 problem details: type, title, status, detail and one entry per refused field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec

from optimizer.errors import AdloopError, FieldError

PROBLEM_JSON = "application/problem+json"


class Problem(AdloopError):
    """A refusal with its HTTP status, and one entry in `errors` for each thing that stands against it."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[FieldError], headers: Mapping[str, str] | None = None
    ) -> None:
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        super().__init__(detail)

    def __reduce__(self) -> tuple[type[Problem], tuple[object, ...]]:
        # As BadInput's: all of it crosses a process border.
        return type(self), (self.status, self.detail, self.errors, self.headers)

    def body(self) -> bytes:
        """The JSON of docs/api.md, Requests."""
        return msgspec.json.encode(
            {
                "type": "about:blank",
                "title": title(self.status),
                "status": self.status,
                "detail": self.detail,
                "errors": [{"field": e.field, "got": e.got, "expected": e.expected, "fix": e.fix} for e in self.errors],
            }
        )


def title(status: int) -> str:
    """The phrase that HTTP itself has for the status, as RFC 9457 asks of `about:blank`."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


def invalid(errors: Sequence[FieldError]) -> Problem:
    """422: understood, but a field does not fit."""
    return Problem(422, "; ".join(error.sentence() for error in errors), errors)


def not_found(field: str, got: str) -> Problem:
    """404: the same for what never was and for what is another tenant's."""
    return Problem(404, f"there is no such {field}", [FieldError(field, got[:80], "an id that exists", "check the id")])


def conflict(field: str, got: str, expected: str, fix: str) -> Problem:
    """409: it fits, but not the state of things."""
    error = FieldError(field, got, expected, fix)
    return Problem(409, error.sentence(), [error])


def unavailable(detail: str, fix: str, field: str = "server") -> Problem:
    """503: asked for something that cannot be done right now."""
    error = FieldError(field, detail, "a server that is ready for it", fix)
    return Problem(503, f"{detail}; {fix}", [error], {"Retry-After": "2"})
