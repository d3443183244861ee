"""The learner's shelf of pools: which texts were on offer, and which decisions drew from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from optimizer.learning.archive import Archive
from optimizer.stream.guarded import GuardedDecode
from optimizer.stream.log import EventLog, whole
from optimizer.types import Campaign, Decision, Outcome, Pool

POLL_RECORDS = 200
ROUNDING = 1e-9  # by which a probability may be over 1


class PoolShelf:
    """The newest `capacity` pools by id, and the texts of those before them by variant. Not thread-safe."""

    def __init__(
        self,
        log: EventLog,
        capacity: int = 2_000,
        texts: int = 200_000,
        noted: Callable[[Pool], None] = lambda _pool: None,
        guarded: GuardedDecode | None = None,
    ) -> None:
        """`noted` is told of each pool, in the log's order."""
        self.archive = Archive()
        self._noted = noted
        self._guarded = guarded or GuardedDecode()
        self._reader = log.reader(whole(log, "candidates"))
        self._decoder = msgspec.json.Decoder(Pool)
        self._pools: OrderedDict[str, Pool] = OrderedDict()
        self._decisions: dict[str, dict[str, None]] = {}
        self._texts: OrderedDict[tuple[str, str], dict[str, str]] = OrderedDict()
        self._capacity, self._texts_kept = capacity, texts

    def refresh(self) -> int:
        """Read the topic to its end; returns how many pools came."""
        count = 0
        while records := self._reader.poll(POLL_RECORDS):
            for record in records:
                pool = None if record.value is None else self._guarded.read(record, record.value, self._decoder.decode)
                if pool is not None:
                    self._take(pool)
                    count += 1
        return count

    def close(self) -> None:
        """Let go of the log; what is on the shelf stays."""
        self._reader.close()

    def _take(self, pool: Pool) -> None:
        self._pools[pool.pool_id] = pool
        self.archive.add(pool)
        self._noted(pool)
        for candidate in pool.candidates:
            self._texts[(pool.tenant, candidate.variant_id)] = candidate.slots
        while len(self._pools) > self._capacity:
            old, _ = self._pools.popitem(last=False)
            self._decisions.pop(old, None)
        while len(self._texts) > self._texts_kept:
            self._texts.popitem(last=False)

    def slots(self, campaign: Campaign, outcome: Outcome) -> Mapping[str, str] | None:
        """The text that a decision showed; None where it is no longer held."""
        decision = outcome.decision
        if decision.source == "control":
            if 0 <= decision.candidate < len(campaign.controls):
                return campaign.controls[decision.candidate]
            return None
        return self._texts.get((decision.tenant, decision.variant_id))

    def offers(self, decision: Decision) -> bool:
        """Whether the decision says with which probability it drew, and from a place that its pool has. The joiner lets
        in others too: what was shown can be joined without knowing that."""
        at, probabilities = decision.candidate, decision.probabilities
        pool = self._pools.get(decision.pool_id)
        if at < 0 or (probabilities and at >= len(probabilities)) or (pool is not None and at >= len(pool.candidates)):
            return False
        return 0.0 < (probabilities[at] if probabilities else decision.propensity) <= 1.0 + ROUNDING

    def note(self, pool_id: str, decision_id: str) -> None:
        """A decision drew from this pool."""
        if pool_id in self._pools:
            self._decisions.setdefault(pool_id, {})[decision_id] = None

    def decisions(self, pool_id: str) -> list[str]:
        return list(self._decisions.get(pool_id, ()))

    def for_training(self, touched: Iterable[str], versions: set[str], limit: int) -> list[Pool]:
        """At most `limit` pools of these policy versions: the newest of those touched, then the newest of the others.

        Newest first, not last touched first: a late conversion touches a pool that the policy has long moved away from,
        and samples of such pools hardly count."""
        places = {name: at for at, name in enumerate(self._pools)}
        known = sorted((name for name in touched if name in places), key=places.__getitem__, reverse=True)
        wanted = [self._pools[name] for name in known]
        wanted += list(reversed(self._pools.values()))[: 4 * limit]
        fresh = {
            pool.pool_id: pool
            for pool in wanted
            if pool.policy_version in versions and any(c.log_probs for c in pool.candidates)
        }
        return list(fresh.values())[:limit]
