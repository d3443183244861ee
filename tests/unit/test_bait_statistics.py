"""Bait, clicks up with conversions down: how it is told from the counts of before and of late."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from optimizer.maths.sentinel import Conversions, Response, baits, conversions, windows


def response(shown: list[float], clicked: list[float], converted: list[float]) -> Response:
    return Response(np.array(shown), np.array(clicked), np.array(converted))


def test_conversions_are_compared_campaign_by_campaign() -> None:
    # The traffic moves from a campaign that converts well to one that does not: nothing has become worse in either.
    before = response([800, 200], [80, 20], [40, 2])
    late = response([200, 800], [20, 80], [10, 8])
    found = conversions(before, late)
    assert found is not None
    assert found.p > 0.2
    assert found.of_shown == pytest.approx(1.0)
    assert found.clicks_of_shown == pytest.approx(1.0)
    assert baits(found) is None


@pytest.mark.parametrize(
    ("chance", "clicked", "late_clicked"),
    [
        ([0.4, 0.1, 0.25], [60, 200, 30], [150, 80, 90]),
        # Sparse: five clicks a campaign and hardly a conversion.
        ([0.02] * 40, [5] * 40, [15] * 40),
    ],
)
def test_so_few_conversions_are_as_rare_as_p_says(
    chance: list[float], clicked: list[int], late_clicked: list[int]
) -> None:
    # With equal chances before and late, p is at most 0.05 in a twentieth of the cases, or fewer: counts are whole.
    rng = np.random.default_rng(1)
    clicks, late_clicks = np.array(clicked), np.array(late_clicked)
    found = []
    for _ in range(800):
        before = Response(clicks * 20.0, clicks.astype(float), rng.binomial(clicks, chance).astype(float))
        converted = rng.binomial(late_clicks, chance).astype(float)
        late = Response(late_clicks * 10.0, late_clicks.astype(float), converted)
        one = conversions(before, late)
        if one is not None:
            found.append(one.p)
    assert len(found) > 750
    for level in (0.05, 0.2, 0.5):
        assert 0.3 * level < np.mean(np.array(found) <= level) < 1.1 * level + 0.02


def test_p_is_the_exact_tests() -> None:
    # One stratum: Fisher's exact test. Two: every way in which two of them convert is counted.
    one = conversions(response([50], [10], [6]), response([50], [20], [3]))
    assert one is not None
    assert one.p == pytest.approx(fisher_exact(np.array([[3, 17], [6, 4]]), alternative="less").pvalue)
    two = conversions(response([9, 9], [3, 2], [2, 1]), response([9, 9], [2, 4], [0, 1]))
    assert two is not None
    ways = [
        (len([at for at in first if at < 2]) + len([at for at in second if at < 4]))
        for first in combinations(range(5), 2)
        for second in combinations(range(6), 2)
    ]
    assert two.p == pytest.approx(np.mean(np.array(ways) <= 1))


def test_rates_are_compared_within_their_strata() -> None:
    found = conversions(response([100, 300], [10, 60], [5, 12]), response([300, 100], [60, 40], [15, 4]))
    assert found is not None
    assert found.of_shown == pytest.approx((15 * 0.25 + 4 * 0.75) / (5 * 0.75 + 12 * 0.25))
    assert found.clicks_of_shown == pytest.approx((60 * 0.25 + 40 * 0.75) / (10 * 0.75 + 60 * 0.25))


@pytest.mark.parametrize(
    ("found", "halts"),
    [
        (Conversions(p=1e-6, of_shown=0.6, clicks_of_shown=2.0), True),
        # More clicks make up for their poorer conversion.
        (Conversions(p=1e-6, of_shown=1.1, clicks_of_shown=2.2), False),
        # Clicks fall as well: demand has changed, nobody is baited.
        (Conversions(p=1e-6, of_shown=0.4, clicks_of_shown=0.8), False),
        (Conversions(p=1e-3, of_shown=0.6, clicks_of_shown=2.0), False),
    ],
)
def test_bait_is_more_clicks_with_fewer_conversions(found: Conversions, halts: bool) -> None:
    assert (baits(found) is not None) is halts


def test_nothing_is_said_without_conversions() -> None:
    assert conversions(response([100], [10], [0]), response([100], [10], [5])) is None
    assert conversions(response([100], [0], [0]), response([100], [10], [5])) is None
    assert conversions(response([100], [1], [1]), response([100], [1], [1])) is None


def test_first_impressions_are_called_in_by_the_newest_of_all_campaigns() -> None:
    times = [np.array([0, 1, 2, 3, 40, 50]), np.array([10, 11, 60, 61]), np.array([5])]
    converted = [np.array([1.0, 0, 1, 0, 0, 0]), np.array([0.0, 1, 1, 1]), np.array([1.0])]
    # Back in time 61, 60, 50, 40, 3 call in, of b 0, 1, of a 1, 0, 1.
    assert [windows(times, converted, [9, 9, 9], wanted).tolist() for wanted in (1, 2, 3, 4)] == [
        [0, 1, 0],
        [0, 2, 0],
        [2, 2, 0],
        [3, 2, 0],
    ]
    assert windows(times, converted, [1, 9, 9], 4).tolist() == [1, 2, 0]
    assert windows([], [], [], 3).tolist() == []
    assert windows([np.array([1])], [np.array([1.0])], [1], 3).tolist() == [0]


def test_which_impressions_are_compared_favours_nobody() -> None:
    # Nothing changes but that more is clicked: p is under a level as seldom as the level says. It is not where each
    # campaign is taken up as soon as it has its five conversions: those that have them first have been lucky.
    rng = np.random.default_rng(3)
    found = []
    for _ in range(300):
        owner = rng.integers(8, size=2_000)
        clicked = (rng.random(2_000) < np.linspace(0.05, 0.25, 2_000)).astype(float)
        converted = clicked * (rng.random(2_000) < 0.1)
        own = [np.flatnonzero(owner == at) for at in range(8)]
        sizes = windows(own, [converted[some] for some in own], [2_000] * 8, 10)
        counts = [np.ones(2_000), clicked, converted]
        parts = [(some[:size], some[len(some) - size :]) for some, size in zip(own, sizes, strict=True)]
        before, late = (
            Response(*(np.array([one[some[at]].sum() for some in parts]) for one in counts)) for at in (0, 1)
        )
        one = conversions(before, late)
        if one is not None:
            found.append(one.p)
    assert len(found) > 280
    for level in (0.01, 0.05, 0.2):
        assert np.mean(np.array(found) <= level) < 1.2 * level + 0.01
