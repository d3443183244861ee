"""What comes besides the click: no campaign sets another's scale, no open window is a zero, refunds are no gains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.units import Units, nominal, unit_of
from optimizer.learning.view import CriticView
from optimizer.types import Attribution, Campaign, Candidate, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

HOUR = 3_600_000
CONFIG = CriticConfig(heads=12, steps=12)
WINDOWS = Attribution(click_window_ms=HOUR, conversion_window_ms=100 * HOUR)
VIEWS = Attribution(click_window_ms=HOUR, conversion_window_ms=10 * HOUR, view_through_ms=100 * HOUR)
TEXT = candidate("Run light")
LATER = START_MS + 300 * HOUR


def add(critic: Critic, made: Campaign, name: str, revision: int = 1, text: Candidate = TEXT, **seen: Any) -> None:
    own = {"variant_id": text.variant_id, "attribution": made.attribution, "reward": made.reward}
    ids = {"campaign_id": made.campaign_id, "tenant": made.tenant}
    critic.add(outcome(name, revision, **{**own, **ids, **seen}), made, text.slots)


def score(view: CriticView, made: Campaign, texts: list[Candidate]) -> np.ndarray:
    return view.score(view.encode(made, "all", texts), {})


def fitted(critic: Critic, times: int = 12) -> Critic:
    for _ in range(times):
        critic.fit()
    return critic


def teach(critic: Critic, made: Campaign, sale: dict[str, Any], rates: list[float], count: int = 1_200) -> None:
    """Closed decisions on as many texts as there are rates; a tenth of the clicks become a `sale`."""
    rng = np.random.default_rng(len(made.campaign_id))
    for at in range(count):
        text = candidate(f"{made.campaign_id} says {at % len(rates)}")
        click = rng.random() < rates[at % len(rates)]
        sold = sale if click and rng.random() < 0.1 else {}
        name = f"{made.campaign_id}{at}"
        add(critic, made, name, text=text, click=click, closed=True, as_of=START_MS + 20 * HOUR, **sold)
        if at % 200 == 199:
            critic.fit()


def test_a_neighbour_that_earns_hundreds_by_the_sale_drowns_nobody() -> None:
    cents = campaign(campaign_id="cents", reward=RewardWeights(click=1.0, conversion=1.0), attribution=WINDOWS)
    euros = campaign(
        campaign_id="euros", tenant="acme", reward=RewardWeights(click=1.0, value=1.0), attribution=WINDOWS
    )
    rates = [0.3, 0.05, 0.05, 0.05]
    critic = Critic(CONFIG)
    teach(critic, euros, {"conversions": 1, "value": 500.0}, [0.1] * 4)
    teach(critic, cents, {"conversions": 1}, rates)
    q = score(fitted(critic).view(), cents, [candidate(f"cents says {at}") for at in range(4)])
    np.testing.assert_allclose(q.mean(axis=0), 1.1 * np.array(rates), atol=0.06)
    assert (q.argmax(axis=1) == 0).all()
    dear = score(critic.view(), euros, [candidate(f"euros says {at}") for at in range(4)]).mean(axis=0)
    assert 2.0 < dear.mean() < 12.0  # a click in ten, 500 for one of ten clicks: some 12 sales


@pytest.mark.parametrize("weight", [2.0, -2.0])
def test_a_click_is_worth_what_still_comes_be_it_a_gain_or_a_loss(weight: float) -> None:
    made = campaign(reward=RewardWeights(click=1.0, conversion=weight), attribution=WINDOWS)
    critic = Critic(CONFIG)
    for at in range(400):
        start, sold = START_MS + at * 1_000, at % 2
        at_start: dict[str, Any] = {"click": True, "impression_ts": start}
        add(critic, made, f"h{at}", 1, as_of=start, **at_start)
        add(critic, made, f"h{at}", 2, as_of=start + 50 * HOUR, conversions=sold, **at_start)
        add(critic, made, f"h{at}", 3, as_of=START_MS + 200 * HOUR, conversions=sold, closed=True, **at_start)
    for at in range(400):
        add(critic, made, f"o{at}", as_of=LATER, click=True, impression_ts=LATER)
    fitted(critic)
    _, rewards, _ = critic.feedback(["o0", "h0", "h1"], np.array([1.0]), np.ones(1), made)
    np.testing.assert_allclose(rewards, [1.0 + weight / 2, 1.0, 1.0 + weight], atol=0.15)


def test_few_conversions_do_not_make_the_open_clicks_look_better_than_they_are() -> None:
    """Clicks without conversions, windows open: none is a zero, and none is worth more than those that came."""
    made = campaign(reward=RewardWeights(click=0.25, conversion=3.0), attribution=WINDOWS)
    values = []
    for seed in range(8):
        critic, rng = Critic(CriticConfig(heads=12, seed=seed)), np.random.default_rng(seed)
        sold = rng.random(240) < 0.05
        for at in range(240):
            start = START_MS + at * HOUR // 4
            add(critic, made, f"c{at}", 1, click=True, impression_ts=start, as_of=start)
            if at >= 120 and sold[at - 120]:
                first = START_MS + (at - 120) * HOUR // 4
                add(critic, made, f"c{at - 120}", 2, click=True, conversions=1, impression_ts=first, as_of=start)
            if at % 20 == 19:
                critic.fit()
        values.append(float(score(critic.view(), made, [TEXT]).mean() / score_of_click(critic, made)) - 0.25)
    assert np.mean(values) == pytest.approx(0.15, abs=0.06)


def score_of_click(critic: Critic, made: Campaign) -> float:
    """The click probability of the text."""
    plain = campaign(campaign_id=made.campaign_id, reward=RewardWeights(click=1.0), attribution=made.attribution)
    return float(score(critic.view(), plain, [TEXT]).mean())


def viewed(critic: Critic, made: Campaign, share: float) -> None:
    """Views of which a share converts after 50 hours without a click; the young ones are two hours old."""
    for at in range(400):
        sold = int(at < 400 * share)
        if sold:
            add(critic, made, f"h{at}", 1, as_of=START_MS)
            add(critic, made, f"h{at}", 2, conversions=1, as_of=START_MS + 50 * HOUR)
        add(critic, made, f"h{at}", 3, conversions=sold, closed=True, as_of=START_MS + 200 * HOUR)
    for at in range(1_200):
        add(critic, made, f"o{at}", impression_ts=LATER - 2 * HOUR, as_of=LATER)


def test_a_view_that_may_still_convert_is_no_zero() -> None:
    made = campaign(reward=RewardWeights(click=1.0, conversion=1.0), attribution=VIEWS)
    critic = Critic(CONFIG)
    viewed(critic, made, 0.2)
    assert score(fitted(critic).view(), made, [TEXT]).mean() == pytest.approx(0.2, abs=0.02)
    _, rewards, _ = critic.feedback(["o0", "h0", "h399"], np.array([0.5]), np.ones(1), made)
    np.testing.assert_allclose(rewards, [0.2, 1.0, 0.0], atol=0.02)


def test_views_that_are_over_are_worth_what_they_brought() -> None:
    made = campaign(reward=RewardWeights(click=1.0, conversion=1.0), attribution=VIEWS)
    critic = Critic(CONFIG)
    viewed(critic, made, 0.2)
    for at in range(1_200):
        add(critic, made, f"o{at}", 2, impression_ts=LATER - 2 * HOUR, as_of=LATER + 200 * HOUR, closed=True)
    assert score(fitted(critic).view(), made, [TEXT]).mean() == pytest.approx(80 / 1600, abs=0.01)


def test_open_impressions_teach_what_comes_without_a_click_as_far_as_none_will() -> None:
    """Clicks and views of one campaign, both open: their values stay apart."""
    made = campaign(reward=RewardWeights(click=1.0, conversion=1.0), attribution=VIEWS)
    critic = Critic(CONFIG)
    viewed(critic, made, 0.1)
    for at in range(300):
        add(critic, made, f"n{at}", impression_ts=LATER, as_of=LATER)
        if at < 100:
            add(critic, made, f"n{at}", 2, impression_ts=LATER, as_of=LATER, click=True)
    q = score(fitted(critic).view(), made, [TEXT]).mean()
    click = score_of_click(critic, made)
    assert q == pytest.approx(click + (1 - click) * 0.1, abs=0.02)


def test_a_campaign_that_pays_for_clicks_alone_keeps_its_price() -> None:
    critic = Critic(CONFIG)
    made = campaign(reward=RewardWeights(click=1.0), attribution=WINDOWS)
    teach(critic, made, {"conversions": 1}, [0.2])
    assert critic.price(made) == 1.0
    assert critic.price(campaign(reward=RewardWeights(click=5.0))) == 5.0
    assert critic.price(campaign(reward=RewardWeights(conversion=-3.0))) == 3.0
    assert critic.price(campaign(reward=RewardWeights())) == 1.0


def test_a_price_is_about_what_a_reward_is() -> None:
    made = campaign(campaign_id="euros", reward=RewardWeights(click=1.0, value=1.0), attribution=WINDOWS)
    critic = Critic(CONFIG)
    teach(critic, made, {"conversions": 1, "value": 500.0}, [0.5])
    assert critic.price(made) == pytest.approx(math.sqrt(0.9 + 0.1 * 501.0**2), rel=0.2)


def test_revisions_take_back_what_they_had_added() -> None:
    made = campaign(reward=RewardWeights(click=1.0, conversion=7.0), attribution=WINDOWS)
    twice, once = Critic(CONFIG), Critic(CONFIG)
    for critic in (twice, once):
        for at in range(40):
            if critic is twice:
                add(critic, made, f"d{at}", 1, click=at % 2 == 1, conversions=1)
            add(critic, made, f"d{at}", 2, click=at % 2 == 0, conversions=int(at % 4 == 0), closed=True)
    assert twice.price(made) == pytest.approx(once.price(made))
    for output in ("clicked", "unclicked"):
        tables = [critic._values.units.table(output) for critic in (twice, once)]
        assert tables[0] == pytest.approx(tables[1])


def test_a_new_campaign_begins_with_what_is_usual_for_its_kind() -> None:
    units, known = Units(), campaign(campaign_id="known", reward=RewardWeights(conversion=4.0))
    critic = Critic(CONFIG)
    teach(critic, known, {"conversions": 1}, [1.0])
    units = critic._values.units
    table = units.table("clicked")
    assert table["default/known"] == pytest.approx(4.0 * math.sqrt(0.1), rel=0.2)
    twin = campaign(campaign_id="new", reward=RewardWeights(conversion=8.0))
    assert unit_of(table, twin) == pytest.approx(2 * table["default/known"], rel=1e-6)
    # Amounts of money are another kind, and so is what another tenant pays.
    assert unit_of(table, campaign(campaign_id="new", reward=RewardWeights(value=1.0))) == 1.0
    assert unit_of(table, campaign(campaign_id="new", tenant="acme", reward=RewardWeights(conversion=3.0))) == 3.0
    assert unit_of({}, twin) == 1.0
    assert nominal(RewardWeights(click=9.0, conversion=-2.0, rating=1.0)) == 2.0


def test_the_view_keeps_its_units_over_its_bytes() -> None:
    made = campaign(campaign_id="euros", reward=RewardWeights(click=1.0, value=1.0), attribution=VIEWS)
    critic = Critic(CONFIG)
    teach(critic, made, {"conversions": 1, "value": 500.0}, [0.3, 0.1])
    viewed(critic, made, 0.1)
    view = fitted(critic).view()
    again = CriticView.from_bytes(view.to_bytes(), "v1")
    assert again.version == view.version
    np.testing.assert_array_equal(score(again, made, [TEXT]), score(view, made, [TEXT]))
    assert view.encode(made, "all", [TEXT]).units["clicked"] > 50


def test_a_value_that_is_no_amount_of_money_leaves_numbers() -> None:
    made = campaign(reward=RewardWeights(click=1.0, value=1.0), attribution=WINDOWS)
    critic = Critic(CONFIG)
    teach(critic, made, {"conversions": 1, "value": 500.0}, [0.3])
    add(critic, made, "odd", click=True, conversions=1, value=1e300, closed=True)
    assert np.isfinite(score(fitted(critic).view(), made, [TEXT])).all()
    assert math.isfinite(critic.price(made))
