"""Bytes to typed values, strictly: what is not JSON is told apart from JSON that does not fit; errors name the field.

RFC 8259 leaves open what to do with duplicate names and lone surrogates; here both are refused (RFC 7493, I-JSON), as
are NaN and Infinity, which Python's own parser would let through.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import msgspec

from optimizer.errors import AdloopError, BadInput, FieldError
from serving.expected import locate, misnamed

T = TypeVar("T")
MAX_GOT_CHARS = 80
MAX_INTEGER_DIGITS = 300  # more would overflow a double
MAX_DEPTH = 64  # the deepest body there is has five; what reads a value recursively must not meet Python's limit
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_AT = re.compile(r" - at (`key` in )?`([^`]*)`\Z")  # the last one: what came before it may be a client's own text
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)


class NotJSON(AdloopError):
    """The body is no JSON text, or not one of the kind that is due. Its text is what came; `expected` what should."""

    def __init__(self, got: str, expected: str = "one JSON object or list in UTF-8") -> None:
        self.expected = expected
        super().__init__(got)


class _Duplicate(ValueError):
    """A name stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Counted in one pass: a megabyte holds a hundred thousand names.
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise _Duplicate(f"the name {shown(twice)} stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise _Duplicate(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    # Infinity marks a number that overflows, whatever its notation; the caller refuses it by name.
    if len(digits) > MAX_INTEGER_DIGITS:
        return -math.inf if digits.startswith("-") else math.inf
    return int(digits)


def decode_json(raw: bytes, deep: bool = False) -> object:
    """The value of a JSON text. Numbers that overflow a double come back as infinite: see `overflowing`.

    Args:
      deep: let pass what is nested deeper than MAX_DEPTH, as far as the parser takes it: the caller asks `too_deep`.

    Raises:
      NotJSON: not UTF-8, not JSON, a name twice in an object, a lone surrogate, or nested too deep.
    """
    if not raw.strip():
        raise NotJSON("an empty body")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer)
        if _ESCAPED_SURROGATE.search(raw):
            # A pair has become one character by now; only a lone surrogate cannot be encoded.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise NotJSON(f"invalid UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise NotJSON("a lone surrogate: \\ud800 to \\udfff must come in pairs") from error
    except RecursionError as error:
        raise NotJSON("nested too deep") from error
    except json.JSONDecodeError as error:
        raise NotJSON(f"no JSON from character {error.pos} on ({error.msg})") from error
    except ValueError as error:
        raise NotJSON(str(error)) from error
    if not deep and too_deep(value):
        raise NotJSON("nested too deep")
    return value


def too_deep(value: object) -> bool:
    """Whether objects and lists stand inside one another more than MAX_DEPTH times."""
    level: list[Any] = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        inside = (one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer))
        level = [one for one in inside if isinstance(one, (dict, list))]
    return bool(level)


def overflowing(value: object) -> str | None:
    """The path of the first number that overflows a double (1e400), or None. The path is put together when there is
    one: a long name above a long list would be copied for each of its elements."""
    if isinstance(value, float) and not math.isfinite(value):
        return "body"
    inside = [_items(value)]
    names: list[object] = []
    while inside:
        for name, one in inside[-1]:
            if isinstance(one, float) and not math.isfinite(one):
                return _path([*names, name])
            if isinstance(one, (dict, list)):
                inside.append(_items(one))
                names.append(name)
                break
        else:
            inside.pop()
            del names[-1:]
    return None


def _items(value: object) -> Iterator[tuple[object, object]]:
    if isinstance(value, dict):
        return iter(value.items())
    return iter(enumerate(value)) if isinstance(value, list) else iter(())


def _path(names: Sequence[object]) -> str:
    """As in `slots[2].name`: numbers stand in brackets."""
    text = "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in names)
    return text.removeprefix(".")


def refuse_overflow(value: object) -> None:
    """Raises BadInput where a number overflows."""
    path = overflowing(value)
    if path is not None:
        raise BadInput(FieldError(path, "a number that overflows", "a number within 1.8e308", "send a smaller number"))


def shown(value: object) -> str:
    """A short JSON rendering of what came, safe to put into an error."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except (TypeError, ValueError):
        text = ascii(value)
    return text if len(text) <= MAX_GOT_CHARS else text[: MAX_GOT_CHARS - 3] + "..."


def convert(value: object, kind: type[T]) -> T:
    """`value`, as parsed from JSON, as a `kind`. Raises BadInput with the path, what came and what was expected."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadInput(field_error(str(error), value, kind)) from error


def field_error(message: str, value: object, kind: object) -> FieldError:
    """Turn msgspec's sentence ("Expected `int`, got `str` - at `$.count`") into the error's four parts."""
    whole = _UNKNOWN.fullmatch(message)
    if whole and isinstance(value, dict) and whole.group(1) in value:
        at = None  # a name of the body itself, which may end as a path would
    else:
        at = _AT.search(message)
        message = _AT.sub("", message)
    path = (at.group(2) if at else "$").removeprefix("$")
    if at and at.group(1):
        field, got, expected = misnamed(path, value, kind)
        return FieldError(field or "body", f"the name {shown(got)}", expected, "rename it, or leave it out")
    field, got, expected = locate(path, value, kind)
    if unknown := _UNKNOWN.fullmatch(message):
        inner = _below(field, unknown.group(1) or '""')
        return FieldError(inner[:MAX_GOT_CHARS], "an unknown field", "only the fields of the contract", "leave it out")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        inner = _below(field, missing.group(1))
        return FieldError(
            inner, "nothing", locate(f"{path}.{missing.group(1)}", value, kind)[2], "add it: it is required"
        )
    return FieldError(field or "body", shown(got), expected, "send that instead")


def _below(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name
