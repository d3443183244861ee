"""The collapse sentinel: watches what the learner publishes and what people do, and says when learning has to stop.

The learner asks it before each version goes out. What looks wrong `patience` times in a row halts learning until an
operator resumes it; the versions since it began are taken back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from optimizer.learning.bait import BaitConfig, BaitWatch
from optimizer.maths.sentinel import Ailment, Limits, Vitals, ails
from optimizer.ranges import check_ranges, whole
from optimizer.types import Outcome, Pool

UNKNOWN = float("nan")


@dataclass(frozen=True)
class SentinelConfig:
    """`patience`: times in a row that something must look wrong. `samples`: newest texts that figures about samples are
    made of, `first_samples`: a campaign's first ones, which they are compared with. `bait`: options of the watch for
    bait. `limits`: what is no longer healthy. Raises ConfigError for what is out of its range."""

    patience: int = 3
    samples: int = 512
    first_samples: int = 64
    bait: BaitConfig = field(default_factory=BaitConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_ranges(self, patience=whole(1), samples=whole(2), first_samples=whole(1))


class Halt(NamedTuple):
    """Why learning has to stop; and since when it has been wrong (Unix ms)."""

    ailment: Ailment
    since_ms: int


class _Sampled(NamedTuple):
    """Sums over samples of one campaign as it stood (`key`)."""

    key: tuple[str, str]
    texts: int
    distinct: int
    rejected: int
    tokens: int


class Sentinel:
    """Rebuilt from the log's pools and outcomes, but for how often in a row something has looked wrong. Not
    thread-safe."""

    def __init__(self, config: SentinelConfig) -> None:
        self.config = config
        self._late: deque[_Sampled] = deque()
        self._first: dict[tuple[str, str], _Sampled] = {}
        self._ill = 0
        self._since_ms = 0
        self.bait = BaitWatch(config.bait)

    # -- what happens --------------------------------------------------------------------------------------------------

    def note_pool(self, pool: Pool) -> None:
        """A pool was written."""
        fresh = [text for text in pool.candidates if text.count > 0 and not text.kept]
        key = (f"{pool.tenant}/{pool.campaign_id}", pool.campaign_hash)
        one = _Sampled(
            key,
            sum(text.count for text in fresh),
            len(fresh),
            sum(text.count for text in fresh if text.rejected is not None),
            sum(text.count * sum(map(len, text.token_ids)) for text in fresh),
        )
        if not one.texts:
            return
        first = self._first.get(key)
        if first is None or first.texts < self.config.first_samples:
            self._first[key] = _summed([one] if first is None else [first, one])
            return
        self._late.append(one)
        total = sum(pool.texts for pool in self._late)
        while total - self._late[0].texts >= self.config.samples:
            total -= self._late.popleft().texts

    def note_outcome(self, outcome: Outcome) -> None:
        """A revision came."""
        self.bait.note(outcome)

    def forgive(self, from_ms: int | None = None) -> None:
        """An operator has decided, at `from_ms` (now): what was before no longer counts."""
        self._ill = 0
        self._late.clear()
        self.bait.begin_at(from_ms)

    # -- what it makes of it -------------------------------------------------------------------------------------------

    def vitals(self, kl: float, kl_budget: float, kl_before: float, kl_step: float, entropy: float) -> Vitals:
        """The learner's figures together with those of the newest samples, each beside its campaign's first ones."""
        texts = sum(one.texts for one in self._late)
        firsts = [(one, self._first[one.key]) for one in self._late]
        tokens = sum(one.texts * first.tokens / first.texts for one, first in firsts)
        rejected = sum(one.texts * first.rejected / first.texts for one, first in firsts)
        enough = texts >= self.config.samples // 2
        return Vitals(
            kl=kl,
            kl_budget=kl_budget,
            kl_before=kl_before,
            kl_step=kl_step,
            entropy=entropy,
            length=sum(one.tokens for one in self._late) / tokens if enough and tokens else UNKNOWN,
            duplicates=1.0 - sum(one.distinct for one in self._late) / texts if enough else UNKNOWN,
            rejected=sum(one.rejected for one in self._late) / texts if enough else UNKNOWN,
            rejected_first=rejected / texts if enough else UNKNOWN,
        )

    def judge(self, vitals: Vitals | None, now_ms: int) -> Halt | None:
        """Whether learning has to stop. `vitals` None: of the policy nothing new is known."""
        ailment = None if vitals is None else ails(vitals, self.config.limits)
        since_ms = now_ms
        if ailment is None:
            found = self.bait.look()
            if found is not None:
                ailment, since_ms = found
        if ailment is None:
            self._ill = 0
            return None
        if not self._ill:
            self._since_ms = since_ms
        self._ill += 1
        return Halt(ailment, self._since_ms) if self._ill >= self.config.patience else None

    @property
    def healthy(self) -> bool:
        """Nothing looked wrong when it was asked last."""
        return self._ill == 0


def _summed(some: Iterable[_Sampled]) -> _Sampled:
    own = list(some)
    return _Sampled(own[0].key, *(sum(column) for column in zip(*(one[1:] for one in own), strict=True)))
