"""Conversions that come back but are not paid for: clicks without them count less, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.view import CriticView
from optimizer.maths.guard import click_worth
from optimizer.types import Campaign, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

CONFIG = CriticConfig(heads=8, steps=12, spread=1.0)
HONEST, BAIT, POOR = "Run light with Trail Runner 3", "Win a prize today", "Rest warm"
TEXTS = [candidate(text) for text in (HONEST, BAIT, POOR)]
DONE = START_MS + 10**7


def test_a_click_counts_as_much_as_it_converts_beside_a_controls() -> None:
    worth = click_worth(np.array([0.30, 0.45, 0.15, 0.0]), control=0.30)
    np.testing.assert_allclose(worth, [1, 1, 0.25, 0])


@pytest.mark.parametrize("control", [0.0, -0.1, float("nan")])
def test_controls_that_never_convert_are_refused(control: float) -> None:
    with pytest.raises(ValueError, match="expected > 0"):
        click_worth(np.ones(1), control)


def taught(made: Campaign, convert: bool = True, config: CriticConfig = CONFIG, closed: bool = True) -> Critic:
    """400 impressions: the control and the honest text click at 1 in 10, of which half convert; the bait at 1 in 2, of
    which none do; the poor text is never clicked."""
    critic = Critic(config)
    control = candidate(made.controls[0]["headline"])
    for at in range(400):
        text = (control, *TEXTS)[at % 4]
        turn = at // 4
        click = turn % 2 == 0 if text is TEXTS[1] else turn % 10 == 0 and text is not TEXTS[2]
        sold = convert and click and text is not TEXTS[1] and turn % 20 == 0
        shown = outcome(
            f"d{at}",
            click=click,
            conversions=int(sold),
            closed=closed,
            as_of=DONE,
            variant_id=text.variant_id,
            reward=made.reward,
            pool_id="p",
        )
        critic.add(shown, made, text.slots)
    for _ in range(4):
        critic.fit()
    return critic


def seen(view: CriticView, made: Campaign) -> tuple[np.ndarray, np.ndarray]:
    """Mean score and worth of the three texts."""
    features = view.encode(made, "all", TEXTS)
    return view.score(features, {}).mean(axis=0), view.worth(features)


def test_bait_is_worth_less_than_an_honest_text_with_a_fifth_of_its_clicks() -> None:
    made = campaign()
    score, worth = seen(taught(made).view(), made)
    assert score[0] > score[1]
    assert worth[0] > 0.8
    assert worth[1] < 0.3
    unguarded, full = seen(taught(made, config=replace(CONFIG, guard=False)).view(), made)
    assert unguarded[1] > 3 * unguarded[0]
    assert full.tolist() == [1, 1, 1]


def test_the_guard_survives_the_views_bytes_and_holds_in_every_context() -> None:
    made = campaign()
    view = taught(made).view()
    back = CriticView.from_bytes(view.to_bytes(), "v")
    for mine, theirs in zip(seen(view, made), seen(back, made), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    score = back.score(back.encode(made, "all", TEXTS), {"device": "mobile"}).mean(axis=0)
    assert score[0] > score[1]


@pytest.mark.parametrize(
    "reward", [RewardWeights(click=1.0, conversion=2.0), RewardWeights(click=1.0, value=0.1)], ids=str
)
def test_who_pays_for_conversions_gets_what_is_paid_for(reward: RewardWeights) -> None:
    made = campaign(reward=reward)
    assert seen(taught(made).view(), made)[1].tolist() == [1, 1, 1]


def test_where_no_conversion_ever_comes_nothing_is_guarded() -> None:
    made = campaign()
    score, worth = seen(taught(made, convert=False).view(), made)
    assert worth.tolist() == [1, 1, 1]
    assert score[1] > 3 * score[0]


def test_clicks_that_may_still_convert_do_not_count_as_clicks_without() -> None:
    """All windows open: what is known is that some converted at once and the others have not yet."""
    made = campaign()
    open_, over = (seen(taught(made, closed=closed).view(), made)[1] for closed in (False, True))
    assert open_[1] > over[1]


def test_the_gradients_rewards_count_clicks_the_same() -> None:
    made = campaign()
    critic = taught(made)
    view = critic.view()
    worth = view.worth(view.encode(made, "all", TEXTS))
    names = ["d0", "d2", "d6"]
    _, rewards, _ = critic.feedback(names, np.zeros(3), worth, made)
    shown, full, _ = critic.feedback(names, np.zeros(3), np.ones(3), made)
    np.testing.assert_allclose(rewards, full * worth[shown])
    assert full.tolist() == [1, 1, 0]
