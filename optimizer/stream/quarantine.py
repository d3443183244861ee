"""What was refused: listing it, and sending it to its topic again once its cause is gone."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

import msgspec

from optimizer.stream.dump import records
from optimizer.stream.guarded import UNREADABLE, GuardedDecode
from optimizer.stream.log import TOPICS, Append, EventLog
from optimizer.types import Quarantined, Reason, to_json

DETAIL_CHARS: Final = 500
_QUARANTINED: Final = msgspec.json.Decoder(Quarantined)
_ANY: Final = msgspec.json.Decoder()


class Place(NamedTuple):
    """Where a refused record stood: full topic name, partition, offset. It identifies a quarantine record."""

    topic: str
    partition: int
    offset: int


class Skipped(NamedTuple):
    """A quarantine record that can't be replayed, and why."""

    place: Place
    why: str


class Replayed(NamedTuple):
    """What a replay did."""

    replayed: list[Place]
    skipped: list[Skipped]


def quarantined(
    topic_name: str, partition: int, offset: int, reason: Reason, detail: str, size: int, payload: bytes
) -> Append:
    """The quarantine record of a refused one of `size` bytes, of which `payload` is kept."""
    # Text of the record may stand in the detail: made encodable, and kept short.
    said = detail.encode("utf-8", "replace").decode()[:DETAIL_CHARS]
    kept = base64.b64encode(payload).decode()
    record = Quarantined(topic_name, partition, offset, reason, said, size, kept)
    return Append("quarantine", f"{topic_name}:{partition}:{offset}", to_json(record))


def list_(log: EventLog, reasons: Collection[Reason] | None = None) -> Iterator[Quarantined]:
    """The quarantine records, each place once, in log order; only those with one of `reasons`, if given. What no joiner
    wrote is skipped, with a warning."""
    seen: set[Place] = set()
    guarded = GuardedDecode()
    for record in records(log, "quarantine"):
        refused = None if record.value is None else guarded.read(record, record.value, _QUARANTINED.decode)
        if refused is None:
            continue
        place = place_of(refused)
        if place not in seen and (reasons is None or refused.reason in reasons):
            seen.add(place)
            yield refused


def replay(
    log: EventLog, reasons: Collection[Reason] | None = None, places: Collection[Place] | None = None
) -> Replayed:
    """Append refused records to their own topics again, where they are judged anew; whoever is still wrong comes back.

    Skipped, with the reason: a payload that was cut at 64 KiB, one that names no decision (so that it has no key), and
    one from a topic of another log.
    """
    done = Replayed([], [])
    for refused in list(list_(log, reasons)):
        place = place_of(refused)
        if places is not None and place not in places:
            continue
        appended = _append_of(log, refused)
        if isinstance(appended, str):
            done.skipped.append(Skipped(place, appended))
        else:
            log.append([appended])
            done.replayed.append(place)
    return done


def place_of(refused: Quarantined) -> Place:
    """What identifies a quarantine record."""
    return Place(refused.topic, refused.partition, refused.offset)


def _append_of(log: EventLog, refused: Quarantined) -> Append | str:
    """The record to append again, or why there is none."""
    topic = next((topic for topic in TOPICS if log.topic_name(topic) == refused.topic), None)
    if topic is None:
        return f"its topic {refused.topic!r} is not in this log"
    try:
        payload = base64.b64decode(refused.payload)
    except ValueError:
        return "its payload is not base64"
    if len(payload) != refused.size:
        return f"only {len(payload)} of its {refused.size} bytes were kept"
    try:
        found: Any = _ANY.decode(payload)
    except UNREADABLE:
        return "it is not JSON, so it names no decision"
    key = found.get("decision_id") if isinstance(found, dict) else None
    if not isinstance(key, str):
        return "it names no decision"
    return Append(topic, key, payload)
