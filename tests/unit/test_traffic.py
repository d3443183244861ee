"""Traffic: shares of the newest decisions, and who is due."""

from __future__ import annotations

import pytest

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.favourites import Turns
from optimizer.learning.traffic import QUIET, Traffic, due, place_name
from optimizer.learning.view import CriticView
from tests.learning_rig import campaign, candidate, outcome


def test_shares_are_of_the_newest_decisions() -> None:
    traffic = Traffic(window=4)
    assert traffic.shares() == {}
    for place in ("gone", "a", "a", "b", "a"):
        traffic.note(place)
    assert traffic.shares() == {"a": 0.75, "b": 0.25}


def test_with_equal_shares_the_longest_wait_is_due_and_a_quiet_place_ten_times_as_rarely() -> None:
    assert due(0.25, 3, 4) > due(0.25, 2, 4)
    assert due(0.0, 1, 4) > 0
    # Equal shares of 1/4 against none: who has none waits (1 + QUIET) / QUIET times as long.
    assert due(0.0, (1 + QUIET) / QUIET, 4) == pytest.approx(due(0.25, 1, 4))


def test_turns_follow_the_impressions_and_forget_nobody() -> None:
    some = [campaign(f"c{at}", segments=("all", "young")) for at in range(10)]
    shares = {place_name(some[0], "all"): 0.7, place_name(some[1], "young"): 0.3}
    turns, counts = Turns(), dict.fromkeys([(one.campaign_id, s) for one in some for s in ("all", "young")], 0)
    for _ in range(400):
        for one, segment in turns.next(some, 2, shares):
            counts[one.campaign_id, segment] += 1
    busy, second = counts.pop(("c0", "all")), counts.pop(("c1", "young"))
    assert busy > second > 2 * max(counts.values())
    assert min(counts.values()) >= 3
    assert busy + second > 500


def test_a_view_tells_where_the_impressions_of_its_critic_were() -> None:
    made, text, critic = campaign(segments=("all", "young")), candidate("A text"), Critic(CriticConfig())
    for at, segment in enumerate(("young", "young", "all", "young")):
        record = outcome(f"d{at}", 1, variant_id=text.variant_id, context={"segment": segment})
        assert critic.add(record, made, text.slots)
        # A revision of it is no impression more.
        later = outcome(f"d{at}", 2, variant_id=text.variant_id, context={"segment": segment}, click=True)
        assert critic.add(later, made, text.slots)
    critic.fit()
    view = CriticView.from_bytes(critic.view().to_bytes(), "copy")
    assert view.traffic == {place_name(made, "all"): 0.25, place_name(made, "young"): 0.75}
    assert view.version == critic.view().version
