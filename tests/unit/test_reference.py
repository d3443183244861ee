"""Which clicks a campaign's texts are held against, and which say how things are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from optimizer.learning import reference
from optimizer.learning.buffer import Entry, ReplayBuffer
from optimizer.learning.reference import ReferenceClicks
from optimizer.types import RewardWeights
from tests.learning_rig import outcome

CLICKS_ALONE = RewardWeights(click=1.0)


def entry(click: bool = True, sold: bool = False, control: bool = False, reward: RewardWeights = CLICKS_ALONE) -> Entry:
    buffer = ReplayBuffer(2)
    source = "control" if control else "pool"
    shown = outcome("d", click=click, conversions=int(sold), closed=True, source=source, reward=reward)
    buffer.add(buffer.new_row("r"), shown)
    return buffer.entries["d"]


def all_known(clicks: list[Entry]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.ones(len(clicks), bool), np.ones(len(clicks))


def test_a_campaign_without_conversions_has_no_reference() -> None:
    clicks = ReferenceClicks()
    for at in range(20):
        clicks.note("a", f"d{at}", entry())
    assert clicks.rates(all_known) == {}


def test_who_pays_for_more_than_clicks_has_no_reference() -> None:
    clicks = ReferenceClicks()
    for at in range(20):
        clicks.note("a", f"d{at}", entry(sold=True, reward=RewardWeights(click=1.0, conversion=1.0)))
    assert clicks.rates(all_known) == {}


def test_the_reference_is_of_the_first_clicks_and_the_offset_of_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "FIRST_CLICKS", 40)
    monkeypatch.setattr(reference, "RECENT_CLICKS", 40)
    clicks = ReferenceClicks()
    for at in range(200):
        clicks.note("a", f"d{at}", entry(sold=at < 40 and at % 2 == 0))
    (found,) = clicks.rates(all_known).values()
    assert 0.35 < found.low < 0.5
    assert expit(found.offset) < 0.05


def test_only_the_first_clicks_of_all_campaigns_are_a_reference_but_controls_always_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "FIRST_CLICKS", 10)
    clicks = ReferenceClicks()
    for at in range(10):
        clicks.note("old", f"o{at}", entry(sold=at % 2 == 0))
    for at in range(30):
        clicks.note("new", f"n{at}", entry(sold=True))
    assert set(clicks.rates(all_known)) == {"old"}
    clicks.note("new", "c", entry(sold=True, control=True))
    assert set(clicks.rates(all_known)) == {"old", "new"}


def test_a_click_that_is_taken_back_no_longer_counts() -> None:
    clicks = ReferenceClicks()
    clicks.note("a", "d1", entry(sold=True))
    assert set(clicks.rates(all_known)) == {"a"}
    clicks.note("a", "d1", entry(click=False))
    assert clicks.rates(all_known) == {}


def test_clicks_still_open_count_by_the_share_of_conversions_that_have_come() -> None:
    def tenth(clicks: list[Entry]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        return np.zeros(len(clicks), bool), np.full(len(clicks), 0.1)

    clicks = ReferenceClicks()
    for at in range(30):
        clicks.note("a", f"d{at}", entry(sold=at < 3))
    assert clicks.rates(tenth)["a"].low > 2 * clicks.rates(all_known)["a"].low
