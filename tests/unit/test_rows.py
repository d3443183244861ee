"""Old rows go, with their features; what stays is as if they had never been."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.types import Attribution, Campaign, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

DAY = 86_400_000
HOUR = 3_600_000
WINDOWS = Attribution(click_window_ms=HOUR, conversion_window_ms=100 * HOUR)
TEXTS = [f"text number {at} of these" for at in range(10)]


def teach(critic: Critic, made: Campaign, texts: list[str], start: int, count: int = 200) -> None:
    for at in range(count):
        text = candidate(texts[at % len(texts)])
        seen = outcome(
            f"{start}-{at}",
            click=at % 3 == 0,
            conversions=int(at % 6 == 0),
            closed=True,
            impression_ts=start,
            ts=start,
            as_of=start + HOUR,
            variant_id=text.variant_id,
            attribution=made.attribution,
            reward=made.reward,
        )
        critic.add(seen, made, text.slots)


@pytest.mark.parametrize("reward", [RewardWeights(click=1.0), RewardWeights(click=1.0, conversion=5.0)], ids=str)
def test_what_nobody_is_shown_any_more_is_forgotten_with_its_features(reward: RewardWeights) -> None:
    made = campaign(reward=reward, attribution=WINDOWS)
    config = CriticConfig(heads=4, steps=6, staleness_days=30)
    critic, fresh = Critic(config), Critic(config)
    teach(critic, made, TEXTS[:8], START_MS)
    critic.fit()
    before = len(critic._rows.columns)
    late = START_MS + 40 * DAY
    teach(critic, made, TEXTS[8:], late)
    teach(fresh, made, TEXTS[8:], late)
    for each in (critic, fresh):
        for _ in range(30):
            each.fit()
    assert critic.buffer.rows == fresh.buffer.rows == len(critic._rows) == 2
    assert critic._rows.columns.keys() == fresh._rows.columns.keys()
    assert len(critic._rows.columns) < before
    assert set(critic.buffer.entries) == set(fresh.buffer.entries)
    for some, other in zip(critic.buffer.totals(), fresh.buffer.totals(), strict=True):
        np.testing.assert_allclose(some, other, atol=1e-5)
    shown = [candidate(text) for text in TEXTS[8:]]
    q, wanted = (view.score(view.encode(made, "all", shown), {}) for view in (critic.view(), fresh.view()))
    # But for the prior scales, in which the forgotten leave a trace.
    np.testing.assert_allclose(q.mean(axis=0), wanted.mean(axis=0), rtol=0.1, atol=0.01)


def test_what_is_shown_again_stays() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, staleness_days=30))
    for month in range(4):
        teach(critic, made, TEXTS[:4], START_MS + month * 20 * DAY)
        critic.fit()
    assert critic.buffer.rows == 4
    assert len(critic.buffer.entries) == 800


def test_where_there_are_too_many_rows_the_oldest_go() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, most_rows=6))
    for at, text in enumerate(TEXTS):
        teach(critic, made, [text], START_MS + at * HOUR, count=20)
    critic.fit()
    assert critic.buffer.rows == 6
    assert {name.split("-")[0] for name in critic.buffer.entries} == {str(START_MS + at * HOUR) for at in range(4, 10)}


def test_a_few_old_rows_wait_for_more() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, most_rows=10))
    for at in range(11):
        teach(critic, made, [f"text {at}"], START_MS + at * HOUR, count=20)
    critic.fit()
    assert critic.buffer.rows == 11  # one in eleven: to let it go would move all the others
    teach(critic, made, ["text 11"], START_MS + 11 * HOUR, count=20)
    critic.fit()
    assert critic.buffer.rows == 10


def test_counts_of_past_tests_have_no_date_to_be_over() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, staleness_days=30))
    past = candidate(TEXTS[0])
    critic.add_counts(made, {}, past.variant_id, past.slots, shown=100, clicked=10)
    teach(critic, made, TEXTS[1:], START_MS)
    critic.fit()
    assert critic.buffer.rows == 10


def test_a_late_revision_of_what_is_forgotten_is_news() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, staleness_days=30))
    teach(critic, made, TEXTS[:5], START_MS)
    teach(critic, made, TEXTS[5:], START_MS + 40 * DAY)
    critic.fit()
    assert f"{START_MS}-0" not in critic.buffer.entries
    text = candidate(TEXTS[0])
    again = outcome(
        f"{START_MS}-0", 2, closed=True, variant_id=text.variant_id, attribution=WINDOWS, reward=made.reward
    )
    assert critic.add(again, made, text.slots)
    assert critic.buffer.rows == 6
    critic.fit()
    assert np.isfinite(critic.view().score(critic.view().encode(made, "all", [text]), {})).all()
