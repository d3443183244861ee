"""What an operator may do to policies and the learner: promote, roll back, pause, resume."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from optimizer.clock import Clock
from optimizer.control import HALT_FILE, PAUSE_FILE, RESUME_FILE, halt_reason
from optimizer.errors import FieldError
from optimizer.files import write_whole
from optimizer.stream.log import Append, EventLog
from optimizer.types import PolicyRecord, Stage, to_json
from serving.problems import Problem, conflict, not_found
from serving.views import Views


class Operator:
    """Changes stages by appending to `policies`, and pauses the learner, which may be another process, by a file."""

    def __init__(
        self,
        log: EventLog,
        clock: Clock,
        views: Views,
        data: Path,
        damage: Callable[[str], str | None] = lambda _version: None,
    ) -> None:
        """`damage` says why a version's files cannot be used (they are gone, or not what the manifest says): such a
        version can never go live."""
        self._log = log
        self._clock = clock
        self._views = views
        self._data = data
        self._damage = damage

    def policies(self) -> list[dict[str, Any]]:
        """The versions that are held, oldest record first; `serving` marks the live one."""
        live = self._views.live()
        return [
            {**msgspec.to_builtins(record), "serving": live is not None and record.version == live.version}
            for record in self._views.policies()
        ]

    def promote(self, version: str) -> PolicyRecord:
        """Make the version live; where it is live already, nothing is written. Raises Problem 404; 409 where it was
        rolled back or its files are damaged."""
        while True:
            record, live = self._known(version)
            if record.stage == "rolled_back":
                raise conflict("version", version, "a version that was not rolled back", "promote another version")
            if (damage := self._damage(version)) is not None:
                raise conflict("version", damage, "a version whose files are whole", "promote another version")
            if live is not None and live.version == version:
                return live
            promoted = self._staged(record, "live")
            # Whatever else is live by now: a learner may publish as fast as files are read.
            if self._done((promoted,), lambda live: live is None or live.version != version, record):
                return promoted

    def rollback(self, version: str) -> PolicyRecord:
        """Take the version out of use; where it was live, its nearest parent that is not rolled back is live again.
        Where it is out already, nothing is written.

        Returns the record that is live afterwards. Raises Problem 404; 409 where there is none: it is live and has no
        parent to go back to, or nothing is live.
        """
        while True:
            record, live = self._known(version)
            out = self._staged(record, "rolled_back")
            if live is not None and live.version != version:
                if record.stage == "rolled_back":
                    return live
                if self._done((out,), lambda live: live is not None and live.version != version, record):
                    return self._views.live() or live
                continue
            if record.stage == "rolled_back":
                raise conflict("version", version, "a version to be live afterwards", "promote another version")
            parent = self._nearest_parent(record)
            if parent is None:
                raise conflict("version", version, "a version with a parent to go back to", "promote another one first")
            again = self._staged(parent, "live")
            if self._done((out, again), lambda live: live is not None and live.version == version, record, parent):
                return again

    def pause(self) -> None:
        """The learner takes no further increment, also after a restart, until `resume`. Raises Problem 503."""
        paused = self._data / PAUSE_FILE
        try:
            # O_CREAT alone is atomic: the file is there or not, its content says nothing.
            os.close(os.open(paused, os.O_CREAT | os.O_WRONLY, 0o644))
        except OSError as error:
            raise _file_problem(error, PAUSE_FILE, "the learner is not paused") from error

    def resume(self) -> None:
        """Learn on, whoever has stopped it: an operator, or the learner's sentinel. Raises Problem 503."""
        name = RESUME_FILE
        try:
            if (self._data / HALT_FILE).exists():
                # First, so that whoever sees the halt gone knows what is forgiven.
                write_whole(self._data / RESUME_FILE, str(self._clock.now_ms()).encode())
            for name in (PAUSE_FILE, HALT_FILE):
                (self._data / name).unlink(missing_ok=True)
        except OSError as error:
            raise _file_problem(error, name, "the learner does not go on yet") from error

    def idle(self) -> bool:
        """The learner takes no increments, whoever has stopped it."""
        return self.paused() or bool(self.halted())

    def halted(self) -> str:
        """Why the learner's sentinel has halted it; empty where it has not."""
        return halt_reason(self._data)

    def paused(self) -> bool:
        return (self._data / PAUSE_FILE).exists()

    def _known(self, version: str) -> tuple[PolicyRecord, PolicyRecord | None]:
        """The version's record, and the live one. Raises Problem 404."""
        self._views.refresh_tables()
        with self._views.lock:
            record, live = self._views.policy(version), self._views.live()
        if record is None:
            raise not_found("version", version)
        return record, live

    def _nearest_parent(self, record: PolicyRecord) -> PolicyRecord | None:
        """The first of its parent, that one's, and so on, that may be live. Where one is not known any more, none
        between it and the first version has files: that one is next."""
        seen = {record.version}
        while record.parent is not None and record.parent not in seen:
            parent = self._views.policy(record.parent) or self._views.first_policy()
            if parent is None or parent.version in seen:
                return None
            if parent.stage != "rolled_back" and self._damage(parent.version) is None:
                return parent
            seen.add(parent.version)
            record = parent
        return None

    def _staged(self, record: PolicyRecord, stage: Stage) -> PolicyRecord:
        evidence = {**record.evidence, "by": "operator"}
        return msgspec.structs.replace(record, stage=stage, ts=self._clock.now_ms(), evidence=evidence)

    def _done(
        self, records: Sequence[PolicyRecord], still: Callable[[PolicyRecord | None], bool], *seen: PolicyRecord
    ) -> bool:
        """Append the records, or False where one of those `seen` is another one by now, or the live one is not `still`
        as it must be: what they were decided upon must be looked at again.

        Files were read and hashed before, without the lock: every request takes it."""
        with self._views.lock:
            self._views.read_tables()
            if not still(self._views.live()) or any(self._views.policy(one.version) is not one for one in seen):
                return False
            self._log.append([Append("policies", record.version, to_json(record)) for record in records])
        self._views.refresh_tables()
        return True


def storage_problem(error: OSError) -> Problem:
    """503 for a log that does not take what must be durable before the answer."""
    why = error.strerror or str(error)
    detail = f"the log cannot be written: nothing of this request was accepted ({why})"
    field = FieldError("log", why, "a log that takes records", "send it again later; see /readyz")
    return Problem(503, detail, [field], {"Retry-After": "5"})


def _file_problem(error: OSError, name: str, what: str) -> Problem:
    """503 for a file of the data folder by which the learner is told."""
    why = error.strerror or str(error)
    field = FieldError(name, why, "a data folder that can be changed", "make room or mend its rights, then ask again")
    return Problem(503, f"{what}: {field.sentence()}", [field], {"Retry-After": "5"})
