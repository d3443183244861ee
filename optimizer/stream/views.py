"""Tables rebuilt from the log: the newest value of each key of a topic, and which policy version is live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from optimizer.stream.log import EventLog, whole
from optimizer.types import Campaign, PolicyRecord

T = TypeVar("T")
POLL_RECORDS = 1000


class Table(Generic[T]):
    """The newest value per key of one topic; a null value removes the key. Not thread-safe: one owner refreshes it."""

    def __init__(self, log: EventLog, topic: str, decode: Callable[[bytes], T]) -> None:
        self.rows: dict[str, T] = {}
        self._decode = decode
        self._reader = log.reader(whole(log, topic))

    def refresh(self) -> list[str]:
        """Read to the end of the topic; returns the keys that changed, in log order."""
        changed: list[str] = []
        while records := self._reader.poll(POLL_RECORDS):
            for record in records:
                if record.key is None:
                    continue
                key = record.key.decode()
                if record.value is None:
                    self.rows.pop(key, None)
                else:
                    # Pop first, so that the order of the rows is the order of the last records in the log.
                    self.rows.pop(key, None)
                    self.rows[key] = self._decode(record.value)
                changed.append(key)
        return changed


def campaign_table(log: EventLog) -> Table[Campaign]:
    """Campaigns by `tenant/campaign_id`."""
    decoder = msgspec.json.Decoder(Campaign)
    return Table(log, "campaigns", decoder.decode)


def policy_table(log: EventLog) -> Table[PolicyRecord]:
    """Policy records by version."""
    decoder = msgspec.json.Decoder(PolicyRecord)
    return Table(log, "policies", decoder.decode)


def live_policy(policies: Table[PolicyRecord]) -> PolicyRecord | None:
    """The version whose `live` record stands last in the log; None before the first."""
    live = [record for record in policies.rows.values() if record.stage == "live"]
    return live[-1] if live else None
