"""Joiner processes killed at random moments, and the broker restarted under them: nothing lost, nothing doubled."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from deploy.kafka.broker import Broker
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.log import Append, EventLog, TopicPartition
from tests.faults.check import Verdict, judge
from tests.faults.processes import Joiners
from tests.faults.traffic import expected, history, records
from tests.kafka_rig import new_prefix, url

PARTITIONS: Final = 4
OUTCOMES: Final = [TopicPartition("outcomes", partition) for partition in range(PARTITIONS)]
CLIENTS: Final = ("kafka-python", "confluent")
APPEND_RECORDS: Final = 500
APPEND_S: Final = 120.0
WATCH_S: Final = 1.0  # how long a look at what is published may take: no longer than that while the broker is away
IDLE_S: Final = 2


class Plan(NamedTuple):
    """How much of everything; half of the kills hit a joiner that is alone, half one of a group of `members`."""

    impressions: int
    kills: int
    restarts: int
    lost_states: int
    members: int
    seed: int = 1


class Found(NamedTuple):
    """What came of it. `at_work`: kills within half a second of something published by a joiner that was killed so."""

    verdict: Verdict
    records: int
    kills: int
    at_work: int
    restarts: int
    lost_states: int
    died: int
    seconds: float


def run(plan: Plan, broker: Broker, folder: Path) -> Found:
    """Carry a plan out on a broker, which is running again at the end."""
    started = time.monotonic()
    rng = random.Random(plan.seed)
    told = history(rng, plan.impressions)
    arriving = list(records(rng, told))
    prefix = new_prefix()
    log, watched = (
        KafkaLog(parse_kafka_url(url(broker, prefix, "confluent", partitions=PARTITIONS, timeout_s=timeout_s), {}))
        for timeout_s in (APPEND_S, WATCH_S)
    )
    chaos = _Chaos(plan, rng, broker, log, watched, prefix, folder)
    try:
        chaos.play(arriving)
        chaos.finish()
        verdict = judge(log, expected(told))
    finally:
        chaos.close()
        log.close()
        watched.close()
    seconds = time.monotonic() - started
    return Found(
        verdict, len(arriving), chaos.kills, chaos.at_work, chaos.restarts, chaos.lost_states, chaos.died, seconds
    )


class _Chaos:
    """The killing."""

    def __init__(
        self,
        plan: Plan,
        rng: random.Random,
        broker: Broker,
        log: EventLog,
        watched: KafkaLog,
        prefix: str,
        folder: Path,
    ) -> None:
        self.kills = self.at_work = self.restarts = self.lost_states = self.died = 0
        self._plan = plan
        self._rng = rng
        self._broker = broker
        self._log = log
        self._watched = watched
        self._prefix = prefix
        self._alone = Joiners(folder)
        self._group = Joiners(folder, "joiners")
        self._restarting: threading.Thread | None = None
        kills = range(plan.kills)
        self._restart_at = set(rng.sample(kills[1:], plan.restarts))
        self._lose_at = set(rng.sample(kills[1:], plan.lost_states))
        self._grown = 0  # how much had been published, and when it was last seen to grow
        self._grew = 0.0

    def play(self, arriving: list[Append]) -> None:
        """Append the records bit by bit, killing all the way."""
        piece = -(-len(arriving) // self._plan.kills)
        alone = self._plan.kills // 2 if self._plan.members else self._plan.kills
        for kill in range(self._plan.kills):
            if kill == alone:
                self._alone.close()
            for first in range(kill * piece, min((kill + 1) * piece, len(arriving)), APPEND_RECORDS):
                self._append(arriving[first : min(first + APPEND_RECORDS, (kill + 1) * piece)])
            if kill in self._restart_at:
                self._restart()
            joiners, name = (self._alone, "m0") if kill < alone else (self._group, self._rng.choice(self._members()))
            self._see_to(joiners)
            # One in three at any moment, its start included; the others once something is being published.
            if kill < alone and self._rng.random() < 2 / 3:
                self._until_publishing()
                self._watch(self._rng.random() * 0.3)
            else:
                self._watch(self._rng.random() * 6.0)
            self.at_work += time.monotonic() - self._grew < 0.5
            joiners.kill(name, lose_state=kill in self._lose_at)
            self.lost_states += kill in self._lose_at
            self.kills += 1
            if (kill + 1) % 20 == 0:
                print(f"{kill + 1} kills, {self.restarts} restarts of the broker", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Let one joiner, on the state that was killed most, read to the end."""
        if self._restarting is not None:
            self._restarting.join()
        self._group.close()
        last = self._alone.start("m0", self._url(), "--until-idle", str(IDLE_S), "--json")
        assert last.wait(600) == 0, self._alone.last_words("m0")
        del self._alone.running["m0"]
        print(json.loads(self._alone.last_words("m0").splitlines()[-1]), file=sys.stderr)

    def close(self) -> None:
        """End every process, and leave the broker running."""
        self._alone.close()
        self._group.close()
        if self._restarting is not None:
            self._restarting.join()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _members(self) -> list[str]:
        return [f"m{number}" for number in range(self._plan.members)]

    def _see_to(self, joiners: Joiners) -> None:
        """Whoever should run, runs; one that has ended by itself (none should) is told of, and started again."""
        for name in joiners.died():
            self.died += 1
            print(f"{name} ended by itself: {joiners.last_words(name)}", file=sys.stderr, flush=True)
            joiners.kill(name)
        for name in self._members() if joiners is self._group else ["m0"]:
            if name not in joiners.running:
                joiners.start(name, self._url())

    def _url(self) -> str:
        return url(self._broker, self._prefix, self._rng.choice(CLIENTS))

    def _append(self, appends: list[Append]) -> None:
        """Durably: an append that failed while the broker was away is made again, and what stood already is a copy."""
        deadline = time.monotonic() + APPEND_S
        while True:
            try:
                self._log.append(appends)
            except OSError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def _restart(self) -> None:
        if self._restarting is not None:
            self._restarting.join()

        def restart() -> None:
            self._broker.stop()
            self._broker.start()
            self.restarts += 1

        self._restarting = threading.Thread(target=restart, name="restart")
        self._restarting.start()

    def _published(self) -> int:
        try:
            return sum(self._watched.ends(OUTCOMES).values())
        except OSError:
            return self._grown

    def _until_publishing(self) -> None:
        before = self._grown = self._published()
        deadline = time.monotonic() + 30.0
        while self._grown == before and time.monotonic() < deadline:
            self._watch(0.05)

    def _watch(self, seconds: float) -> None:
        """Let time pass, with an eye on what is published."""
        until = time.monotonic() + seconds
        while True:
            if (published := self._published()) != self._grown:
                self._grown, self._grew = published, time.monotonic()
            if (left := until - time.monotonic()) <= 0:
                return
            time.sleep(min(left, 0.05))
