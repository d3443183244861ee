"""Old rows go, with their features; what stays is as if they had never been."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.types import Attribution, Campaign, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

DAY = 86_400_000
HOUR = 3_600_000
WINDOWS = Attribution(click_window_ms=HOUR, conversion_window_ms=100 * HOUR)
TEXTS = [f"text number {at} of these" for at in range(10)]


def teach(
    critic: Critic,
    made: Campaign,
    texts: list[str],
    start: int,
    count: int = 200,
    segment: str = "all",
    closed: bool = True,
    revision: int = 1,
) -> None:
    for at in range(count):
        text = candidate(texts[at % len(texts)])
        seen = outcome(
            f"{start}-{at}" if segment == "all" and len(texts) > 1 else f"{start}-{at}-{texts[0]}",
            revision,
            click=at % 3 == 0,
            conversions=int(at % 6 == 0),
            closed=closed,
            context={"segment": segment},
            impression_ts=start,
            ts=start,
            as_of=start + HOUR,
            variant_id=text.variant_id,
            attribution=made.attribution,
            reward=made.reward,
        )
        critic.add(seen, made, text.slots)


def by_feature(critic: Critic, output: str) -> dict[int, tuple[np.ndarray, ...]]:
    """What the heads and the target network hold, by feature id."""
    heads, target = critic._outputs[output], critic._target[output]
    return {
        name: tuple(part[at].copy() for part in (heads.u, heads._z, heads._m, heads._v, target) if at < len(part))
        for name, at in critic._rows.columns.items()
    }


def by_key(critic: Critic) -> dict[object, tuple[np.ndarray, ...]]:
    """The totals of each row, by what it is of."""
    totals = critic.buffer.totals()
    return {key: tuple(part[row].copy() for part in totals) for key, row in critic.buffer._rows.items()}


def recent(critic: Critic) -> dict[str, tuple[str, int]]:
    """Of the guard's newest clicks, the place and how many features their rows have."""
    held = critic._guard._recent._held
    ends = critic._rows._ends
    return {
        name: (critic._rows.places[one.row], ends[one.row + 1] - ends[one.row])
        for some in held.values()
        for name, one in some.items()
    }


@pytest.mark.parametrize("reward", [RewardWeights(click=1.0), RewardWeights(click=1.0, conversion=5.0)], ids=str)
def test_what_stays_is_what_it_was(reward: RewardWeights) -> None:
    """Old and new rows interleaved, a discount in between, a target network that has not met the newest features."""
    made = campaign(reward=reward, attribution=WINDOWS, segments=("all", "young"))
    critic = Critic(CriticConfig(heads=4, steps=3, staleness_days=30, target_every=3))
    late = START_MS + 40 * DAY
    for at, text in enumerate(TEXTS[:8]):
        teach(critic, made, [text], late if at % 3 == 2 else START_MS, count=30, segment=("all", "young")[at % 2])
    critic._now_ms = START_MS + DAY  # not yet late: nothing is forgotten while it learns
    critic.fit()
    critic.buffer.discount(0.5)
    teach(critic, made, TEXTS[8:], late, count=60, segment="all")
    critic._now_ms = START_MS + DAY
    critic.fit()
    output = "clicked" if reward.conversion else "converts"
    before = [by_feature(critic, name) for name in ("click", output)]
    rows, clicks, held = by_key(critic), recent(critic), dict(critic.buffer.entries)
    names = {name: (critic._rows.places[one.row], one.mass) for name, one in held.items() if one.impression_ts == late}
    critic._now_ms = late + DAY
    critic._meet()
    critic._forget()
    assert critic.buffer.rows == len(critic._rows) == 4
    for name, known in zip(("click", output), before, strict=True):
        now = by_feature(critic, name)
        assert 0 < len(now) < len(known)
        for feature, parts in now.items():
            for some, other in zip(parts, known[feature], strict=True):
                np.testing.assert_array_equal(some, other)
    for key, parts in by_key(critic).items():
        for some, other in zip(parts, rows[key], strict=True):
            np.testing.assert_array_equal(some, other)
    assert recent(critic) == {name: one for name, one in clicks.items() if name in names}
    assert bool(clicks) != bool(reward.conversion)
    entries = critic.buffer.entries
    assert {name: (critic._rows.places[one.row], one.mass) for name, one in entries.items()} == names
    critic.fit()
    assert np.isfinite(critic.view().score(critic.view().encode(made, "all", [candidate(TEXTS[2])]), {})).all()


def test_all_may_be_forgotten() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, staleness_days=30))
    teach(critic, made, TEXTS[:3], START_MS)
    critic.fit()
    critic._now_ms = START_MS + 40 * DAY
    critic.fit()
    assert critic.buffer.rows == len(critic._rows.columns) == 0
    teach(critic, made, TEXTS[:3], critic._now_ms)
    critic.fit()
    assert critic.buffer.rows == 3


def test_what_can_still_change_is_not_forgotten() -> None:
    """Nor does a revision of what is forgotten, or was evicted, count a second time."""
    made = campaign(attribution=Attribution(click_window_ms=HOUR, conversion_window_ms=100 * DAY))
    critic = Critic(CriticConfig(heads=4, steps=2, staleness_days=30))
    critic.buffer.capacity = 100
    teach(critic, made, TEXTS[:3], START_MS, count=150)
    open_ = candidate(TEXTS[3])
    own: dict[str, Any] = {"variant_id": open_.variant_id, "attribution": made.attribution, "reward": made.reward}
    critic.add(outcome("open", **own), made, open_.slots)
    teach(critic, made, TEXTS[4:6], START_MS + 40 * DAY, count=20)
    critic.fit()
    assert {name for name in critic.buffer.entries if "-" not in name} == {"open"}
    assert critic.buffer.rows == 3
    totals = [part.copy() for part in critic.buffer.totals()]
    for name in (f"{START_MS}-0", f"{START_MS}-149"):
        text = candidate(TEXTS[0])
        again = outcome(name, 7, click=True, closed=True, **{**own, "variant_id": text.variant_id})
        assert not critic.add(again, made, text.slots)
    assert critic.buffer.stale_revisions == 2
    assert critic.buffer.rows == 3
    for some, other in zip(critic.buffer.totals(), totals, strict=True):
        np.testing.assert_array_equal(some, other)
    assert critic.add(outcome("open", 2, closed=True, **own), made, open_.slots)


def test_rows_over_the_limit_with_open_windows_wait() -> None:
    made = campaign(attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=4, steps=2, most_rows=3))
    teach(critic, made, TEXTS, START_MS, count=20, closed=False)
    critic.fit()
    assert critic.buffer.rows == 10
    teach(critic, made, TEXTS, START_MS, count=20, revision=2)
    critic.fit()
    assert critic.buffer.rows == 3


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
