"""Tables rebuilt from the log: the newest value of each key of a topic, and which policy version is live."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from optimizer.ids import version_order
from optimizer.stream.guarded import GuardedDecode
from optimizer.stream.log import EventLog, Record, whole
from optimizer.types import Campaign, PolicyRecord

logger = logging.getLogger(__name__)

T = TypeVar("T")
POLL_RECORDS = 1000
VERSIONS_KEPT = 1000  # many times as many as the store has files of


class Table(Generic[T]):
    """The newest value per key of one topic; a null value removes the key, one that can't be read leaves it as it was.
    Not thread-safe: one owner refreshes it."""

    def __init__(
        self,
        log: EventLog,
        topic: str,
        decode: Callable[[bytes], T],
        guarded: GuardedDecode | None = None,
        removed: Callable[[str], None] = lambda _key: None,
    ) -> None:
        """`removed` is told of each key that a null value removes, also of one that comes again right after it."""
        self.rows: dict[str, T] = {}
        self._decode = decode
        self._guarded = guarded or GuardedDecode()
        self._removed = removed
        self._reader = log.reader(whole(log, topic))

    def refresh(self) -> list[str]:
        """Read to the end of the topic; returns the keys that changed, in log order."""
        changed: list[str] = []
        while records := self._reader.poll(POLL_RECORDS):
            changed += [key for record in records if (key := self._take(record)) is not None]
        return changed

    def close(self) -> None:
        """Let go of the log; the rows stay."""
        self._reader.close()

    def _take(self, record: Record) -> str | None:
        """The key that the record changed."""
        key = None if record.key is None else self._guarded.read(record, record.key, bytes.decode)
        if key is None:
            return None
        if record.value is None:
            self.rows.pop(key, None)
            self._removed(key)
            return key
        row = self._guarded.read(record, record.value, self._decode)
        if row is None:
            return None
        self._put(key, row)
        return key

    def _put(self, key: str, row: T) -> None:
        # Pop first, so that the order of the rows is the order of the last records in the log.
        self.rows.pop(key, None)
        self.rows[key] = row


def campaign_table(
    log: EventLog, guarded: GuardedDecode | None = None, removed: Callable[[str], None] = lambda _key: None
) -> Table[Campaign]:
    """Campaigns by `tenant/campaign_id`; `removed` is told of those that are deleted."""
    decoder = msgspec.json.Decoder(Campaign)
    return Table(log, "campaigns", decoder.decode, guarded, removed)


class PolicyStages:
    """Policy records by version, in the order of their last records, and which version they make live. A record that
    must not change its version's stage is refused: a version that has been live goes live again, or back to an earlier
    stage, by an operator alone; so does one that is older than a version that has been live. `newest` is the highest
    number of those, -1 before the first.

    It holds the `kept` newest (up to a tenth more), and whatever its age the live one, the first (number 0) and those
    that were rolled back: their texts may still lie in a pool. The others are forgotten: the store has long removed
    their files. Of a forgotten version only its number is still held against a record that would make it live."""

    def __init__(self, kept: int = VERSIONS_KEPT) -> None:
        self.rows: dict[str, PolicyRecord] = {}
        self.newest = -1
        self._kept = kept
        self._tidy_at = kept + 1

    def take(self, record: PolicyRecord) -> str | None:
        """Take the record in; returns None, or why it is refused."""
        why = self._refused(record)
        if why is None:
            self.rows.pop(record.version, None)
            self.rows[record.version] = record
            if record.stage in ("live", "rolled_back"):
                self.newest = max(self.newest, version_order(record.version))
            if len(self.rows) >= self._tidy_at:
                self._forget()
        return why

    def _forget(self) -> None:
        live = self.live()
        passing = [
            version
            for version, record in self.rows.items()
            if record.stage != "rolled_back" and record is not live and version_order(version) != 0
        ]
        for version in passing[: -self._kept]:
            del self.rows[version]
        # Not at every record: those that stay whatever their age would be looked through each time.
        self._tidy_at = len(self.rows) + max(1, self._kept // 10)

    def live(self) -> PolicyRecord | None:
        """The version whose `live` record stands last in the log; None before the first."""
        return next(self.live_ones(), None)

    def live_ones(self) -> Iterator[PolicyRecord]:
        """The live version, then those that were live before and were not rolled back, the latest first: what to go
        back to where the live one's files are damaged."""
        return (record for record in reversed(self.rows.values()) if record.stage == "live")

    def _refused(self, record: PolicyRecord) -> str | None:
        if record.stage == "rolled_back" or record.evidence.get("by") == "operator":
            return None
        before, live, got = self.rows.get(record.version), self.live(), f"{record.version}: got stage {record.stage}"
        advice = f"ignored; POST /v1/policies/{record.version}/promote makes it live on purpose"
        if before is None:
            advice = "ignored"  # a promotion would find no such version
        if before is not None and before.stage in ("live", "rolled_back"):
            if record.stage == "live" and live is not None and live.version == record.version:
                return None
            return f"policies: {got} after {before.stage}, expected an operator's record; {advice}"
        if record.stage == "live" and -1 < version_order(record.version) < self.newest:
            return f"policies: {got}, expected a version after number {self.newest}, which was live; {advice}"
        return None


class PolicyTable(Table[PolicyRecord]):
    """`PolicyStages` kept in step with the log; what is refused is logged and changes nothing."""

    def __init__(self, log: EventLog, guarded: GuardedDecode | None = None) -> None:
        super().__init__(log, "policies", msgspec.json.Decoder(PolicyRecord).decode, guarded)
        self.stages = PolicyStages()
        self.rows = self.stages.rows

    def _put(self, key: str, row: PolicyRecord) -> None:
        why = self.stages.take(row)
        if why is not None:
            logger.warning("%s", why)


def policy_table(log: EventLog, guarded: GuardedDecode | None = None) -> PolicyTable:
    """Policy records by version."""
    return PolicyTable(log, guarded)


def live_policy(policies: PolicyTable) -> PolicyRecord | None:
    """The version whose `live` record stands last in the log; None before the first."""
    return policies.stages.live()
