"""Calibration: the decomposition adds up, what is calibrated is told from what is not, and each decision is judged on
what was said before anything was learnt from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.forecasts import Forecasts
from optimizer.maths.calibration import EDGES, Calibration
from optimizer.types import Attribution
from tests.learning_rig import START_MS, campaign, candidate, outcome

HOUR_MS = 3_600_000


def drawn(n: int = 4_000, seed: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predictions, and outcomes that follow them."""
    rng = np.random.default_rng(seed)
    p = rng.choice([0.003, 0.03, 0.1, 0.5], n)
    return p, (rng.random(n) < p).astype(float)


def test_brier_is_reliability_less_resolution_plus_uncertainty() -> None:
    """Murphy 1973: exact where the predictions of a bin are all the same."""
    p, y = drawn()
    seen = Calibration(memory=math.inf).after(p, y)
    assert seen.brier == pytest.approx(np.mean((p - y) ** 2))
    assert seen.brier == pytest.approx(seen.reliability - seen.resolution + seen.rate * (1 - seen.rate))
    assert seen.skill == pytest.approx(1 - seen.brier / (seen.rate * (1 - seen.rate)))
    assert sum(one.decisions for one in seen.bins()) == pytest.approx(len(p)) == seen.total


def test_what_comes_as_said_is_reliable_and_what_comes_twice_as_often_is_not() -> None:
    p, y = drawn()
    good, bad = Calibration().after(p, y), Calibration().after(p / 2, y)
    # The sampling error of a bin's rate, squared: p (1 - p) / n, at most 0.25 / 1000 in its mean over the bins.
    assert good.reliability < 4 * 0.25 / 1_000
    assert bad.reliability > 0.01
    assert good.skill > bad.skill
    assert good.mean == pytest.approx(good.rate, abs=0.02)
    assert bad.mean == pytest.approx(bad.rate / 2, abs=0.02)


def test_batches_add_up_and_older_ones_count_less() -> None:
    p, y = drawn(900)
    whole, parts = Calibration(memory=300.0).after(p, y), Calibration(memory=300.0)
    for at in range(0, 900, 100):
        parts = parts.after(p[at : at + 100], y[at : at + 100])
    assert parts.squared == pytest.approx(whole.squared)
    assert parts.count == pytest.approx(whole.count)
    assert whole.total == pytest.approx(sum(math.exp(-k / 300.0) for k in range(900)))


def test_edges_hold_their_own_and_nothing_settled_tells_nothing() -> None:
    seen = Calibration().after(np.array([0.0, 1.0, 0.01]), np.array([0.0, 1.0, 0.0]))
    assert [one.expected for one in seen.bins()] == [0.0, 0.01, 1.0]
    assert len(EDGES) - 1 == len(seen.count)
    nothing = Calibration()
    assert all(math.isnan(value) for value in (nothing.brier, nothing.skill, nothing.rate, nothing.reliability))
    assert math.isnan(Calibration().after(np.array([0.5]), np.array([1.0])).skill)
    assert nothing.bins() == []


@pytest.mark.parametrize(("p", "y"), [([1.1], [1.0]), ([0.5], [0.5]), ([0.5], [0.0, 1.0]), ([math.nan], [0.0])])
def test_what_is_no_probability_or_no_outcome_is_refused(p: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="p, y"):
        Calibration().after(np.array(p), np.array(y))


def test_a_decision_is_judged_by_what_was_said_before_and_once_its_window_is_over() -> None:
    made, critic, text = campaign(), Critic(CriticConfig(seed=3)), candidate("A text")
    windows = Attribution(click_window_ms=HOUR_MS)

    def shown(name: str, at: int, as_of: int, click: bool = False, closed: bool = False) -> None:
        fields = {"variant_id": text.variant_id, "attribution": windows, "reward": made.reward}
        record = outcome(name, 1, impression_ts=at, ts=at, as_of=as_of, click=click, closed=closed, **fields)  # type: ignore[arg-type]
        assert critic.add(record, made, text.slots)

    now = START_MS + 10 * HOUR_MS
    for n in range(50):
        shown(f"early-{n}", START_MS, now, click=n < 5, closed=True)
    critic.fit()
    critic.fit()
    # Nothing was said of the first ones: the heads had learnt nothing yet.
    assert critic.forecasts.calibration.total == 0
    shown("clicked", now, now + HOUR_MS // 2, click=True)
    shown("not", now, now + HOUR_MS // 2)
    critic.fit()
    # One click has come, and tells nothing while the other may yet be clicked.
    assert critic.forecasts.calibration.total == 0
    shown("later", now + 3 * HOUR_MS, now + 3 * HOUR_MS)
    critic.fit()
    seen = critic.forecasts.calibration
    assert seen.total == pytest.approx(2, abs=0.01)
    assert seen.rate == pytest.approx(0.5, abs=0.01)
    assert 0.0 < seen.mean < 0.5


def test_predictions_beyond_the_capacity_are_not_told_of() -> None:
    forecasts = Forecasts(capacity=1)
    critic, made, text = Critic(CriticConfig()), campaign(), candidate("A text")
    for name in ("a", "b"):
        assert critic.add(outcome(name, 1, variant_id=text.variant_id), made, text.slots)
    forecasts.note(["a", "b"], np.array([0.1, 0.2]), critic.buffer.entries)
    forecasts.settle(START_MS + 100 * 24 * HOUR_MS, critic.buffer.entries)
    assert forecasts.calibration.total == 1
    assert forecasts.calibration.mean == pytest.approx(0.1)
