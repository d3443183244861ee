"""Attribution: which events count for a decision, and what they are worth (docs/api.md, Attribution).

Pure: an outcome is a function of one decision and the set of its events, whatever order they came in. The joiner's
state machine (optimizer/stream) decides what is let in and when an outcome closes; the windows are worked out here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Final, Protocol

from msgspec import Struct

from optimizer.types import Attribution, Components, Decision, EventType, RewardWeights

CLOCK_SKEW_MS: Final = 5_000  # how far the clocks of two senders may disagree
EXTRA_RETENTION_MS: Final = 7 * 24 * 3_600_000  # how long after its windows a decision can still be revised, by default
GRACE_MS: Final = 3_600_000  # how long after its windows an outcome closes, by default
_SHOWN: Final = Components()  # and nothing more


class Attributable(Protocol):
    """What attribution needs of an event; `types.Event` is one."""

    @property
    def event_id(self) -> str: ...
    @property
    def type(self) -> EventType: ...
    @property
    def ts(self) -> int: ...
    @property
    def value(self) -> float | None: ...
    @property
    def retracts(self) -> str | None: ...


class Attributed(Struct, frozen=True, gc=False):
    """What counts, and what it is worth.

    `click_ts` is None without a click; a click within the clock skew before the impression counts as at the impression.
    `events` are the ids that count, by ts, then event_id.
    """

    impression_ts: int
    click_ts: int | None
    components: Components
    reward: float
    events: list[str]


def retention_ms(rule: Attribution, extra_ms: int = EXTRA_RETENTION_MS) -> int:
    """How long after its decision's `ts` an event may lie and state is kept: the windows and `extra_ms`."""
    return rule.window_ms() + extra_ms


def expiry_s(decision_ts: int, rule: Attribution, extra_ms: int = EXTRA_RETENTION_MS) -> int:
    """A token's `exp`: the decision's ts + its retention, in seconds, rounded up."""
    return -(-(decision_ts + retention_ms(rule, extra_ms)) // 1000)


def attribute(decision: Decision, events: Iterable[Attributable]) -> Attributed | None:
    """The outcome of a decision under the events let in (each event_id once); None where it was never shown."""
    rule = decision.attribution
    standing = _standing(list(events))
    if len(standing) == 1 and standing[0].type == "impression":
        # What most decisions come to. The rest of this function says the same of it, in three times the time.
        only = standing[0]
        return Attributed(only.ts, None, _SHOWN, reward(decision.reward, _SHOWN), [only.event_id])
    impression: Attributable | None = None
    clicks: list[Attributable] = []
    conversions: list[Attributable] = []
    ratings: list[Attributable] = []
    for event in standing:
        match event.type:
            case "impression":
                impression = event if impression is None else impression
            case "click":
                clicks.append(event)
            case "conversion":
                conversions.append(event)
            case "rating":
                ratings.append(event)
            case "retraction":
                pass
    if impression is None:
        return None
    shown = impression.ts
    counting = [impression]
    clicked: int | None = None
    for click in clicks:
        if shown - CLOCK_SKEW_MS <= click.ts <= shown + rule.click_window_ms:
            clicked = max(click.ts, shown)
            counting.append(click)
            break
    if conversions:
        conversions = _counted([event for event in conversions if _converts(event.ts, shown, clicked, rule)], rule)
    components = Components(
        0 if clicked is None else 1,
        len(conversions),
        _total(conversions),
        _total(ratings) / len(ratings) if ratings else None,
    )
    counting += conversions
    counting += ratings
    if len(counting) > 1:
        counting.sort(key=_by_ts)
    return Attributed(shown, clicked, components, reward(decision.reward, components), [e.event_id for e in counting])


def reward(weights: RewardWeights, components: Components) -> float:
    """The sum of weight x component, a null rating being 0; kept finite where a weight is absurdly large."""
    click, conversion = weights.click * components.click, weights.conversion * components.conversion
    value, rating = weights.value * components.value, weights.rating * (components.rating or 0.0)
    # Not `sum`, which adds floats in another way from Python 3.12 on: the same log gives the same bits everywhere.
    total = click + conversion + value + rating
    if math.isfinite(total):
        return total
    return _finite(_finite(click) + _finite(conversion) + _finite(value) + _finite(rating))


def _standing(events: list[Attributable]) -> list[Attributable]:
    """The events that no retraction takes out, by ts, then event_id. Impressions and retractions can't be taken out."""
    if len(events) < 2:
        return events
    retracted = {event.retracts for event in events if event.type == "retraction"}
    if retracted:
        events = [event for event in events if event.type == "impression" or event.event_id not in retracted]
    events.sort(key=_by_ts)
    return events


def _converts(ts: int, shown: int, clicked: int | None, rule: Attribution) -> bool:
    after_click = clicked is not None and clicked - CLOCK_SKEW_MS <= ts <= clicked + rule.conversion_window_ms
    after_view = rule.view_through_ms > 0 and shown - CLOCK_SKEW_MS <= ts <= shown + rule.view_through_ms
    return after_click or after_view


def _counted(conversions: list[Attributable], rule: Attribution) -> list[Attributable]:
    match rule.count:
        case "first":
            return conversions[:1]
        case "last":
            return conversions[-1:]
        case "all":
            return conversions


def _total(events: list[Attributable]) -> float:
    """The sum of the values in the order given: floating-point addition is not associative."""
    total = 0.0
    for event in events:
        total += event.value or 0.0
    return total


def _by_ts(event: Attributable) -> tuple[int, str]:
    return event.ts, event.event_id


def _finite(x: float) -> float:
    return min(max(x, -sys.float_info.max), sys.float_info.max)
