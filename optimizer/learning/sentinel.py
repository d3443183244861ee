"""The collapse sentinel: watches what the learner publishes and what people do, and says when learning has to stop.

The learner asks it before each version goes out. What looks wrong `patience` times in a row halts learning until an
operator resumes it; the versions since it began are taken back."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.maths.sentinel import Limits, Response, Vitals, ails, baits, conversions
from optimizer.types import Outcome, Pool

UNKNOWN = float("nan")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class SentinelConfig:
    """`patience`: times in a row that something must look wrong. `samples`: newest texts that figures about samples are
    made of, `first_samples`: a campaign's first ones, which they are compared with. `conversions`: so many of each
    campaign's first impressions as brought that many conversions in all campaigns together, or the first half while
    these bring fewer, are what its newest, as many, are compared with; `least_conversions`: before there are so many
    nothing is compared. `arrived`: the share of clicks and conversions that is waited for; what
    comes later counts nowhere, so that old and new are treated alike. `kept`: first and newest impressions held a
    campaign, each; where the first ones bring fewer conversions than that, nothing is said of it."""

    patience: int = 3
    samples: int = 512
    first_samples: int = 64
    conversions: int = 30
    least_conversions: int = 10
    arrived: float = 0.8
    kept: int = 10_000
    limits: Limits = field(default_factory=Limits)


class Halt(NamedTuple):
    """Why learning has to stop, a phrase; and since when it has been wrong (Unix ms)."""

    why: str
    since_ms: int


class _Sampled(NamedTuple):
    """Sums over samples of one campaign as it stood (`key`)."""

    key: tuple[str, str]
    texts: int
    distinct: int
    rejected: int
    tokens: int


class _Seen(NamedTuple):
    """One impression of a generated text to a person of `segment`; `click_ms` after it and `conversion_ms` after the
    click, -1 where there is none."""

    ts: int
    segment: str
    click_ms: int
    conversion_ms: int


class _Watched:
    """A campaign's impressions by decision, in the order in which they came: its first ones and its newest."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._first: dict[str, _Seen] = {}
        self._newest: OrderedDict[str, _Seen] = OrderedDict()

    def get(self, name: str) -> _Seen | None:
        return self._first.get(name) or self._newest.get(name)

    def put(self, name: str, one: _Seen) -> None:
        if name in self._first or (name not in self._newest and len(self._first) < self._kept):
            self._first[name] = one
            return
        self._newest[name] = one
        if len(self._newest) > self._kept:
            self._newest.popitem(last=False)

    def since(self, from_ms: int) -> list[_Seen]:
        return [one for some in (self._first, self._newest) for one in some.values() if one.ts >= from_ms]


class Sentinel:
    """Rebuilt from the log's pools and outcomes, but for how often in a row something has looked wrong. Not
    thread-safe."""

    def __init__(self, config: SentinelConfig) -> None:
        self.config = config
        self._late: deque[_Sampled] = deque()
        self._first: dict[tuple[str, str], _Sampled] = {}
        self._ill = 0
        self._since_ms = 0
        self._seen: dict[str, _Watched] = {}
        self._now_ms = 0
        self._from_ms = 0

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
        """A revision came. Decisions that are paid for conversions are learnt for what they pay and are left out."""
        decision = outcome.decision
        self._now_ms = max(self._now_ms, outcome.as_of)
        if decision.source == "control" or decision.reward.conversion or decision.reward.value:
            return
        place = f"{decision.tenant}/{decision.campaign_id}"
        seen = self._seen.get(place)
        if seen is None:
            seen = self._seen[place] = _Watched(self.config.kept)
        known = seen.get(outcome.decision_id)
        if known is None and outcome.revision > 1:
            # Let go before; when its conversion came is no longer known.
            return
        segment = str(decision.context.get("segment", ""))
        click_ms = -1 if outcome.click_ts is None else max(0, outcome.click_ts - outcome.impression_ts)
        conversion_ms = -1
        if outcome.click_ts is not None and outcome.components.conversion > 0:
            # The first revision that has it: when the conversion could be known.
            conversion_ms = max(0, outcome.as_of - outcome.click_ts)
            if known is not None and known.conversion_ms >= 0:
                conversion_ms = known.conversion_ms
        seen.put(outcome.decision_id, _Seen(outcome.impression_ts, segment, click_ms, conversion_ms))

    def forgive(self, from_ms: int | None = None) -> None:
        """An operator has decided, at `from_ms` (now): what was before no longer counts."""
        self._ill = 0
        self._late.clear()
        self._from_ms = self._now_ms if from_ms is None else max(self._from_ms, from_ms)

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
        why = None if vitals is None else ails(vitals, self.config.limits)
        since_ms = now_ms
        if why is None:
            bait = self.bait()
            if bait is not None:
                why, since_ms = bait
        if why is None:
            self._ill = 0
            return None
        if not self._ill:
            self._since_ms = since_ms
        self._ill += 1
        return Halt(why, self._since_ms) if self._ill >= self.config.patience else None

    @property
    def healthy(self) -> bool:
        """Nothing looked wrong when it was asked last."""
        return self._ill == 0

    def bait(self) -> Halt | None:
        """Clicks up with conversions down, where that can be told; since the oldest impression that says so.

        Each campaign's first impressions are compared with its newest, as many, people of one segment with each
        other."""
        seen = [some for watched in self._seen.values() if (some := watched.since(self._from_ms))]
        converted = np.array([one.conversion_ms for some in seen for one in some if one.conversion_ms >= 0])
        if len(converted) < self.config.least_conversions:
            return None
        clicked = np.array([one.click_ms for some in seen for one in some if one.click_ms >= 0])
        click_by, convert_by = np.quantile(clicked, self.config.arrived), np.quantile(converted, self.config.arrived)
        until = self._now_ms - click_by - convert_by
        ripe = ([one for one in some if one.ts <= until] for some in seen)
        counts = [_Counts.of(some, click_by, convert_by) for some in ripe]
        size = _size([one.converted[: one.most] for one in counts], self.config.conversions)
        before, late, since = [], [], []
        for one in counts:
            own = min(size, one.most)
            if own > 0:
                before += one.by_segment(slice(None, own))
                late += one.by_segment(slice(-own, None))
                since.append(one.impressions[-own].ts)
        if not before:
            return None
        found = conversions(Response(*np.array(before).T), Response(*np.array(late).T))
        why = None if found is None else baits(found)
        return None if why is None else Halt(why, min(since))


class _Counts(NamedTuple):
    """A campaign's impressions that are old enough, in order; float64[N] each: whether clicked and whether converted
    in time. `codes`: int64[N] each one's segment out of `segments`."""

    impressions: list[_Seen]
    clicked: Array
    converted: Array
    codes: NDArray[np.int64]
    segments: int

    @classmethod
    def of(cls, impressions: list[_Seen], click_by: float, convert_by: float) -> _Counts:
        clicked = np.array([0 <= one.click_ms <= click_by for one in impressions], float)
        converted = clicked * np.array([0 <= one.conversion_ms <= convert_by for one in impressions], float)
        names = {name: at for at, name in enumerate(dict.fromkeys(one.segment for one in impressions))}
        codes = np.array([names[one.segment] for one in impressions], dtype=np.int64)
        return cls(impressions, clicked, converted, codes, len(names))

    @property
    def most(self) -> int:
        """First impressions that may be compared with as many newest ones."""
        return len(self.impressions) // 2

    def by_segment(self, part: slice) -> list[tuple[float, float, float]]:
        """Shown, clicked and converted of each segment."""
        codes = self.codes[part]
        shown = np.bincount(codes, minlength=self.segments)
        clicked = np.bincount(codes, self.clicked[part], self.segments)
        converted = np.bincount(codes, self.converted[part], self.segments)
        return list(zip(shown.tolist(), clicked.tolist(), converted.tolist(), strict=True))


def _size(converted: list[Array], wanted: int) -> int:
    """How many of each campaign's first impressions (of all that it has, where these are fewer) are compared: one less
    than bring `wanted` conversions together."""
    total = np.zeros(max(map(len, converted), default=0))
    for some in converted:
        total[: len(some)] += some
    # The impressions that reach it are there because one of them converted.
    return int(np.searchsorted(np.cumsum(total), wanted))


def _summed(some: Iterable[_Sampled]) -> _Sampled:
    own = list(some)
    return _Sampled(own[0].key, *(sum(column) for column in zip(*(one[1:] for one in own), strict=True)))
