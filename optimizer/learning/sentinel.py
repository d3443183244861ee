"""The collapse sentinel: watches what the learner publishes and what people do, and says when learning has to stop.

The learner asks it before each version goes out. Where something is wrong, for `patience` increments in a row, the
learner halts until an operator resumes it, and takes back the versions since the last healthy one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from optimizer.maths.sentinel import Limits, Response, Vitals, ails, baits, conversions
from optimizer.types import Campaign, Outcome, Pool

UNKNOWN = float("nan")


@dataclass(frozen=True)
class SentinelConfig:
    """`patience`: increments in a row that must look ill. `samples`: texts that a figure about samples is made of.
    `before`, `late`: impressions of generated texts, the first ones and the newest, whose conversions are compared.
    `delays`: conversions that must have come before anything is said of them. `arrived`: the share of clicks and
    conversions that is waited for; what comes later than that counts nowhere, so that old and new are treated alike."""

    patience: int = 3
    samples: int = 512
    before: int = 1_000
    late: int = 1_000
    delays: int = 20
    arrived: float = 0.8
    kept: int = 20_000
    limits: Limits = field(default_factory=Limits)


class _Sampled(NamedTuple):
    """Sums over one pool's samples."""

    texts: int
    distinct: int
    rejected: int
    tokens: int


class _Seen(NamedTuple):
    """One impression of a generated text; `click_ms` after it and `conversion_ms` after the click, -1 where there is
    none."""

    campaign: str
    ts: int
    click_ms: int
    conversion_ms: int


class Sentinel:
    """Deterministic, and rebuilt from the log like everything else. Not thread-safe."""

    def __init__(self, config: SentinelConfig) -> None:
        self.config = config
        self._pools: deque[_Sampled] = deque()
        self._first = _Sampled(0, 0, 0, 0)
        self._ill = 0
        self._doubtful = False
        self._seen: dict[str, _Seen] = {}
        self._now_ms = 0
        self._from_ms = 0

    # -- what happens --------------------------------------------------------------------------------------------------

    def note_pool(self, pool: Pool) -> None:
        """A pool was written."""
        fresh = [text for text in pool.candidates if text.count > 0 and not text.kept]
        one = _Sampled(
            sum(text.count for text in fresh),
            len(fresh),
            sum(text.count for text in fresh if text.rejected is not None),
            sum(text.count * sum(map(len, text.token_ids)) for text in fresh),
        )
        if not one.texts:
            return
        if self._first.texts < self.config.samples:
            self._first = _summed([self._first, one])
        self._pools.append(one)
        total = sum(pool.texts for pool in self._pools)
        while total - self._pools[0].texts >= self.config.samples:
            total -= self._pools.popleft().texts

    def note_outcome(self, outcome: Outcome, campaign: Campaign) -> None:
        """A revision came. Campaigns that pay for conversions are learnt for what they pay and are left out."""
        decision = outcome.decision
        self._now_ms = max(self._now_ms, outcome.as_of)
        if decision.source != "pool" or campaign.reward.conversion or campaign.reward.value:
            return
        known = self._seen.get(outcome.decision_id)
        click_ms = -1 if outcome.click_ts is None else max(0, outcome.click_ts - outcome.impression_ts)
        conversion_ms = -1
        if outcome.click_ts is not None and outcome.components.conversion > 0:
            # The first revision that has it: when the conversion could be known.
            conversion_ms = max(0, outcome.as_of - outcome.click_ts)
            if known is not None and known.conversion_ms >= 0:
                conversion_ms = known.conversion_ms
        self._seen[outcome.decision_id] = _Seen(
            f"{decision.tenant}/{decision.campaign_id}", outcome.impression_ts, click_ms, conversion_ms
        )

    def forgive(self) -> None:
        """An operator has resumed: what was seen so far no longer counts against what comes."""
        self._ill, self._doubtful = 0, False
        self._from_ms = self._now_ms

    # -- what it makes of it -------------------------------------------------------------------------------------------

    def vitals(self, kl: float, kl_budget: float, kl_before: float, kl_step: float, entropy: float) -> Vitals:
        """The learner's figures together with those of the latest samples."""
        late, first = _summed(self._pools), self._first
        enough = late.texts >= self.config.samples // 2 and first.texts >= self.config.samples
        return Vitals(
            kl=kl,
            kl_budget=kl_budget,
            kl_before=kl_before,
            kl_step=kl_step,
            entropy=entropy,
            length=(late.tokens / late.texts) / (first.tokens / first.texts) if enough and first.tokens else UNKNOWN,
            duplicates=1.0 - late.distinct / late.texts if enough else UNKNOWN,
            rejected=late.rejected / late.texts if enough else UNKNOWN,
            rejected_first=first.rejected / first.texts if enough else UNKNOWN,
        )

    def judge(self, vitals: Vitals) -> str | None:
        """Why learning has to stop, a phrase; None where it may go on."""
        why = ails(vitals, self.config.limits)
        self._ill = self._ill + 1 if why is not None else 0
        if why is not None and self._ill >= self.config.patience:
            return why
        return self.bait()

    @property
    def healthy(self) -> bool:
        """Nothing looked wrong when it was asked last, not even a little."""
        return self._ill == 0 and not self._doubtful

    def bait(self) -> str | None:
        """Clicks up with conversions down, where that can be told."""
        config = self.config
        self._forget()
        seen = sorted((one for one in self._seen.values() if one.ts >= self._from_ms), key=lambda one: one.ts)
        converted = np.array([one.conversion_ms for one in seen if one.conversion_ms >= 0])
        if len(converted) < config.delays:
            return None
        clicked = np.array([one.click_ms for one in seen if one.click_ms >= 0])
        click_by, convert_by = np.quantile(clicked, config.arrived), np.quantile(converted, config.arrived)
        ripe = [one for one in seen if one.ts <= self._now_ms - click_by - convert_by]
        if len(ripe) < config.before + config.late:
            return None
        names = {name: at for at, name in enumerate(dict.fromkeys(one.campaign for one in ripe))}
        before, late = (
            _response(some, names, click_by, convert_by) for some in (ripe[: config.before], ripe[-config.late :])
        )
        found = conversions(before, late)
        self._doubtful = found is not None and found.of_shown < 1.0 and found.z < -1.0
        return None if found is None else baits(found)

    def _forget(self) -> None:
        """Let go what is neither among the first nor among the newest."""
        if len(self._seen) <= self.config.kept:
            return
        order = sorted(self._seen, key=lambda name: self._seen[name].ts)
        first = [name for name in order if self._seen[name].ts >= self._from_ms][: self.config.before]
        keep = {*first, *order[-self.config.kept // 2 :]}
        self._seen = {name: one for name, one in self._seen.items() if name in keep}


def _summed(some: Sequence[_Sampled] | deque[_Sampled]) -> _Sampled:
    return _Sampled(*(sum(column) for column in zip(*some, strict=True))) if some else _Sampled(0, 0, 0, 0)


def _response(some: Sequence[_Seen], names: dict[str, int], click_by: float, convert_by: float) -> Response:
    sums = np.zeros((3, len(names)))
    for one in some:
        at = names[one.campaign]
        sums[0, at] += 1
        if 0 <= one.click_ms <= click_by:
            sums[1, at] += 1
            sums[2, at] += 0 <= one.conversion_ms <= convert_by
    return Response(*sums)
