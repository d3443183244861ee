"""Conversions that come back but are not paid for: clicks without them count less, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save

from optimizer.errors import StoreError
from optimizer.learning.arrivals import Arrivals
from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.view import CriticView
from optimizer.maths.guard import click_worth, shared_rates
from optimizer.types import Attribution, Campaign, RewardWeights
from tests.guard_rig import CONFIG, DONE, POOL, TEXTS, tell
from tests.learning_rig import START_MS, campaign, candidate, outcome


def test_a_click_counts_as_much_as_it_converts_beside_the_better_texts() -> None:
    worth = click_worth(np.array([0.30, 0.30, 0.28, 0.135, 0.30 * 0.09, 0.30]))
    np.testing.assert_allclose(worth, [1, 1, 1, 0.25, 0.01, 1])


def test_texts_that_convert_alike_all_count_in_full() -> None:
    assert click_worth(np.full(7, 0.03)).tolist() == [1] * 7
    assert click_worth(np.array([0.2])).tolist() == [1]
    assert click_worth(np.zeros(0)).tolist() == []


def test_bait_that_fills_the_pool_is_measured_by_what_was_clicked_before() -> None:
    rates = np.array([0.01] * 9 + [0.3])
    assert click_worth(rates)[0] == 1
    assert click_worth(rates, usual=0.3)[0] < 0.01
    assert click_worth(rates, usual=0.3)[-1] == 1


@pytest.mark.parametrize("impossible", [0.0, -0.1, float("nan")])
def test_what_can_be_no_estimate_is_refused(impossible: float) -> None:
    with pytest.raises(ValueError, match="expected probabilities > 0"):
        click_worth(np.array([0.2, impossible]))


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
        tell(critic, made, f"d{at}", text, click, sold, closed=closed)
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
    assert worth[0] > 0.75
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
    "reward",
    [
        RewardWeights(click=1.0, conversion=2.0),
        RewardWeights(click=1.0, value=0.1),
        RewardWeights(click=1.0, rating=0.5),
    ],
    ids=str,
)
def test_who_pays_for_more_than_clicks_gets_what_is_paid_for(reward: RewardWeights) -> None:
    made = campaign(reward=reward)
    assert seen(taught(made).view(), made)[1].tolist() == [1, 1, 1]


def test_where_no_conversion_ever_comes_nothing_is_guarded() -> None:
    made = campaign()
    score, worth = seen(taught(made, convert=False).view(), made)
    assert worth.tolist() == [1, 1, 1]
    assert score[1] > 3 * score[0]


def clicks(critic: Critic, made: Campaign, seed: int, rate: float) -> None:
    """540 clicks, each of which converts with probability `rate`: 20 on the control, 400 on one text of the pool, 50 on
    another and 7 on each of ten; most of the pool has none."""
    rng = np.random.default_rng(seed)
    control = candidate(made.controls[0]["headline"])
    texts = [control] * 20 + [POOL[0]] * 400 + [POOL[1]] * 50 + [text for text in POOL[2:12] for _ in range(7)]
    for at, one in enumerate(rng.permutation(len(texts))):
        shown = outcome(
            f"{made.campaign_id}-{seed}-{at}",
            click=True,
            conversions=int(rng.random() < rate),
            closed=True,
            as_of=DONE,
            campaign_id=made.campaign_id,
            variant_id=texts[one].variant_id,
            reward=made.reward,
            source="control" if texts[one] is control else "pool",
        )
        critic.add(shown, made, texts[one].slots)


def worths(critic: Critic, made: Campaign) -> np.ndarray:
    """float64[n]: what a click on each text of the pool counts."""
    view = critic.view()
    return np.asarray(view.worth(view.encode(made, "all", POOL)))


def test_a_campaign_that_posts_no_conversions_is_not_held_against_one_that_does() -> None:
    posts, silent = campaign("posts"), campaign("silent")
    critic = Critic(CONFIG)
    clicks(critic, posts, 1, 0.3)
    clicks(critic, silent, 2, 0.0)
    for _ in range(6):
        critic.fit()
    assert worths(critic, silent).tolist() == [1] * len(POOL)
    assert worths(critic, posts).min() < 1


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.4])
def test_chance_makes_no_bait_of_texts_that_convert_alike(rate: float) -> None:
    worth = []
    for seed in range(6):
        critic, made = Critic(CriticConfig(seed=seed)), campaign()
        clicks(critic, made, seed, rate)
        for _ in range(6):
            critic.fit()
        worth.append(worths(critic, made))
    assert np.mean(worth) > 0.75
    assert np.mean([some[0] for some in worth]) > 0.8
    assert np.min([some[0] for some in worth]) > 0.25


def test_a_campaign_that_converts_a_tenth_as_often_as_another_has_its_own_measure() -> None:
    often, seldom = campaign("often"), campaign("seldom")
    worth = []
    for seed in range(4):
        critic = Critic(CriticConfig(seed=seed))
        clicks(critic, often, seed, 0.4)
        clicks(critic, seldom, seed, 0.04)
        for _ in range(6):
            critic.fit()
        worth.append(worths(critic, seldom)[0])
    # The words of a text are shared: what they do in the one campaign is carried over to the other.
    assert np.mean(worth) > 0.5


def test_campaigns_that_are_alike_teach_each_other_and_one_that_is_not_keeps_its_own_rate() -> None:
    alike = shared_rates(np.array([8.0, 9.0, 10.0, 11.0, 1.0]), np.array([20.0, 20.0, 20.0, 20.0, 1.0]))
    assert 0.4 < alike[4] < 0.6
    np.testing.assert_allclose(
        shared_rates(np.array([300.0, 30.0]), np.array([1000.0, 1000.0])), [0.3, 0.03], atol=0.01
    )
    np.testing.assert_allclose(shared_rates(np.array([3.0]), np.array([10.0])), [0.3], atol=0.01)


@pytest.mark.parametrize(("converted", "known"), [(-1.0, 4.0), (5.0, 4.0)])
def test_more_conversions_than_clicks_are_refused(converted: float, known: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        shared_rates(np.array([converted]), np.array([known]))


def test_a_view_with_a_broken_guard_is_refused() -> None:
    tensors = load(taught(campaign()).view().to_bytes())
    count = len(tensors["guard.rates"])
    for rates in (tensors["guard.rates"][:, None], np.full(count, np.nan), np.zeros(count + 1)):
        with pytest.raises(StoreError, match=r"v: guard\.rates"):
            CriticView.from_bytes(save({**tensors, "guard.rates": np.ascontiguousarray(rates)}), "v")


def test_a_view_from_before_there_was_a_guard_counts_clicks_in_full() -> None:
    made = campaign()
    tensors = load(taught(made).view().to_bytes())
    old = {name: tensor for name, tensor in tensors.items() if not name.startswith(("guard.", "converts."))}
    assert seen(CriticView.from_bytes(save(old), "v"), made)[1].tolist() == [1, 1, 1]


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


def test_a_place_whose_people_buy_more_makes_no_text_look_better_there() -> None:
    """Young people buy three times as often, whatever they read. The text that they have clicked counts no more beside
    others than it does among those who buy less; held against the whole campaign's rate it would look three times as
    good as text that nobody has clicked."""
    made, critic, rng = campaign(segments=("all", "young")), Critic(CONFIG), np.random.default_rng(3)
    for at in range(800):
        segment = ("all", "young")[at % 2]
        sold = rng.random() < (0.3 if segment == "young" else 0.1)
        tell(critic, made, f"d{at}", TEXTS[0], True, sold, context={"segment": segment})
        if at % 100 == 99:
            critic.fit()
    view = critic.view()
    texts = [TEXTS[0], candidate("Never seen by anybody")]
    for segment in made.segments:
        assert view.worth(view.encode(made, segment, texts)).min() > 0.8


def test_a_campaign_whose_clicks_can_never_convert_is_no_trouble() -> None:
    never = Attribution(click_window_ms=3_600_000, conversion_window_ms=0)
    made, critic = campaign(), Critic(CONFIG)
    for at in range(20):
        told = outcome(
            f"d{at}", click=True, variant_id=TEXTS[0].variant_id, reward=made.reward, attribution=never, pool_id="p"
        )
        assert critic.add(told, made, TEXTS[0].slots)
    critic.fit()
    assert critic.view()._references == {}
    assert Arrivals(12, 100).share("conversion", 0, np.array([0, 5]), START_MS).tolist() == [1.0, 1.0]
