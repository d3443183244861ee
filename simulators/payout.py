"""What a reaction is worth to its campaign, told at once: the advantage that every peer of a comparison gets.

Adloop has to wait for events and their windows; a peer learns at the moment of showing what the impression will have
earned when everything is known, late conversions included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from optimizer.maths.attribution import CLOCK_SKEW_MS, attribute, retention_ms
from optimizer.types import Campaign, Decision, EventType
from simulators.loop import Reaction, event_id


class _Happened(NamedTuple):
    """An event of one impression at ts 0, as attribution reads it."""

    event_id: str
    type: EventType
    ts: int
    value: float | None
    retracts: str | None


_IMPRESSION = _Happened(event_id(1), "impression", 0, None, None)


class Payout:
    """Reward = the campaign's weights x what counts under its attribution rules, as the joiner would find it."""

    def __init__(self, campaigns: Mapping[str, Campaign]) -> None:
        self._decisions = {name: _decision(campaign) for name, campaign in campaigns.items()}
        self._sizes = dict.fromkeys(campaigns, 0.0)
        self._squares = dict.fromkeys(campaigns, 0.0)

    def of(self, campaign_id: str, reactions: Sequence[Reaction]) -> float:
        """The whole reward of one impression; `reactions` are (type, ms after the impression, value). One before the
        clock skew or after the decision's retention is not let in."""
        if not reactions:
            return 0.0
        decision = self._decisions[campaign_id]
        last = retention_ms(decision.attribution)
        events = [_IMPRESSION]
        for number, (kind, after_ms, value) in enumerate(reactions, start=2):
            if -CLOCK_SKEW_MS <= after_ms <= last:
                events.append(_Happened(event_id(number), kind, after_ms, value, None))  # type: ignore[arg-type]
        attributed = attribute(decision, events)
        return 0.0 if attributed is None else attributed.reward

    def scaled(self, campaign_id: str, reactions: Sequence[Reaction]) -> float:
        """The same in units of the campaign's rewards so far, this one included: sum r^2 / sum |r|, which is 1 where
        rewards are 0 or 1. For learners that take costs of about that size for granted, or share weights between
        campaigns that pay in different units."""
        reward = self.of(campaign_id, reactions)
        if reward == 0.0:
            return 0.0
        self._sizes[campaign_id] += abs(reward)
        self._squares[campaign_id] += reward * reward
        return reward * self._sizes[campaign_id] / self._squares[campaign_id]


def _decision(campaign: Campaign) -> Decision:
    return Decision(
        decision_id="d",
        request_id="r",
        position=0,
        tenant=campaign.tenant,
        campaign_id=campaign.campaign_id,
        context={},
        pool_id="",
        candidate=0,
        variant_id="",
        propensity=1.0,
        probabilities=[1.0],
        source="pool",
        policy_version="",
        critic_version="",
        ts=0,
        reward=campaign.reward,
        attribution=campaign.attribution,
    )
