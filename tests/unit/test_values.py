"""What comes besides the click: no campaign sets another's scale, no open window is a zero, refunds are no gains."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load, save

from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.units import USUAL, Units, nominal, signed, unit_of
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


def test_before_any_conversion_is_told_nobody_shuns_clicks() -> None:
    """Where sales are paid for and none has been told, no draw of what they bring makes a click a loss."""
    made = campaign(reward=RewardWeights(click=0.25, conversion=3.0), attribution=WINDOWS)
    texts = [candidate("c1 says 0"), candidate("c1 says 1")]
    for seed in range(4):
        critic = Critic(CriticConfig(heads=12, seed=seed))
        for at in range(400):
            start = START_MS + at * 1_000
            click = at % 20 < 6 if at % 2 == 0 else at % 20 == 1
            own: dict[str, Any] = {"text": texts[at % 2], "click": click, "impression_ts": start}
            add(critic, made, f"d{at}", 1, as_of=start, **own)
            if at % 50 == 49:
                critic.fit()
        q = score(critic.view(), made, texts)
        assert (q >= 0).all()
        assert (q[:, 0] > q[:, 1]).mean() >= 0.9


def test_a_draw_has_the_sign_that_the_weights_agree_on() -> None:
    draws = np.array([-2.0, 0.5])
    for reward, wanted in (
        (RewardWeights(conversion=1.0, value=2.0), [0.0, 0.5]),
        (RewardWeights(conversion=-1.0), [-2.0, 0.0]),
        (RewardWeights(conversion=-1.0, value=2.0), [-2.0, 0.5]),
        (RewardWeights(click=5.0), [0.0, 0.0]),
    ):
        np.testing.assert_array_equal(signed(draws, reward), wanted)


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


def test_what_open_impressions_have_earned_counts_as_far_as_no_click_will_come() -> None:
    """Every impression is rated 1 at once; half of them will be clicked, and none has been yet."""
    made = campaign(reward=RewardWeights(click=1.0, rating=1.0), attribution=WINDOWS)
    critic = Critic(CONFIG)
    for at in range(400):
        own: dict[str, Any] = {"impression_ts": START_MS, "click": at % 2 == 0}
        add(critic, made, f"h{at}", 1, as_of=START_MS, impression_ts=START_MS, rating=1.0)
        add(critic, made, f"h{at}", 2, as_of=START_MS + HOUR // 2, rating=1.0, **own)
        add(critic, made, f"h{at}", 3, as_of=START_MS + 200 * HOUR, rating=1.0, closed=True, **own)
    for at in range(400):
        add(critic, made, f"o{at}", impression_ts=LATER, as_of=LATER, rating=1.0)
    click = score_of_click(fitted(critic), made)
    assert click > 0.35
    assert score(critic.view(), made, [TEXT]).mean() == pytest.approx(click + 1.0, abs=0.1)


def test_ratings_that_have_come_are_not_waited_for_again() -> None:
    made = campaign(reward=RewardWeights(rating=1.0), attribution=VIEWS)
    critic = Critic(CONFIG)
    for at in range(300):
        add(critic, made, f"c{at}", impression_ts=LATER, as_of=LATER, click=at % 2 == 0, rating=1.0)
    fitted(critic)
    _, rewards, _ = critic.feedback(["c0", "c1"], np.array([1.0]), np.ones(1), made)
    np.testing.assert_allclose(rewards, [1.0, 1.0], atol=0.05)


@pytest.mark.parametrize("count", ["first", "all"])
def test_conversions_come_as_often_as_they_count(count: Literal["first", "all"]) -> None:
    """On average two conversions of each click, evenly over four days; the clicks are at most thirty hours old."""
    made = campaign(
        reward=RewardWeights(conversion=1.0),
        attribution=Attribution(click_window_ms=HOUR, conversion_window_ms=100 * HOUR, count=count),
    )
    critic, rng = Critic(CONFIG), np.random.default_rng(1)
    told = []
    for at in range(1_500):
        start = START_MS if at < 300 else START_MS + 300 * HOUR + int(rng.uniform(0, 30 * HOUR))
        times = np.sort(rng.uniform(0, 100 * HOUR, rng.poisson(2.0)))
        told.append((start, at, 1, 0, start))
        told += [(start + int(time), at, 2 + k, k + 1, start) for k, time in enumerate(times)]
        told.append((start + 101 * HOUR, at, 9, len(times), start))
    for when, at, revision, conversions, start in sorted(told):
        if when > START_MS + 330 * HOUR:
            break
        counted = min(conversions, 1) if count == "first" else conversions
        own: dict[str, Any] = {"click": True, "impression_ts": start, "conversions": counted, "closed": revision == 9}
        add(critic, made, f"c{at}", revision, as_of=when, **own)
    truth = 2.0 if count == "all" else 1.0 - math.exp(-2.0)
    value = critic_value(fitted(critic), made)
    assert value == pytest.approx(truth, rel=0.12)


def critic_value(critic: Critic, made: Campaign) -> float:
    """What a click on the text brings besides itself."""
    features = critic.view().encode(made, "all", [TEXT])
    offset = critic.view()._outputs["clicked"].offset
    return float((features.base["clicked"].mean() + offset) * features.units["clicked"])


def test_a_view_through_window_inside_the_click_window_is_watched_too() -> None:
    both = Attribution(click_window_ms=100 * HOUR, conversion_window_ms=HOUR, view_through_ms=100 * HOUR)
    made = campaign(reward=RewardWeights(click=1.0, conversion=1.0), attribution=both)
    critic, rng = Critic(CONFIG), np.random.default_rng(2)
    now = START_MS + 300 * HOUR
    for at in range(4_000):
        start = START_MS + 10 if at < 500 else now - int(rng.uniform(0, 30 * HOUR))
        add(critic, made, f"v{at}", 1, impression_ts=start, as_of=start)
        sold = start + int(rng.uniform(0, 100 * HOUR)) if rng.random() < 0.2 else now + 1
        if sold <= now:
            add(critic, made, f"v{at}", 2, impression_ts=start, as_of=sold, conversions=1)
        if at < 500:
            own: dict[str, Any] = {"conversions": int(sold <= now), "closed": True}
            add(critic, made, f"v{at}", 3, impression_ts=start, as_of=start + 101 * HOUR, **own)
    add(critic, made, "now", impression_ts=now, as_of=now)
    fitted(critic)
    assert critic._values._viewing == pytest.approx(0.2, abs=0.06)
    assert score(critic.view(), made, [TEXT]).mean() == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("weight", [0.01, 1.0, 500.0])
def test_a_campaign_that_is_met_between_two_copies_is_measured_as_it_is(weight: float) -> None:
    old = campaign(campaign_id="old", reward=RewardWeights(conversion=weight), attribution=WINDOWS)
    new = campaign(campaign_id="new", reward=RewardWeights(conversion=weight), attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=12, steps=12, target_every=50))
    for at in range(200):
        add(critic, old, f"h{at}", click=True, conversions=int(at % 5 > 0), closed=True, as_of=LATER)
    fitted(critic, 1)
    for at in range(300):
        add(critic, new, f"n{at}", click=True, impression_ts=LATER, as_of=LATER)
    assert critic_value(fitted(critic), new) == pytest.approx(0.8 * weight, rel=0.25)


def test_a_sale_by_view_is_not_counted_again_with_the_click_that_may_come() -> None:
    made = campaign(reward=RewardWeights(click=1.0, conversion=1.0), attribution=VIEWS)
    critic = Critic(CONFIG)
    for at in range(400):
        add(critic, made, f"h{at}", click=at % 2 == 0, conversions=at % 2, closed=True, as_of=START_MS + 200 * HOUR)
    add(critic, made, "sold", impression_ts=LATER, as_of=LATER, conversions=1)
    fitted(critic)
    coming = score_of_click(critic, made)
    _, rewards, _ = critic.feedback(["sold"], np.array([1.0]), np.ones(1), made)
    assert rewards[0] == pytest.approx(1.0 + coming, abs=0.05)


def test_a_campaign_that_pays_for_clicks_alone_keeps_its_price() -> None:
    critic = Critic(CONFIG)
    made = campaign(reward=RewardWeights(click=1.0), attribution=WINDOWS)
    teach(critic, made, {"conversions": 1}, [0.2])
    assert critic.price(made) == 1.0
    assert critic.price(campaign(reward=RewardWeights(click=5.0))) == 5.0
    assert critic.price(campaign(reward=RewardWeights(conversion=-3.0))) == 3.0
    assert critic.price(campaign(reward=RewardWeights())) == 1.0
    # Also where it has paid for more before.
    before = campaign(campaign_id="euros", reward=RewardWeights(click=1.0, value=1.0), attribution=WINDOWS)
    teach(critic, before, {"conversions": 1, "value": 500.0}, [0.2])
    assert critic.price(before) > 10.0
    assert critic.price(campaign(campaign_id="euros", reward=RewardWeights(click=1.0))) == 1.0


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
    assert unit_of(table, campaign(campaign_id="new", reward=RewardWeights(value=1.0))) == USUAL
    other = campaign(campaign_id="new", tenant="acme", reward=RewardWeights(conversion=3.0))
    assert unit_of(table, other) == pytest.approx(3.0 * USUAL)
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
    # Whoever reads versions without units finds these outputs untrained, not in another unit.
    assert {"clicked.weights", "unclicked.weights"}.isdisjoint(load(view.to_bytes()))


def test_values_of_a_version_from_before_there_were_units_are_in_reward() -> None:
    made = campaign(reward=RewardWeights(click=1.0, conversion=7.0), attribution=WINDOWS)
    critic = Critic(CONFIG)
    teach(critic, made, {"conversions": 1}, [0.3, 0.1])
    view = fitted(critic).view()
    unit = view.encode(made, "all", [TEXT]).units["clicked"]
    tensors = load(view.to_bytes())
    old = {name: value for name, value in tensors.items() if "unit" not in name}
    old["clicked.weights"] = tensors["clicked_in_units.weights"] * np.float32(unit)
    old["clicked.scale"] = tensors["clicked_in_units.scale"] * np.float32(unit)
    old["clicked.prior"] = tensors["clicked_in_units.prior"] * [1.0, unit]
    again = CriticView.from_bytes(save(old), "v1")
    texts = [candidate("c1 says 0"), candidate("never met before")]
    np.testing.assert_allclose(score(again, made, texts), score(view, made, texts), rtol=1e-4)


def test_a_value_that_is_no_amount_of_money_leaves_numbers() -> None:
    made = campaign(reward=RewardWeights(click=1.0, value=1.0), attribution=WINDOWS)
    critic = Critic(CONFIG)
    teach(critic, made, {"conversions": 1, "value": 500.0}, [0.3])
    add(critic, made, "odd", click=True, conversions=1, value=1e300, closed=True)
    assert np.isfinite(score(fitted(critic).view(), made, [TEXT])).all()
    assert math.isfinite(critic.price(made))


def test_the_target_network_says_what_it_said_when_it_was_copied_whatever_the_unit_is_now() -> None:
    made = campaign(reward=RewardWeights(value=1.0), attribution=WINDOWS)
    critic = Critic(CriticConfig(heads=12, steps=12, target_every=50))
    texts = [candidate(f"c1 says {at}") for at in range(4)]
    for at in range(400):
        sold = int(at % 4 == 0)
        add(critic, made, f"h{at}", text=texts[at % 4], click=True, conversions=sold, value=1.0 * sold, closed=True)
    critic.fit()
    values = critic._values
    values.frozen()
    critic._target = {name: heads.weights() for name, heads in critic._outputs.items()}

    def beside() -> np.ndarray:
        """What is expected of each text beside the average."""
        rows = np.arange(4)
        expected = values._expected("clicked", critic._rows.matrix(rows), rows, critic._predict_target)
        return np.asarray(expected.mean(axis=1) - values.means["clicked"] * values._units("clicked", rows))

    before = beside()
    for at in range(50):
        add(critic, made, f"dear{at}", text=texts[1], click=True, conversions=1, value=500.0, closed=True)
    assert values.units.table("clicked")["default/c1"] > 100.0
    assert np.ptp(before) > 0.1
    np.testing.assert_allclose(beside(), before, rtol=1e-3, atol=1e-3)
