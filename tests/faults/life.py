"""Traffic that goes on while things break, and a look at when its outcomes come out."""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from typing import Final

import msgspec

from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.log import EventLog, LogReader, whole
from tests.faults.traffic import Json, Told, expected, tell
from tests.stream_rig import T0, appended, content

EVERY_S: Final = 0.1
AT_ONCE: Final = 2  # decisions, with all that came of them
STEP_MS: Final = 50  # event time from one decision to the next


class Life:
    """A thread that appends decisions with their events to `log`, straight to the broker, and reads the outcomes.

    Each decision is known with its outcome in the end: it is waited for until that is in the log.
    """

    def __init__(self, log: KafkaLog, seed: int) -> None:
        self.told: list[Told] = []
        self._log = log
        self._rng = random.Random(seed)
        self._waiting: dict[str, tuple[float, Json | None]] = {}
        self._last: dict[str, tuple[int, Json]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="life")
        self._thread.start()

    def caught_up(self, since: float, limit_s: float) -> float:
        """Wait for the outcomes of all that was appended before `since` (monotonic); how long after it that was so.
        Infinite where it took longer than `limit_s`."""
        while (now := time.monotonic()) < since + limit_s:
            oldest = next(iter(list(self._waiting.values())), None)
            if oldest is None or oldest[0] > since:
                return now - since
            assert self._thread.is_alive(), "the traffic has ended by an error"
            time.sleep(0.02)
        return float("inf")

    def end(self) -> dict[str, Json]:
        """End the traffic; what has to stand in the log in the end."""
        self._stopping.set()
        self._thread.join()
        return expected(self.told)

    def _run(self) -> None:
        with closing(self._log.reader(whole(self._log, "outcomes"))) as reader:
            while not self._stopping.is_set():
                self._append(self._log)
                self._look(reader)

    def _append(self, log: EventLog) -> None:
        made = [
            tell(self._rng, f"d{len(self.told) + i:06d}", T0 + (len(self.told) + i) * STEP_MS) for i in range(AT_ONCE)
        ]
        records = [record for one in made for record in (appended(one.decision), *map(appended, one.events))]
        self._rng.shuffle(records)
        self.told += made
        now = time.monotonic()
        for one in made:
            self._waiting[one.decision.decision_id] = now, one.expected()
        while not self._stopping.is_set():
            try:
                log.append(records)
            except OSError:
                continue  # the broker is away; what stands in the log already is a copy then
            return

    def _look(self, reader: LogReader) -> None:
        until = time.monotonic() + EVERY_S
        while (left := until - time.monotonic()) > 0:
            try:
                records = reader.poll(1_000, left)
            except OSError:
                continue
            for record in records:
                self._note(msgspec.json.decode(record.value or b""))

    def _note(self, outcome: Json) -> None:
        decision_id, revision = outcome["decision_id"], outcome["revision"]
        if revision < self._last.get(decision_id, (0, {}))[0]:
            return
        self._last[decision_id] = revision, outcome
        wanted = self._waiting.get(decision_id)
        if wanted is not None and content(outcome) == wanted[1]:
            del self._waiting[decision_id]
