"""What a schema expects at a place, in words that a client can act on. Pure; the schemas are `serving/schemas.py`."""

from __future__ import annotations

import re
from functools import lru_cache

from msgspec import inspect

_PLACE = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


@lru_cache(maxsize=64)
def _schema(kind: object) -> inspect.Type:
    return inspect.type_info(kind)


def locate(path: str, value: object, kind: object) -> tuple[str, object, str]:
    """Follow msgspec's path of a value that does not fit.

    Args:
      path: as msgspec writes it, without the `$`: `.slots[0].name`; `[...]` stands for some value of an object.
      value: the whole body, as parsed from JSON.
      kind: the type that it was converted to.

    Returns:
      The field's name with every `[...]` found, what stands there, and what was expected in its place.
    """
    node, name = _bare(_schema(kind)), ""
    for field, index in _PLACE.findall(path):
        inner = _inside(node, field)
        if inner is None:
            break
        if index == "...":
            key = _first_misfit(inner, value)
            name, value = f"{name}.{key}", value[key] if isinstance(value, dict) and key in value else value
        elif index:
            name = f"{name}[{index}]"
            value = value[int(index)] if isinstance(value, list) and int(index) < len(value) else value
        else:
            name = f"{name}.{field}"
            value = value.get(field) if isinstance(value, dict) else value
        node = inner
    return name.removeprefix("."), value, words(node)


def misnamed(path: str, value: object, kind: object) -> tuple[str, object, str]:
    """As `locate`, for an object at `path` of which a name does not fit."""
    field, found, _ = locate(path, value, kind)
    node = _bare(_schema(kind))
    for name, _index in _PLACE.findall(path):
        node = _bare(_inside(node, name) or node)
    names = node.key_type if isinstance(node, inspect.DictType) else node
    odd = next((name for name in found if not _fits(names, name)), "") if isinstance(found, dict) else ""
    return field, odd, f"names of which each is {words(names)}"


def words(node: inspect.Type) -> str:
    """The type in words: `a whole number from 1 to 16`, `one of first, last, all`."""
    if isinstance(node, inspect.Metadata):
        told = (node.extra_json_schema or {}).get("description")
        return str(told) if told else words(node.type)
    match node:
        case inspect.IntType():
            return "a whole number" + _range(node.ge, node.le)
        case inspect.FloatType():
            return "a number" + _range(node.ge, node.le)
        case inspect.StrType():
            return "a text" + _length(node, "characters")
        case inspect.BoolType():
            return "true or false"
        case inspect.NoneType():
            return "null"
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in node.values)
        case inspect.UnionType():
            return " or ".join(words(each) for each in node.types)
        case inspect.VarTupleType() | inspect.ListType():
            return "a list" + _length(node, "entries")
        case inspect.DictType():
            return "an object" + _length(node, "names")
        case _:
            return "an object"


def _bare(node: inspect.Type) -> inspect.Type:
    return node.type if isinstance(node, inspect.Metadata) else node


def _inside(node: inspect.Type, field: str) -> inspect.Type | None:
    """The type of a struct's field, or of what a list or an object holds; None where there is no such thing."""
    match _bare(node):
        case inspect.StructType(fields=fields):
            return next((each.type for each in fields if each.encode_name == field), None)
        case inspect.VarTupleType(item_type=held) | inspect.ListType(item_type=held):
            return held
        case inspect.DictType(value_type=held):
            return held
        case _:
            return None


def _first_misfit(node: inspect.Type, value: object) -> str:
    if isinstance(value, dict):
        return next((str(name) for name, held in value.items() if not _fits(node, held)), "...")
    return "..."


def _fits(node: inspect.Type, value: object) -> bool:
    """Whether a JSON scalar is of the type, as far as objects of the contract hold scalars."""
    match _bare(node):
        case inspect.UnionType(types=types):
            return any(_fits(each, value) for each in types)
        case inspect.StrType(min_length=low, max_length=high):
            return isinstance(value, str) and (low or 0) <= len(value) <= (high or len(value))
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        case _:
            return True


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    return "" if low is None and high is None else f" from {_number(low)}" if low is not None else f" up to {high}"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def _length(node: inspect.StrType | inspect.VarTupleType | inspect.ListType | inspect.DictType, unit: str) -> str:
    low, high = node.min_length, node.max_length
    if not low and high is None:
        return ""
    return f" of {low or 0} to {high:,} {unit}" if high is not None else f" of at least {low} {unit}"
