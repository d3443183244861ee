"""The running totals behind `/v1/stats`: sums over the last revision of every outcome, kept in step with the log."""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass, field

from optimizer.ids import version_order
from optimizer.maths.intervals import Interval, Moments, lift
from optimizer.types import Components, Decision, Outcome
from serving.series import EARLIER

MAX_DECISIONS = 1_000_000
MAX_TOLD = 1_000  # versions of a campaign, one by one


@dataclass(slots=True)
class Tally:
    """Sums over outcomes. `squares` and `rewarded` are what an interval needs beside the figures that are shown."""

    impressions: int = 0
    clicks: int = 0
    conversions: int = 0
    reward: float = 0.0
    squares: float = 0.0
    rewarded: int = 0

    def add(self, seen: _Seen, sign: int) -> None:
        """Count one outcome in (`sign` 1) or take it back (-1)."""
        self.impressions += sign
        self.clicks += sign * seen.click
        self.conversions += sign * seen.conversion
        self.reward += sign * seen.reward
        self.squares += sign * seen.reward * seen.reward
        self.rewarded += sign * (seen.reward != 0.0)
        if not self.rewarded:
            # Nothing rewarded is left: drop what rounding left behind.
            self.reward = self.squares = 0.0

    def join(self, other: Tally) -> None:
        """Count in all that another tally has counted."""
        self.impressions += other.impressions
        self.clicks += other.clicks
        self.conversions += other.conversions
        self.reward += other.reward
        self.squares += other.squares
        self.rewarded += other.rewarded

    def moments(self) -> Moments:
        return Moments(self.impressions, self.reward, self.squares, self.rewarded)

    def figures(self) -> dict[str, int | float]:
        """The shape of docs/api.md, Requests."""
        return {
            "impressions": self.impressions,
            "clicks": self.clicks,
            "conversions": self.conversions,
            "reward": self.reward,
        }


@dataclass(slots=True)
class CampaignTally:
    """One campaign: what was served from controls, and the rest by policy version. Of more than `most` versions those
    with the lowest numbers are summed as EARLIER, as what is still told of them will be: no sum over the versions
    changes by it."""

    most: int = MAX_TOLD
    control: Tally = field(default_factory=Tally)
    policies: dict[str, Tally] = field(default_factory=dict)
    _summed_to: int = -2  # the highest number that is summed; a version without a number counts as -1

    def of(self, version: str) -> Tally:
        """The sums that a version's outcomes go to."""
        if version_order(version) <= self._summed_to:
            return self.policies[EARLIER]
        tally = self.policies.get(version)
        if tally is None:
            tally = self.policies[sys.intern(version)] = Tally()
            if len(self.policies) > self.most:
                self._sum_up()
                return self.of(version)
        return tally

    def _sum_up(self) -> None:
        """Sum the versions with the lowest numbers, a tenth more than there are too many."""
        told = sorted(self.policies.keys() - {EARLIER}, key=version_order)
        spare = len(told) - self.most + max(1, self.most // 10)
        self._summed_to = max(self._summed_to, version_order(told[spare - 1]))
        earlier = self.policies.setdefault(EARLIER, Tally())
        for version in told:
            if version_order(version) <= self._summed_to:
                earlier.join(self.policies.pop(version))

    def learned(self) -> Moments:
        """All policy versions together."""
        sides = [tally.moments() for tally in self.policies.values()]
        return Moments(
            sum(side.n for side in sides),
            sum(side.total for side in sides),
            sum(side.squares for side in sides),
            sum(side.rewarded for side in sides),
        )

    def lift(self) -> Interval | None:
        return lift(self.learned(), self.control.moments())


@dataclass(frozen=True, slots=True)
class _Seen:
    """What must be remembered of a decision's last revision to take it back when the next one comes."""

    revision: int
    click: int
    conversion: int
    value: float
    rating: float | None
    reward: float
    impression_ts: int
    click_ts: int | None


class Ledger:
    """Last revisions of outcomes, summed by (tenant, campaign). Not thread-safe: `Views` owns it.

    It remembers at most `max_decisions` decisions, the most recently changed ones: a revision of a decision that it has
    forgotten is counted in `forgotten` and changes no sum, since what to take back is not known any more.
    """

    def __init__(self, max_decisions: int = MAX_DECISIONS) -> None:
        self.campaigns: dict[tuple[str, str], CampaignTally] = {}
        self.forgotten = 0
        self._max = max_decisions
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._evicted = False

    def __len__(self) -> int:
        return len(self._seen)

    def apply(self, outcome: Outcome) -> tuple[Outcome | None] | None:
        """Count a revision in.

        Returns None for one that is old news (a repeat, or older than what is known) or cannot be counted any more,
        else a tuple of the previous revision (None where this is the decision's first).
        """
        before = self._seen.pop(outcome.decision_id, None)
        if before is not None and before.revision >= outcome.revision:
            self._seen[outcome.decision_id] = before
            return None
        if before is None and outcome.revision > 1 and self._evicted:
            self.forgotten += 1
            return None
        part, decision = outcome.components, outcome.decision
        seen = _Seen(
            outcome.revision,
            part.click,
            part.conversion,
            part.value,
            part.rating,
            outcome.reward,
            outcome.impression_ts,
            outcome.click_ts,
        )
        tally = self._tally(decision)
        if before is not None:
            tally.add(before, -1)
        tally.add(seen, 1)
        self._seen[outcome.decision_id] = seen
        if len(self._seen) > self._max:
            self._seen.popitem(last=False)
            self._evicted = True
        return (None if before is None else _previous(before, outcome),)

    def _tally(self, decision: Decision) -> Tally:
        campaign = self.campaigns.setdefault((decision.tenant, decision.campaign_id), CampaignTally())
        if decision.source == "control":
            return campaign.control
        return campaign.of(decision.policy_version)


def _previous(before: _Seen, now: Outcome) -> Outcome:
    """The prior revision as far as it is remembered: its figures, and the decision, which never changes."""
    return Outcome(
        decision_id=now.decision_id,
        revision=before.revision,
        state="open",
        as_of=now.as_of,
        impression_ts=before.impression_ts,
        click_ts=before.click_ts,
        components=Components(before.click, before.conversion, before.value, before.rating),
        reward=before.reward,
        events=[],
        decision=now.decision,
    )
