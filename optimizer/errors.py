"""Errors that a person reads: each names the field, what came, what was expected and the fix."""

from __future__ import annotations

from dataclasses import dataclass


class AdloopError(Exception):
    """Base of every error Adloop raises on purpose; its text is one sentence fit for stderr."""


@dataclass(frozen=True)
class FieldError:
    """One refused field, in the shape of docs/api.md, Requests: `{field, got, expected, fix}`."""

    field: str
    got: str
    expected: str
    fix: str

    def sentence(self) -> str:
        return f"{self.field}: got {self.got}, expected {self.expected}; {self.fix}"


class BadInput(AdloopError):
    """Input that must be refused, with one entry per refused field."""

    def __init__(self, *errors: FieldError) -> None:
        if not errors:
            raise ValueError("BadInput needs at least one FieldError")
        self.errors = errors
        super().__init__("; ".join(error.sentence() for error in errors))

    def __reduce__(self) -> tuple[type[BadInput], tuple[FieldError, ...]]:
        # By default an exception is made anew from its text: one from a worker process would break on the way.
        return type(self), self.errors


class ConfigError(AdloopError):
    """Configuration that start-up refuses; the text names the key and the fix."""


class LogTruncated(AdloopError):
    """The log no longer holds an offset that a reader still needs: stop, never jump silently."""


class Fenced(AdloopError):
    """Another process has taken over what this one was publishing: stop publishing, nothing more may be written."""


class StoreError(AdloopError):
    """A policy artefact that is refused: the text says which file and why; the live version stays."""
