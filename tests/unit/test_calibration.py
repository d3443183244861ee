"""Calibration: the decomposition adds up, what is calibrated is told from what is not, and each decision is judged on
what was said before anything was learnt from it."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.forecasts import Forecasts, calibration_facts
from optimizer.maths.calibration import EDGES, Calibration
from optimizer.types import Attribution
from serving.board import LiveBoard
from tests.learning_rig import START_MS, campaign, candidate, outcome
from tests.serving_rig import make_policy

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
    with pytest.raises(ValueError, match="said, came"):
        Calibration().after(np.array(p), np.array(y))


TEXT = candidate("A text")
WINDOWS = Attribution(click_window_ms=HOUR_MS)


def show(
    critic: Critic, name: str, at: int, as_of: int, revision: int = 1, click: bool = False, closed: bool = False
) -> None:
    """A revision of a decision on `TEXT` that was shown at `at`."""
    made = campaign()
    fields = {"variant_id": TEXT.variant_id, "attribution": WINDOWS, "reward": made.reward}
    record = outcome(name, revision, impression_ts=at, ts=at, as_of=as_of, click=click, closed=closed, **fields)  # type: ignore[arg-type]
    assert critic.add(record, made, TEXT.slots)


def taught(**config: int) -> tuple[Critic, int]:
    """A critic that has learnt from fifty decisions of which it said nothing, and what time it is."""
    critic, now = Critic(CriticConfig(seed=3)), START_MS + 10 * HOUR_MS
    critic.buffer.capacity = config.get("capacity", critic.buffer.capacity)
    for n in range(50):
        show(critic, f"early-{n}", START_MS, now, click=n < 5, closed=True)
    critic.fit()
    critic.fit()
    # Nothing was said of the first ones: the heads had learnt nothing yet.
    assert critic.forecasts.calibration.total == 0
    return critic, now


def test_a_decision_is_judged_by_what_was_said_before_and_once_its_window_is_over_twice() -> None:
    critic, now = taught()
    view = critic.view()
    said = float(view.score(view.encode(campaign(), "all", [TEXT]), {}).mean())
    show(critic, "clicked", now, now + HOUR_MS // 2, click=True)
    show(critic, "not", now, now + HOUR_MS // 2)
    critic.fit()
    # One click has come, and tells nothing while the other may yet be clicked.
    assert critic.forecasts.calibration.total == 0
    show(critic, "later", now + HOUR_MS * 3 // 2, now + HOUR_MS * 3 // 2)
    critic.fit()
    # It was clicked in time, and told of after its window.
    show(critic, "not", now, now + HOUR_MS * 3 // 2, revision=2, click=True)
    show(critic, "last", now + 3 * HOUR_MS, now + 3 * HOUR_MS)
    critic.fit()
    seen = critic.forecasts.calibration
    assert seen.total == pytest.approx(2, abs=0.01)
    assert seen.rate == pytest.approx(1.0)
    assert seen.mean == pytest.approx(said, rel=1e-5)
    assert len({said, view.score(view.encode(campaign(), "all", [TEXT]), {}).max()}) == 2


def test_decisions_that_are_no_longer_held_one_by_one_are_judged_all_the_same() -> None:
    """The buffer lets go of those first that nobody has clicked: asked of it, all would seem to be clicked."""
    critic, now = taught(capacity=60)
    for n in range(100):
        show(critic, f"d{n}", now, now)
        if n % 10 == 9:
            critic.fit()
    for n in range(40, 50):
        show(critic, f"d{n}", now, now + 1, revision=2, click=True)
    show(critic, "end", now + 3 * HOUR_MS, now + 3 * HOUR_MS)
    critic.fit()
    assert critic.forecasts.calibration.total == pytest.approx(100, rel=0.01)
    # Revisions of those that had gone already are not taken.
    assert critic.forecasts.calibration.rate == pytest.approx(0.1, abs=0.001)


def test_what_is_read_again_after_a_restart_tells_nothing_of_the_heads_of_now() -> None:
    critic, now = taught()
    critic.replaying = True
    show(critic, "again", now, now)
    critic.fit()
    critic.replaying = False
    show(critic, "new", now + HOUR_MS, now + HOUR_MS)
    critic.fit()
    show(critic, "end", now + 9 * HOUR_MS, now + 9 * HOUR_MS)
    critic.fit()
    assert critic.forecasts.calibration.total == 1


def test_what_was_said_before_a_change_counts_for_the_calibration_alone() -> None:
    critic, now = taught()
    forecasts = Forecasts()
    for n in range(8):
        if n == 4:
            forecasts.renew()
        show(critic, f"d{n}", now, now, click=n % 4 == 0)
        forecasts.note(f"d{n}", 0.5 if n < 4 else 0.25, critic.buffer.entries[f"d{n}"])
    assert forecasts.settle(now) == (0.0, 0.0)
    assert forecasts.settle(now + 100 * HOUR_MS) == (1.0, 1.0)
    assert forecasts.calibration.total == pytest.approx(8, abs=0.01)


def test_more_predictions_than_may_wait_are_thinned_out_evenly() -> None:
    critic, now = taught()
    forecasts = Forecasts(capacity=100)
    for n in range(1_600):
        show(critic, f"d{n}", now + n, now + n)
        forecasts.note(f"d{n}", 0.25, critic.buffer.entries[f"d{n}"])
    assert 25 <= len(forecasts._waiting) <= 100
    assert len(forecasts._clicked) == len(forecasts._waiting)
    times = np.array([due for due, *_ in forecasts._waiting])
    # Early ones as well as late ones: less than half of them in any quarter of the time.
    assert np.histogram(times, 4)[0].max() < 0.5 * len(times)
    forecasts.note("odd", math.nan, critic.buffer.entries["d0"])
    forecasts.settle(now + 100 * HOUR_MS)
    assert 25 <= forecasts.calibration.total <= 100
    assert forecasts._clicked == {}


def test_a_versions_record_tells_it_as_the_page_reads_it() -> None:
    critic, now = taught()
    for n in range(40):
        show(critic, f"d{n}", now, now, click=n < 4)
    critic.fit()
    show(critic, "end", now + 9 * HOUR_MS, now + 9 * HOUR_MS)
    critic.fit()
    told = calibration_facts(critic.forecasts.calibration)
    board = LiveBoard()
    board.on_policy(msgspec.structs.replace(make_policy("0000009-abc"), evidence=told))
    shown = board.snapshot(now)["critic"]
    assert shown["seen"] == pytest.approx(0.1, abs=0.001)
    assert shown["brier"] == told["brier"]
    assert sum(count for count, _, _ in shown["curve"]) == pytest.approx(40, abs=1)
    assert set(calibration_facts(Calibration()).values()) == {None}


def test_an_abrupt_fall_makes_what_was_learnt_before_light() -> None:
    """A text is clicked half of the time, then a fifth: told once, after the click window."""
    critic, now = taught()
    for batch in range(40):
        one_in = 2 if batch < 20 else 5
        for n in range(80):
            show(critic, f"e{batch}-{n}", now, now, click=n % one_in == 0)
        now += 3 * HOUR_MS
        critic.fit()
        if batch == 19:
            assert critic.drifts == 0
            before = critic.buffer.totals().clicked.sum()
    assert critic.drifts == 1
    assert critic.buffer.totals().clicked.sum() < 0.5 * before
