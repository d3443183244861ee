"""What a campaign's clicks convert at before its texts are told apart."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from optimizer.learning import reference
from optimizer.learning.buffer import Entry, ReplayBuffer
from optimizer.learning.reference import RecentClicks
from optimizer.types import RewardWeights
from tests.learning_rig import outcome

CLICKS_ALONE = RewardWeights(click=1.0)


def entry(click: bool = True, sold: bool = False, reward: RewardWeights = CLICKS_ALONE) -> Entry:
    buffer = ReplayBuffer(2)
    shown = outcome("d", click=click, conversions=int(sold), closed=True, reward=reward)
    buffer.add(buffer.new_row("r"), shown)
    return buffer.entries["d"]


def all_known(clicks: list[Entry]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.ones(len(clicks), bool), np.ones(len(clicks))


def no_lure(clicks: list[Entry]) -> NDArray[np.float64]:
    return np.zeros(len(clicks))


def test_a_campaign_without_conversions_has_no_reference() -> None:
    clicks = RecentClicks()
    for at in range(20):
        clicks.note("a", f"d{at}", None, entry())
    assert clicks.rates(all_known, no_lure).places == {}


def test_who_pays_for_more_than_clicks_has_no_reference() -> None:
    clicks = RecentClicks()
    for at in range(20):
        clicks.note("a", f"d{at}", None, entry(sold=True, reward=RewardWeights(click=1.0, conversion=1.0)))
    assert clicks.rates(all_known, no_lure).places == {}


def test_the_newest_clicks_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "RECENT_CLICKS", 40)
    clicks = RecentClicks()
    for at in range(200):
        clicks.note("a", f"d{at}", None, entry(sold=at < 160 or at % 2 == 0))
    assert 0.45 < expit(clicks.rates(all_known, no_lure).places["a"]) < 0.55


def test_an_old_click_that_converts_late_does_not_come_back_as_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "RECENT_CLICKS", 40)
    clicks = RecentClicks()
    for at in range(80):
        clicks.note("a", f"d{at}", None, entry(sold=at == 79))
    before = clicks.rates(all_known, no_lure)
    for at in range(40):
        clicks.note("a", f"d{at}", entry(), entry(sold=True))
    assert clicks.rates(all_known, no_lure) == before
    # One that is still held converts all the same.
    clicks.note("a", "d60", entry(), entry(sold=True))
    assert clicks.rates(all_known, no_lure).places["a"] > before.places["a"]


def test_a_click_that_is_taken_back_no_longer_counts() -> None:
    clicks = RecentClicks()
    clicks.note("a", "d1", None, entry(sold=True))
    assert set(clicks.rates(all_known, no_lure).places) == {"a"}
    clicks.note("a", "d1", entry(sold=True), entry(click=False))
    assert clicks.rates(all_known, no_lure).places == {}


def test_clicks_still_open_count_by_the_share_of_conversions_that_have_come() -> None:
    def tenth(clicks: list[Entry]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        return np.zeros(len(clicks), bool), np.full(len(clicks), 0.1)

    clicks = RecentClicks()
    for at in range(30):
        clicks.note("a", f"d{at}", None, entry(sold=at < 3))
    assert expit(clicks.rates(tenth, no_lure).places["a"]) > 2 * expit(clicks.rates(all_known, no_lure).places["a"])
