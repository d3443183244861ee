"""What a peer is told at once equals what the joiner would find out later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.stream.log import whole
from simulators.loop import START_MS, Loop, Reaction
from simulators.payout import Payout
from simulators.places import Places

DAY_MS = 86_400_000


def boots(**body: Any) -> dict[str, dict[str, Any]]:
    return {"boots": {"product": {"name": "Boots"}, "controls": [{"headline": "Boots"}], **body}}


def payout(**body: Any) -> Payout:
    return Payout(Places(boots(**body)).campaigns)


def test_a_click_pays_one_unless_the_campaign_says_otherwise() -> None:
    assert payout().of("boots", [("click", 10, 0.0), ("conversion", 20, 9.0)]) == 1.0
    assert payout().of("boots", []) == 0.0


def test_windows_and_weights_are_the_campaigns() -> None:
    told = payout(
        reward={"click": 0.5, "conversion": 2.0, "value": 0.1, "rating": 4.0},
        attribution={"click_window_ms": 100, "conversion_window_ms": 1000, "count": "all"},
    )
    late = [("click", 101, 0.0), ("conversion", 150, 10.0)]
    assert told.of("boots", late) == 0.0
    everything = [("conversion", 900, 10.0), ("click", 50, 0.0), ("conversion", 1051, 7.0), ("rating", 7 * DAY_MS, 0.5)]
    assert told.of("boots", everything) == pytest.approx(0.5 + 2.0 + 0.1 * 10.0 + 4.0 * 0.5)


def test_scaled_rewards_are_about_one_whatever_the_campaign_pays_in() -> None:
    assert payout().scaled("boots", [("click", 1, 0.0)]) == 1.0
    told = payout(reward={"click": 0.0, "value": 1.0})
    paid = [told.scaled("boots", [("click", 1, 0.0), ("conversion", 2, value)]) for value in (50.0, 150.0)]
    # After 50: 50 / 50; after 150: 150 x 200 / (2500 + 22500).
    assert paid == pytest.approx([1.0, 1.2])
    assert told.scaled("boots", []) == 0.0


MINUTES = {"click_window_ms": 60_000, "conversion_window_ms": 60_000}
AT_ONCE: list[Reaction] = [("conversion", 500, float(value)) for value in range(1, 12)]


@pytest.mark.parametrize(
    ("count", "reactions", "expected"),
    [
        # Eleven conversions of one millisecond: the first and the last are those that were told first and last, though
        # their numbers have one digit and two.
        ("first", [("click", 400, 0.0), *AT_ONCE], 1.0),
        ("last", [("click", 400, 0.0), *AT_ONCE], 11.0),
        ("first", [("click", 0, 0.0), ("conversion", 0, 7.0)], 7.0),
        # A rating counts whenever it comes, as long as it is let in: 5 s before the impression, 7 days and both windows
        # after it.
        ("all", [("rating", -5_000, 0.5)], 0.5),
        ("all", [("rating", -5_001, 0.5)], 0.0),
        ("all", [("rating", 7 * DAY_MS + 120_000, 0.5)], 0.5),
        ("all", [("rating", 7 * DAY_MS + 120_001, 0.5), ("rating", 10, 0.25)], 0.25),
    ],
)
def test_what_is_told_at_once_is_what_the_joiner_finds(
    tmp_path: Path, count: str, reactions: list[Reaction], expected: float
) -> None:
    bodies = boots(reward={"click": 0.0, "value": 1.0, "rating": 1.0}, attribution=MINUTES | {"count": count})
    assert Payout(Places(bodies).campaigns).of("boots", reactions) == expected
    # Not at a whole second: a token that expires in the very millisecond in which an event comes is refused.
    with Loop(bodies, tmp_path, 1, start_ms=START_MS + 1) as loop:
        # Five others first, so that the conversions' numbers go from 8 to 18.
        for happens in [*[[]] * 5, reactions]:
            shown = loop.serve("boots", {})
            loop.feed(shown, happens)
        loop.advance(START_MS + 30 * DAY_MS)
        loop.join()
        records = loop.log.reader(whole(loop.log, "outcomes")).poll()
    outcomes = [json.loads(record.value or b"") for record in records]
    own = [outcome for outcome in outcomes if outcome["decision_id"] == shown.variant.decision_id]
    assert own[-1]["reward"] == expected
