"""A topic's records as plain values, for people and for checks (`adloop log dump URL TOPIC`)."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import msgspec

from optimizer.stream.guarded import UNREADABLE
from optimizer.stream.log import EventLog, Record, whole


def records(log: EventLog, topic: str) -> Iterator[Record]:
    """Every record of a topic, partition by partition mixed, up to where it ends now; what is just being published is
    waited for. Raises AdloopError for an unknown topic."""
    log.settle(topic)
    reader = log.reader(whole(log, topic))
    try:
        while batch := reader.poll():
            yield from batch
    finally:
        reader.close()


def dump(log: EventLog, topic: str) -> Iterator[dict[str, Any]]:
    """`{partition, offset, key, value}` of every record, ready for JSON.

    `value` is the parsed JSON, null for a tombstone; bytes that are not JSON come as `{"base64": ...}`.
    """
    for record in records(log, topic):
        key = None if record.key is None else record.key.decode("utf-8", "replace")
        yield {
            "partition": record.partition,
            "offset": record.offset,
            "key": key,
            "value": None if record.value is None else _parsed(record.value),
        }


def _parsed(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except UNREADABLE:
        return {"base64": base64.b64encode(value).decode()}
