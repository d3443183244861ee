"""The learner: reads outcomes and pools, teaches the critic and the policy in small increments, publishes policy
versions.

An increment: critic (replay, targets) -> values of the pools -> doubly robust gradient steps -> KL measured and its
penalty's weight moved -> a version in the store, then its record in the log. What it leaves out today is listed in
docs/decisions.md."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import msgspec

from optimizer.clock import Clock
from optimizer.control import PAUSE_FILE, halt_reason, resumed_ms, write_halt
from optimizer.errors import StoreError
from optimizer.files import lock_alone
from optimizer.learning.base import BaseModel, load_policy, load_version
from optimizer.learning.config import LearnerConfig
from optimizer.learning.critic import Critic
from optimizer.learning.forecasts import calibration_facts
from optimizer.learning.pools import PoolShelf
from optimizer.learning.sentinel import Halt, Sentinel
from optimizer.learning.trainer import PolicyTrainer
from optimizer.learning.update import UpdateReport
from optimizer.learning.view import CriticView
from optimizer.maths.sentinel import Vitals
from optimizer.store import Manifest, PolicyStore
from optimizer.stream.guarded import GuardedDecode
from optimizer.stream.log import Append, EventLog, whole
from optimizer.stream.views import campaign_table, live_policy, policy_table
from optimizer.types import Outcome, PolicyRecord, Scalar, Stage, to_json

logger = logging.getLogger(__name__)
STATE_FILE = "learner.state"
LOCK_FILE = ".learner.lock"
INCREMENTS_A_FIT = 10  # increments' worth of outcomes for which the critic is fitted once more, where much is read
TIDY_EVERY = 10  # increments between two prunings of the store, at which the optimizer's state is kept too
MOST_ANCESTORS = 40  # versions since which the optimizer's state may have been kept


class Learner:
    """One of these at a time for a log and its data folder, which keeps a second one out. Not thread-safe."""

    def __init__(
        self,
        log: EventLog,
        store: PolicyStore,
        base: BaseModel | None,
        clock: Clock,
        config: LearnerConfig,
        data: Path | None = None,
    ) -> None:
        """Goes on from the live version; where none is live, it publishes the reference, the base model's weights and
        an untaught critic, as the first.

        `base` None: the critic alone learns (`config.train_policy` must be False). `data` holds the pause file, why
        learning has halted, and the optimizer's state. Raises StoreError where no version that was live can be loaded,
        or none be published, ConfigError for a base model that can't be, and where another learner has `data`."""
        if base is None and config.train_policy:
            raise ValueError("base: got None, expected a base model, or train_policy=False")
        self.config = config
        self.critic = Critic(config.critic)
        self.critic.replaying = True
        self.increments = 0
        self.unused_outcomes = 0
        self._log, self._store, self._base, self._clock = log, store, base, clock
        self.sentinel = Sentinel(config.sentinel)
        self._told: Vitals | None = None
        self._data = data
        self._state_file = data / STATE_FILE if data is not None else None
        self._halted = "" if data is None else halt_reason(data)
        self._guarded = GuardedDecode()
        start = whole(log, "outcomes")
        self._outcome_places = tuple(start)
        self._decoder = msgspec.json.Decoder(Outcome)
        self._waiting = 0
        self._waiting_since_ms = 0
        self._touched: dict[str, None] = {}
        self._head: str | None = None
        self._refused: str | None = None
        self.trainer: PolicyTrainer | None = None
        with ExitStack() as unless_made:
            self._lock = None if data is None else _lock(data)
            if self._lock is not None:
                unless_made.callback(self._lock.close)
            self._campaigns = campaign_table(log, self._guarded)
            unless_made.callback(self._campaigns.close)
            self._policies = policy_table(log, self._guarded)
            unless_made.callback(self._policies.close)
            self._shelf = PoolShelf(log, noted=self.sentinel.note_pool, guarded=self._guarded)
            unless_made.callback(self._shelf.close)
            self._outcomes = log.reader(start)
            unless_made.callback(self._outcomes.close)
            if base is not None and config.train_policy:
                self.trainer = PolicyTrainer(load_policy(base), config, self.critic, self._shelf, self._campaigns.rows)
            if data is not None and (resumed := resumed_ms(data)) is not None:
                self.sentinel.forgive(resumed)
            self._adopt()
            unless_made.pop_all()

    def close(self) -> None:
        """Let go of log and folder. What has been learnt is in the versions that were published."""
        with ExitStack() as stack:  # each, also where one fails
            if self._lock is not None:
                stack.callback(self._lock.close)
            for held in (self._outcomes, self._shelf, self._policies, self._campaigns):
                stack.callback(held.close)

    @property
    def last(self) -> UpdateReport | None:
        """What the last gradient step said; None before the first."""
        return None if self.trainer is None else self.trainer.last

    @property
    def bad_records(self) -> int:
        """Records that could not be read, of any topic: skipped, each logged with its place."""
        return self._guarded.skipped

    # -- reading -------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Read what is new and, where there is enough of it, take an increment. False where there was nothing to do."""
        read = self._read_outcomes()
        self._look_for_resume()
        if self.paused or self.halted:
            return read > 0
        # After a restart the whole history is read before anything is learnt from a part of it.
        caught_up = read < self.config.outcomes_per_poll or self._outcomes.at_end()
        self.critic.replaying = self.critic.replaying and not caught_up
        if self._enough() and (caught_up or self._waiting >= self.config.most_waiting):
            self.increment()
            return True
        return read > 0

    def _enough(self) -> bool:
        """Whether what waits is worth an increment: many outcomes, or a few that have waited long."""
        if self._waiting < self.config.few_outcomes:
            return self._waiting >= self.config.min_outcomes
        waited_ms = self._clock.now_ms() - self._waiting_since_ms
        return self._waiting >= self.config.min_outcomes or waited_ms >= self.config.most_wait_ms

    @property
    def paused(self) -> bool:
        """Paused by an operator (POST /v1/learner/pause)."""
        return self._data is not None and (self._data / PAUSE_FILE).exists()

    @property
    def halted(self) -> str:
        """Why the sentinel has halted learning, also before a restart; empty where it has not. As the last step found
        it: what an operator resumes (POST /v1/learner/resume) goes on with the next one."""
        return self._halted

    def _look_for_resume(self) -> None:
        """See whether learning has been halted or resumed, by this process or another."""
        if self._data is None:
            return
        before, self._halted = self._halted, halt_reason(self._data)
        if before and not self._halted:
            self.sentinel.forgive(resumed_ms(self._data))

    def _read_outcomes(self) -> int:
        records = self._outcomes.poll(self.config.outcomes_per_poll)
        # Read after the outcomes: a decision's campaign and pool are in the log before the decision.
        self._campaigns.refresh()
        self._shelf.refresh()
        for record in records:
            outcome = None if record.value is None else self._guarded.read(record, record.value, self._decoder.decode)
            if outcome is not None:
                self._take(outcome)
        return len(records)

    def _take(self, outcome: Outcome) -> None:
        # First: were the conversions of a deleted campaign left out, but not its clicks, these would look like bait.
        self.sentinel.note_outcome(outcome)
        decision = outcome.decision
        campaign = self._campaigns.rows.get(f"{decision.tenant}/{decision.campaign_id}")
        slots = self._shelf.slots(campaign, outcome) if campaign is not None else None
        if campaign is None or slots is None or not self._shelf.offers(decision):
            # A deleted campaign, a text that is no longer held, a draw that can't be: nothing can be learnt from it.
            self.unused_outcomes += 1
            return
        if self.critic.add(outcome, campaign, slots):
            if not self._waiting:
                self._waiting_since_ms = self._clock.now_ms()
            self._waiting += 1
            if decision.source == "pool":
                self._touched[decision.pool_id] = None
                if decision.position == 0:
                    # The later positions' probabilities leave out what stands before them: they teach the critic alone.
                    self._shelf.note(decision.pool_id, outcome.decision_id)

    # -- learning ------------------------------------------------------------------------------------------------------

    def increment(self) -> Manifest:
        """One increment on what has been read; the published version's manifest, or that of the version it halts at."""
        # A long history read at once is learnt as it would have been bit by bit.
        fits = min(self.config.catch_up_fits, max(1, self._waiting // (INCREMENTS_A_FIT * self.config.min_outcomes)))
        self._waiting = 0
        self.increments += 1
        self._adopt()
        for _ in range(fits):
            self.critic.fit()
        view = self.critic.view()
        if self.trainer is not None:
            self.trainer.increment(view, self._touched, self._recent_versions())
        self._told = self._vitals()
        halt = self.sentinel.judge(self._told, self._clock.now_ms())
        return self._publish(view) if halt is None else self._halt(halt)

    def _vitals(self) -> Vitals | None:
        """How the policy of this increment is; None where it has not been touched."""
        trainer = self.trainer
        if trainer is None or trainer.last is None or not trainer.measured:
            return None
        last = trainer.last
        entropy = last.entropy if last.sequences else math.nan
        return self.sentinel.vitals(last.kl, self.config.kl_budget, trainer.kl_before, trainer.kl_step, entropy)

    def _halt(self, halt: Halt) -> Manifest:
        """Learn no further until an operator resumes; the last version from before it went wrong is live again."""
        assert self._head is not None
        reason, why = halt.ailment
        logger.error("learning is halted (%s): %s; POST /v1/learner/resume goes on", reason, why)
        if self.trainer is not None:
            self.trainer.take_back()
        # The log first: where that fails the halt is tried again, and no ill version stays live behind the file.
        self._log.append([Append("policies", record.version, to_json(record)) for record in self._taken_back(halt)])
        self._policies.refresh()
        if self._data is not None:
            write_halt(self._data, reason, why)
        self._halted = why
        return self._store.manifest(self._head)

    def _taken_back(self, halt: Halt) -> list[PolicyRecord]:
        """The records that say so: the versions since then are rolled back, the one that is live then says why. What an
        operator made live stays, and so does the oldest version whose files are there."""
        held = set(self._store.versions())
        lives = list(self._policies.stages.live_ones())
        good = next(
            (
                at
                for at, record in enumerate(lives)
                if record.evidence.get("by") == "operator" or (record.ts < halt.since_ms and record.version in held)
            ),
            max((at for at, record in enumerate(lives) if record.version in held), default=0),
        )
        reason, why = halt.ailment
        evidence: dict[str, Scalar | None] = {"by": "sentinel", "reason": reason, "why": why}
        told = {**lives[good].evidence, "halted": why, "halted_by": reason}
        now_ms = self._clock.now_ms()
        changed = [
            msgspec.structs.replace(record, stage="rolled_back", ts=now_ms, evidence={**record.evidence, **evidence})
            for record in lives[:good]
        ]
        return [*changed, msgspec.structs.replace(lives[good], evidence=told)]

    def _recent_versions(self) -> set[str]:
        rows = self._policies.rows
        good = [name for name in self._store.versions() if name not in rows or rows[name].stage != "rolled_back"]
        return set(good[-self.config.staleness :])

    # -- versions ------------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Continue from the live version: at start, and when an operator has promoted or rolled back."""
        self._policies.refresh()
        live = live_policy(self._policies)
        if live is None:
            if self._head is None:
                self._publish(self.critic.view(), reference=True)
            return
        if live.version not in (self._head, self._refused):
            restarted = self._head is None
            if self._load_live():
                self._take_up(restarted)

    def _take_up(self, restarted: bool) -> None:
        """The weights are another version's now."""
        if not restarted:
            # Somebody has decided on it: what its predecessor did is no longer held against it.
            self.sentinel.forgive()
        elif self._head is not None:
            self._resume_evidence(self._head)
        if self.trainer is None or self._head is None:
            return
        self.trainer.policy.version = self._head
        known = self._policies.rows[self._head].evidence.get("kl") if self._head in self._policies.rows else None
        self.trainer.reset(float(known) if isinstance(known, int | float) else math.inf)
        if restarted and self._state_file is not None:
            rows, ancestors, name = self._policies.rows, [self._head], self._head
            while name in rows and (parent := rows[name].parent) is not None and len(ancestors) < MOST_ANCESTORS:
                ancestors.append(name := parent)
            self.trainer.restore(self._state_file, ancestors)

    def _resume_evidence(self, version: str) -> None:
        """Texts and conversions: what the process before had found. The clicks are read again, but not what was said
        of each before it was learnt from."""
        try:
            self.critic.resume(CriticView.from_bytes(self._store.critic_bytes(version), version).evidence)
        except StoreError as error:
            logger.warning("%s; whether texts differ in what they convert at is learnt anew", error)

    def _load_live(self) -> bool:
        """Take over the live version's weights. Where its files are damaged the version in use stays (False), after a
        restart the latest good one that was live before. Raises StoreError where there is no such version."""
        if self.trainer is None or self._base is None:
            self._head = next(self._policies.stages.live_ones()).version
            return True
        refusal: StoreError | None = None
        for record in self._policies.stages.live_ones():
            try:
                load_version(self.trainer.policy, self._base, self._store, record.version)
            except StoreError as error:
                if refusal is None:
                    refusal, self._refused = error, record.version
                    logger.warning("%s; learning goes on from the version before", error)
                if self._head is not None:
                    return False
            else:
                self._head = record.version
                return True
        assert refusal is not None
        raise refusal

    def _publish(self, view: CriticView, reference: bool = False) -> Manifest:
        """Into the store first, then into the log: a record never names a version that is not there."""
        facts: dict[str, Scalar | None] = {
            "by": "learner",
            "kl": 0.0,
            "kl_budget": self.config.kl_budget,
            **({} if self.trainer is None else self.trainer.facts()),
            **_sample_facts(self._told),
            **calibration_facts(self.critic.forecasts.calibration),
            "increment": self.increments,
            "outcomes": len(self.critic.buffer.entries),
            "bad_records": self.bad_records,
            "unused_outcomes": self.unused_outcomes,
            "stale_revisions": self.critic.buffer.stale_revisions,
            "evicted_decisions": self.critic.buffer.evicted,
            "outcomes_to": ",".join(f"{at.partition}:{self._outcomes.position(at)}" for at in self._outcome_places),
            "critic_version": view.version,
        }
        manifest = self._store.publish(
            {} if self.trainer is None else self.trainer.policy.trainable(),
            view.to_bytes(),
            parent=None if reference else self._head,
            base=self._base.digest if self._base is not None else "none",
            created_ts=self._clock.now_ms(),
            facts=facts,
            # The log may know of numbers that this store does not: a version numbered below those would not go live.
            after=self._policies.stages.newest,
        )
        self._record(manifest, "live")
        self._head = manifest.version
        if self.trainer is not None:
            self.trainer.policy.version = manifest.version
        self._touched.clear()
        if self.increments % TIDY_EVERY == 0:
            self._store.prune({manifest.version})
            if self.trainer is not None and self._state_file is not None and self.sentinel.healthy:
                self.trainer.save(self._state_file)
        return manifest

    def _record(self, manifest: Manifest, stage: Stage) -> None:
        record = PolicyRecord(
            version=manifest.version,
            content_hash=manifest.content_hash,
            parent=manifest.parent,
            uri=self._store.uri(manifest.version),
            stage=stage,
            ts=self._clock.now_ms(),
            evidence=manifest.facts,
        )
        self._log.append([Append("policies", manifest.version, to_json(record))])
        self._policies.refresh()


def _lock(data: Path) -> IO[bytes]:
    """Keep every other learner out of a data folder: two would learn the same outcomes twice. Raises ConfigError."""
    taken = "another learner is using it; stop that one (serve --all has one too): a log has one learner"
    return lock_alone(data / LOCK_FILE, f"data {data}", taken, "--data")


def _sample_facts(vitals: Vitals | None) -> dict[str, Scalar | None]:
    """What the sentinel knows of the newest samples, for a version's record; None where it does not know."""
    names = ("length", "duplicates", "rejected")
    told = {name: math.nan if vitals is None else float(getattr(vitals, name)) for name in names}
    return {f"samples_{name}": None if math.isnan(value) else value for name, value in told.items()}
