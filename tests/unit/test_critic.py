"""The critic: soft targets while windows are open, what revises them, rewards for the policy's update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.heads import Heads
from optimizer.maths.delay import still_to_come
from optimizer.types import Attribution, Campaign, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

HOUR = 3_600_000
CONFIG = CriticConfig(heads=6, steps=10, target_every=1)
TEXT = candidate("Run light")
OTHER = candidate("Rest well")
PAID = RewardWeights(click=1.0, conversion=10.0)
LONG = Attribution(click_window_ms=HOUR, conversion_window_ms=100 * HOUR)


def add(critic: Critic, made: Campaign, name: str, revision: int = 1, **fields: object) -> bool:
    text = fields.pop("text", TEXT)
    defaults: dict[str, object] = {"variant_id": text.variant_id, "attribution": LONG, "reward": made.reward}  # type: ignore[attr-defined]
    record = outcome(name, revision, **{**defaults, **fields})  # type: ignore[arg-type]
    return critic.add(record, made, text.slots)  # type: ignore[attr-defined]


def click_rate(critic: Critic, made: Campaign) -> float:
    view = critic.view()
    return float(view.score(view.encode(made, "all", [TEXT]), {}).mean())


def history(critic: Critic, made: Campaign, delay_ms: int, rate: float = 0.3, count: int = 400) -> None:
    """Closed decisions on another text, a share of them clicked after `delay_ms`: what delays are learnt from."""
    for at in range(count):
        click = at < rate * count
        start = START_MS + at * 10
        seen = {"impression_ts": start, "ts": start, "text": OTHER}
        add(critic, made, f"h{at}", 1, as_of=start, **seen)
        if click:
            add(critic, made, f"h{at}", 2, click=True, as_of=start + delay_ms, click_ts=start + delay_ms, **seen)
        add(critic, made, f"h{at}", 3, click=click, closed=True, as_of=START_MS + 200 * HOUR, click_ts=start, **seen)


def test_an_open_impression_is_no_zero_and_becomes_one_as_its_window_passes() -> None:
    made = campaign(attribution=LONG)

    def taught(age_ms: int, open_: bool) -> float:
        critic = Critic(CONFIG)
        history(critic, made, delay_ms=HOUR // 2)
        now = START_MS + 300 * HOUR
        for at in range(300):
            add(
                critic,
                made,
                f"o{at}",
                impression_ts=now - age_ms,
                ts=now - age_ms,
                as_of=now - age_ms,
                closed=not open_,
            )
        add(critic, made, "clock", impression_ts=now, ts=now, as_of=now, text=OTHER, closed=True)
        for _ in range(12):
            critic.fit()
        return click_rate(critic, made)

    fresh, closed = taught(1_000, open_=True), taught(1_000, open_=False)
    passed = taught(HOUR + 1, open_=True)
    assert closed < 0.02
    assert passed == pytest.approx(closed, rel=1e-3)
    # Nothing is known yet of what has just been shown: it stays near what the other text and the prior suggest.
    assert fresh > 5 * closed


def test_revisions_undo_each_other_in_what_is_learnt() -> None:
    made = campaign(attribution=LONG)
    wandering, straight = Critic(CONFIG), Critic(CONFIG)
    for at in range(60):
        end = {"closed": True, "as_of": START_MS + 2 * HOUR}
        add(wandering, made, f"d{at}", 1)
        add(wandering, made, f"d{at}", 2, click=True, as_of=START_MS + 1_000)
        add(wandering, made, f"d{at}", 3, as_of=START_MS + 2_000)
        add(wandering, made, f"d{at}", 4, **end)
        add(straight, made, f"d{at}", 4, **end)
    for got, expected in zip(wandering.buffer.totals(), straight.buffer.totals(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    for _ in range(5):
        wandering.fit()
        straight.fit()
    assert click_rate(wandering, made) == pytest.approx(click_rate(straight, made), rel=1e-5)


def test_a_repeated_revision_is_no_news() -> None:
    made = campaign()
    critic = Critic(CONFIG)
    assert add(critic, made, "d", 2, click=True)
    assert not add(critic, made, "d", 2, click=True)
    assert not add(critic, made, "d", 1)


def test_it_learns_the_rates_of_two_texts() -> None:
    made = campaign(attribution=LONG)
    critic = Critic(CONFIG)
    for at in range(1_000):
        add(critic, made, f"a{at}", click=at % 4 == 0, closed=True, as_of=START_MS + 2 * HOUR)
        add(critic, made, f"b{at}", click=at % 20 == 0, closed=True, as_of=START_MS + 2 * HOUR, text=OTHER)
    for _ in range(15):
        critic.fit()
    view = critic.view()
    scores = view.score(view.encode(made, "all", [TEXT, OTHER]), {})
    # 1,000 decisions each, Poisson-bootstrapped: a head's standard error is near 0.02 and 0.01.
    np.testing.assert_allclose(scores.mean(axis=0), [0.25, 0.05], atol=0.03)
    assert (scores.std(axis=0) > 0).all()


def feedback(
    critic: Critic, made: Campaign, names: list[str], q: list[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return critic.feedback(names, np.array(q), np.ones(len(q)), made)


def test_feedback_is_what_was_seen_once_a_decision_is_closed() -> None:
    made = campaign(attribution=LONG, reward=PAID)
    critic = Critic(CONFIG)
    add(critic, made, "plain", closed=True, candidate=1, probabilities=[0.9, 0.1])
    add(critic, made, "click", click=True, closed=True)
    add(critic, made, "sale", click=True, conversions=1, closed=True)
    critic.fit()
    shown, rewards, selection = feedback(critic, made, ["plain", "click", "gone", "sale"], [0.4, 0.2])
    assert shown.tolist() == [1, 0, 0]
    np.testing.assert_allclose(rewards, [0.0, 1.0, 11.0])
    np.testing.assert_allclose(selection, [0.1, 0.5, 0.5])


def test_an_open_impression_is_worth_what_is_still_expected_of_it() -> None:
    made = campaign(attribution=LONG)
    critic = Critic(CONFIG)
    history(critic, made, delay_ms=HOUR // 2)
    now = START_MS + 300 * HOUR
    add(critic, made, "new", impression_ts=now, ts=now, as_of=now)
    add(critic, made, "half", impression_ts=now - HOUR // 3, ts=now, as_of=now)
    add(critic, made, "late", impression_ts=now - HOUR * 9 // 10, ts=now, as_of=now)
    for _ in range(5):
        critic.fit()
    _, rewards, _ = feedback(critic, made, ["new", "half", "late"], [0.3, 0.3])
    # All clicks come after half an hour: before it nearly all is still to come, after it nearly nothing.
    assert rewards[0] == pytest.approx(0.3, rel=0.02)
    assert 0.2 < rewards[1] <= rewards[0]
    assert rewards[2] < 0.1


@pytest.mark.parametrize("click_weight", [0.0, 1.0])
def test_a_click_whose_conversion_is_open_is_worth_the_conversions_still_expected(click_weight: float) -> None:
    paid = RewardWeights(click=click_weight, conversion=10.0)
    made = campaign(attribution=LONG, reward=paid)
    critic = Critic(CONFIG)
    for at in range(400):
        # Every click of the past converted with probability one half, at once or never.
        sale = at % 2
        add(critic, made, f"h{at}", click=True, conversions=sale, closed=True, as_of=START_MS + 200 * HOUR)
    now = START_MS + 300 * HOUR
    at_now = {"impression_ts": now, "ts": now, "as_of": now, "click": True, "click_ts": now}
    add(critic, made, "open", **at_now)
    add(critic, made, "sold", conversions=1, **at_now)
    add(critic, made, "done", **{**at_now, "closed": True})
    for _ in range(12):
        critic.fit()
    _, rewards, _ = feedback(critic, made, ["open", "sold", "done"], [5.0, 5.0])
    assert rewards[1] == pytest.approx(click_weight + 10.0)
    assert rewards[2] == pytest.approx(click_weight)
    assert rewards[0] == pytest.approx(click_weight + 5.0, rel=0.15)


def test_the_expectation_of_open_feedback_is_the_value_itself() -> None:
    # A decision of value p, seen at share F: with probability pF the click has come (reward 1), else it waits.
    p, arrived = 0.3, 0.6
    waiting = float(still_to_come(np.array(p), np.array(arrived)))
    assert p * arrived * 1.0 + (1 - p * arrived) * waiting == pytest.approx(p)


def test_learnt_delays_follow_what_arrives() -> None:
    made = campaign(attribution=LONG)
    critic = Critic(CONFIG)
    history(critic, made, delay_ms=HOUR // 2)
    ages = np.array([0, 60_000, HOUR // 4, HOUR * 3 // 4, HOUR], np.int64)
    share = critic._arrivals.share("click", HOUR, ages, critic._now_ms)
    assert (np.diff(share) >= 0).all()
    assert share[2] < 0.1
    assert share[3] > 0.3
    assert share[-1] == 1.0


def test_the_matrix_of_rows_is_that_of_their_features() -> None:
    made = campaign(segments=("all", "young"))
    critic = Critic(CONFIG)
    for at, text in enumerate(("Run light", "Rest well and long", "Go")):
        add(critic, made, f"d{at}", text=candidate(text), context={"segment": "young"} if at else {})
    whole = critic._rows.matrix(np.arange(3)).toarray()
    assert whole.shape == (3, len(critic._rows.columns))
    assert whole.sum(axis=1).tolist() == np.diff(critic._rows._ends).tolist()
    np.testing.assert_array_equal(critic._rows.matrix(np.array([2, 0, 2])).toarray(), whole[[2, 0, 2]])


def test_more_rows_than_a_pass_takes_are_all_learnt_from() -> None:
    made = campaign(attribution=LONG)
    critic = Critic(CriticConfig(heads=4, steps=6, rows_per_pass=20, target_every=1))
    for at in range(60):
        for again in range(20):
            text = candidate(f"{'Run' if at % 2 else 'Rest'} number{at}")
            add(critic, made, f"d{at}-{again}", text=text, click=at % 2 == 1 and again < 10, closed=True)
    for _ in range(30):
        critic.fit()
    view = critic.view()
    scores = view.score(view.encode(made, "all", [candidate("Run number7"), candidate("Rest number8")]), {}).mean(
        axis=0
    )
    assert scores[0] > 0.3
    assert scores[1] < 0.1


def test_the_rows_of_a_pass_stand_for_all() -> None:
    critic = Critic(CriticConfig(rows_per_pass=20))
    few, once = critic._rows_of_pass(20)
    assert few.tolist() == list(range(20))
    assert once.tolist() == [[1.0]] * 20
    counted = np.zeros(60)
    for _ in range(600):
        rows, each = critic._rows_of_pass(60)
        assert len(rows) == len(set(rows)) == 20
        assert each.sum() == pytest.approx(60, rel=1e-5)
        counted[rows] += each[:, 0]
    # The newest five are always there, once each; each of the others is there in 15 of 55 passes, for 55 / 15 rows.
    assert counted[55:].tolist() == [600.0] * 5
    np.testing.assert_allclose(counted[:55] / 600, 1.0, atol=0.3)


def test_what_rows_stand_for_counts_in_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    made = campaign(attribution=LONG)
    critic = Critic(CriticConfig(heads=4, rows_per_pass=20))
    for at in range(60):
        add(critic, made, f"d{at}", text=candidate(f"Rest number{at}"), click=at % 2 == 1, closed=True)
    fitted: list[tuple[np.ndarray, np.ndarray]] = []

    def noted(heads: Heads, x: Any, mass: np.ndarray, total: np.ndarray, *_: Any) -> float:
        fitted.append((mass, total))
        return 0.0

    monkeypatch.setattr(Heads, "fit", noted)
    critic.fit()
    mass, total = fitted[0]
    whole = critic.buffer.totals()
    # Poisson weights are whole numbers: the newest five rows count once, each of the others for 55 / 15.
    np.testing.assert_allclose(mass[-5:], (whole.clicked + whole.settled)[-5:])
    np.testing.assert_allclose(total[-5:], whole.clicked[-5:])
    others = mass[:-5] * 15 / 55
    np.testing.assert_allclose(others, others.round(), atol=1e-4)
    assert others.max() >= 1


def test_counts_of_past_tests_teach_what_their_outcomes_would() -> None:
    made = campaign()
    by_counts, by_outcomes = Critic(CONFIG), Critic(CONFIG)
    by_counts.add_counts(made, {}, TEXT.variant_id, TEXT.slots, shown=250, clicked=40)
    by_counts.add_counts(made, {}, TEXT.variant_id, TEXT.slots, shown=150, clicked=20)
    for at in range(400):
        add(by_outcomes, made, f"d{at}", click=at < 60, closed=True)
    for _ in range(30):
        by_counts.fit()
        by_outcomes.fit()
    assert by_counts.buffer.rows == by_outcomes.buffer.rows == 1
    # Heads differ by their bootstraps: the mean of six has a standard error of 0.008.
    assert click_rate(by_counts, made) == pytest.approx(0.15, abs=0.03)
    assert click_rate(by_counts, made) == pytest.approx(click_rate(by_outcomes, made), abs=0.04)


@pytest.mark.parametrize(("shown", "clicked"), [(10, 11), (10, -1), (-1, 0)])
def test_counts_that_cannot_be_are_refused(shown: int, clicked: int) -> None:
    critic = Critic(CONFIG)
    with pytest.raises(ValueError, match="0 <= clicks <= impressions"):
        critic.add_counts(campaign(), {}, TEXT.variant_id, TEXT.slots, shown, clicked)
    assert critic.buffer.rows == 0
