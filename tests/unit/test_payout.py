"""What a peer is told at once equals what the joiner would find out later."""

from __future__ import annotations

from typing import Any

import pytest

from simulators.payout import Payout
from simulators.places import Places


def payout(**body: Any) -> Payout:
    campaign = {"product": {"name": "Boots"}, "controls": [{"headline": "Boots"}], **body}
    return Payout(Places({"boots": campaign}).campaigns)


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
    everything = [("conversion", 900, 10.0), ("click", 50, 0.0), ("conversion", 1051, 7.0), ("rating", 10**9, 0.5)]
    assert told.of("boots", everything) == pytest.approx(0.5 + 2.0 + 0.1 * 10.0 + 4.0 * 0.5)


def test_scaled_rewards_are_about_one_whatever_the_campaign_pays_in() -> None:
    assert payout().scaled("boots", [("click", 1, 0.0)]) == 1.0
    told = payout(reward={"click": 0.0, "value": 1.0})
    paid = [told.scaled("boots", [("click", 1, 0.0), ("conversion", 2, value)]) for value in (50.0, 150.0)]
    # After 50: 50 / 50; after 150: 150 x 200 / (2500 + 22500).
    assert paid == pytest.approx([1.0, 1.2])
    assert told.scaled("boots", []) == 0.0
