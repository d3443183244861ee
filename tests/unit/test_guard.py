"""Conversions that come back but are not paid for: clicks without them count less, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.special import expit

from optimizer.errors import StoreError
from optimizer.learning.arrivals import Arrivals
from optimizer.learning.critic import Critic, CriticConfig
from optimizer.learning.features import campaign_name
from optimizer.learning.view import CriticView
from optimizer.maths.guard import (
    LEAST_OTHERS,
    LEAST_OWN,
    MOST_OTHERS,
    PRIOR_TRUST,
    beside_their_time,
    click_worth,
    conversion_evidence,
    conversion_logs,
    lure_slopes,
    shared_rates,
    trust_in_texts,
)
from optimizer.types import Attribution, Campaign, Candidate, RewardWeights
from tests.learning_rig import START_MS, campaign, candidate, outcome

CONFIG = CriticConfig(heads=8, steps=12, spread=1.0)
HONEST, BAIT, POOR = "Run light with Trail Runner 3", "Win a prize today", "Rest warm"
TEXTS = [candidate(text) for text in (HONEST, BAIT, POOR)]
DONE = START_MS + 10**7


def tell(critic: Critic, made: Campaign, name: str, text: Candidate, click: bool, sold: bool, **fields: object) -> None:
    """A decision on a text, with what came of it; all windows over, where `fields` do not say otherwise."""
    defaults: dict[str, object] = {"closed": True, "as_of": DONE, "reward": made.reward, "pool_id": "p"}
    told = {"variant_id": text.variant_id, **defaults, **fields}
    assert critic.add(outcome(name, click=click, conversions=int(sold), **told), made, text.slots)  # type: ignore[arg-type]


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


def test_the_logs_are_of_what_has_come_so_far() -> None:
    said, arrived = np.array([0.4, 0.4, 0.1]), np.array([0.5, 1.0, 0.25])
    logs = conversion_logs(said, np.array([True, False, False]), arrived)
    np.testing.assert_allclose(logs, np.log([0.4, 0.6, 1 - 0.1 * 0.25]))
    # Of a click of which nothing can be known yet nothing is told.
    assert conversion_logs(said, np.zeros(3, bool), np.zeros(3)).tolist() == [0, 0, 0]


def test_evidence_is_held_against_what_knows_nothing_of_texts_and_has_a_floor() -> None:
    text, place, moment = np.log([[0.5, 0.4], [0.2, 0.1], [0.4, 0.4]])
    mixed = np.log((0.2 * 0.1 + 0.4 * 0.4) / 2)
    assert conversion_evidence(text, np.stack([place, moment])) == pytest.approx(np.log(0.5 * 0.4) - mixed)
    assert conversion_evidence(text, place[None]) == pytest.approx(np.log(0.5 * 0.4) - np.log(0.2 * 0.1))
    quiet, bait = np.full(400, -0.1), np.full(60, 0.1)
    assert conversion_evidence(quiet, np.zeros((2, 400))) == pytest.approx(LEAST_OWN)
    # However long nothing was wrong, what comes then counts in full.
    later = conversion_evidence(np.concatenate([quiet, bait]), np.zeros((2, 460)))
    assert later == pytest.approx(LEAST_OWN + 6.0)
    assert conversion_evidence(np.zeros(0), np.zeros((2, 0))) == 0.0


def log_odds(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_trust_is_a_campaigns_own_evidence_and_a_bounded_part_of_its_tenants() -> None:
    assert log_odds(trust_in_texts(np.zeros(1), np.array([0]))[0]) == pytest.approx(PRIOR_TRUST)
    bait, quiet, other = trust_in_texts(np.array([40.0, -4.0, -3.0]), np.array([0, 0, 1]))
    assert log_odds(quiet) == pytest.approx(PRIOR_TRUST - 4.0 + MOST_OTHERS)
    assert bait > 1 - 1e-9
    assert log_odds(other) == pytest.approx(PRIOR_TRUST - 3.0)
    many = trust_in_texts(np.array([0.0, *[-4.0] * 9]), np.zeros(10, np.intp))
    assert log_odds(many[0]) == pytest.approx(PRIOR_TRUST + LEAST_OTHERS)
    assert trust_in_texts(np.zeros(0), np.zeros(0, np.intp)).tolist() == []


@pytest.mark.parametrize(("bait_converts", "low", "high"), [(0.0, 0.99, 1.0), (0.3, 0.0, 0.1)])
def test_trust_grows_with_bait_and_goes_where_texts_convert_alike(
    bait_converts: float, low: float, high: float
) -> None:
    """1,500 clicks on eight texts, one of which is bait or is not; the others convert at 0.3. Eight seeds gave a trust
    of 1.0000 with bait, and of 0.03 at most without."""
    made, critic, rng = campaign(), Critic(CONFIG), np.random.default_rng(7)
    words = ("light", "dry", "fast", "warm", "calm", "bright", "soft")
    texts = [
        TEXTS[1],
        *(candidate(f"Run {word} and {other}") for word, other in zip(words, reversed(words), strict=True)),
    ]
    for at in range(1_500):
        shown = int(rng.integers(len(texts)))
        sold = rng.random() < (bait_converts if shown == 0 else 0.3)
        tell(critic, made, f"d{at}", texts[shown], True, sold)
        if at % 100 == 99:
            critic.fit()
    view = critic.view()
    assert low <= view.trust.text[campaign_name(made)] <= high
    copy = CriticView.from_bytes(view.to_bytes(), "copy")
    assert copy.trust == view.trust
    worth = copy.worth(copy.encode(made, "all", texts))
    assert (worth[0] < 0.2) == (bait_converts == 0.0)


QUIET = [candidate(f"Run {one} and {two}") for one, two in (("light", "soft"), ("dry", "bright"), ("fast", "calm"))]


def lived(critic: Critic, made: Campaign, clicks: int, bait: float, seed: int, **fields: object) -> None:
    """`clicks` clicks, a share `bait` of them on the bait, which never converts; the other texts do at 0.2. A fit for
    every 50."""
    rng = np.random.default_rng(seed)
    for at in range(clicks):
        baited = rng.random() < bait
        text = TEXTS[1] if baited else QUIET[int(rng.integers(len(QUIET)))]
        tell(critic, made, f"{made.campaign_id}-{seed}-{at}", text, True, not baited and rng.random() < 0.2, **fields)
        if at % 50 == 49:
            critic.fit()


def counts(critic: Critic, made: Campaign, texts: list[Candidate]) -> np.ndarray:
    view = critic.view()
    return np.asarray(view.worth(view.encode(made, "all", texts)))


def test_bait_that_has_all_of_the_newest_clicks_is_bait_still() -> None:
    made, critic = campaign(), Critic(CONFIG)
    lived(critic, made, 200, 0.2, 1)
    lived(critic, made, 300, 1.0, 2)
    worth = counts(critic, made, [TEXTS[1], *QUIET])
    assert worth[0] < 0.1
    # A pool of nothing else does not make it the measure.
    assert counts(critic, made, [TEXTS[1], TEXTS[1]])[0] < 0.5


def test_bait_that_comes_after_a_long_quiet_time_is_found_out() -> None:
    made, critic = campaign(), Critic(CONFIG)
    lived(critic, made, 2_000, 0.0, 3)
    assert critic.view().trust.text[campaign_name(made)] < 0.2
    lived(critic, made, 300, 0.7, 4)
    assert counts(critic, made, [TEXTS[1], *QUIET])[0] < 0.3


def test_a_campaign_is_trusted_by_its_own_clicks_and_beside_a_baited_one() -> None:
    baited, quiet, critic = campaign("baited"), campaign("quiet"), Critic(CONFIG)
    lived(critic, baited, 600, 0.4, 5)
    lived(critic, quiet, 1_500, 0.0, 6)
    view = critic.view()
    assert view.trust.text[campaign_name(baited)] > 0.99
    assert view.trust.text[campaign_name(quiet)] < 0.9
    assert view.evidence.text[campaign_name(baited)] > 10
    assert view.evidence.text[campaign_name(quiet)] < 0


def test_clicks_of_which_nothing_can_be_known_yet_are_no_evidence() -> None:
    """Windows are open and no time has passed: what has not converted may still."""
    made, critic = campaign(), Critic(CONFIG)
    for at in range(300):
        tell(critic, made, f"d{at}", TEXTS[at % 2], True, at % 4 == 0, closed=False, as_of=START_MS + 1_000)
        if at % 50 == 49:
            critic.fit()
    open_ = critic.view().evidence.text[campaign_name(made)]
    made, critic = campaign(), Critic(CONFIG)
    for at in range(300):
        tell(critic, made, f"d{at}", TEXTS[at % 2], True, at % 4 == 0)
        if at % 50 == 49:
            critic.fit()
    assert open_ < critic.view().evidence.text[campaign_name(made)] - 5


def test_evidence_is_taken_up_after_a_restart() -> None:
    """The clicks are read again by heads that know nothing yet: of them nothing is told a second time."""
    made, critic = campaign(), Critic(CONFIG)
    lived(critic, made, 1_000, 0.0, 7)
    view = critic.view()
    again = Critic(CONFIG)
    again.resume(view.evidence)
    rng = np.random.default_rng(7)
    for at in range(1_000):
        rng.random()
        text = QUIET[int(rng.integers(len(QUIET)))]
        tell(again, made, f"{made.campaign_id}-7-{at}", text, True, rng.random() < 0.2)
    again.fit()
    for now, before in zip(again.view().trust, view.trust, strict=True):
        assert now == pytest.approx(before)


def test_clicks_that_can_not_convert_any_more_say_nothing_of_their_text() -> None:
    made, critic = campaign(), Critic(CONFIG)
    lived(critic, made, 300, 0.0, 8)
    before = counts(critic, made, [TEXTS[1], *QUIET])
    never = Attribution(click_window_ms=3_600_000, conversion_window_ms=0)
    lived(critic, made, 100, 1.0, 9, attribution=never)
    # They are clicks all the same, so that the text draws more now.
    np.testing.assert_allclose(counts(critic, made, [TEXTS[1], *QUIET]), before, atol=0.25)


def test_a_segment_without_clicks_has_the_campaigns_measure() -> None:
    made, critic = campaign(segments=("all", "young")), Critic(CONFIG)
    lived(critic, made, 500, 0.4, 10, context={"segment": "all"})
    view = critic.view()
    assert view.worth(view.encode(made, "young", [TEXTS[1], *QUIET]))[0] < 0.3


def test_a_sale_makes_no_bait_of_texts_that_are_shown_throughout() -> None:
    """In turn a sale and none, every 240 clicks; all texts convert alike at any moment."""
    made, critic, rng = campaign(), Critic(CONFIG), np.random.default_rng(1)
    for at in range(960):
        sold = rng.random() < (0.3, 0.1)[at // 240 % 2]
        tell(critic, made, f"d{at}", POOL[int(rng.integers(10))], True, sold)
        if at % 40 == 39:
            critic.fit()
    assert counts(critic, made, POOL[:10]).min() > 0.6


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


WORDS = ("light", "warm", "bold", "calm", "fresh", "quick", "soft", "bright", "steady", "wild", "clean", "kind")
POOL = [candidate(f"{one} days, {other} roads") for one in WORDS for other in WORDS[:4] if one != other]


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


FourArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def drawn(rng: np.random.Generator, slope: float, arrived: float = 1.0, n: int = 4_000) -> FourArrays:
    """Offset, lure, converted and arrived of n clicks that convert with a slope; of those conversions a share has
    come."""
    offset, lure = np.full(n, -1.0), rng.normal(size=n)
    converted = (rng.random(n) < expit(offset + slope * lure)) & (rng.random(n) < arrived)
    return offset, lure, converted, np.full(n, arrived)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("arrived", [1.0, 0.3])
def test_the_slope_is_found_also_before_all_conversions_have_come(slope: float, arrived: float) -> None:
    clicks_ = drawn(np.random.default_rng(3), slope, arrived)
    found = lure_slopes(*clicks_, np.zeros(4_000, np.intp), np.zeros(1, np.intp))
    assert found == pytest.approx([slope], abs=0.15)


def test_a_tenants_campaigns_teach_each_other_a_slope_and_other_tenants_do_not() -> None:
    """Campaigns 0 and 1 are baited, 2 is their tenant's and has few clicks, 3 is another tenant's with as few."""
    rng = np.random.default_rng(4)
    parts = [drawn(rng, slope, n=n) for slope, n in ((-1.5, 2_000), (-1.5, 2_000), (0.0, 20), (0.0, 20))]
    offset, lure, converted, arrived = (np.concatenate(each) for each in zip(*parts, strict=True))
    owners = np.repeat(np.arange(4), [2_000, 2_000, 20, 20])
    found = lure_slopes(offset, lure, converted, arrived, owners, np.array([0, 0, 0, 1]))
    assert found[:2] == pytest.approx([-1.5, -1.5], abs=0.2)
    alone = lure_slopes(*parts[3], np.zeros(20, np.intp), np.zeros(1, np.intp))
    assert found[3] == pytest.approx(alone[0])
    own = lure_slopes(*parts[2], np.zeros(20, np.intp), np.zeros(1, np.intp))
    assert -1.5 < found[2] < own[0] - 0.3


def test_neither_a_trend_nor_a_place_is_taken_for_a_slope() -> None:
    """Conversions fall from .4 to .1 while better texts are found, in one place; in another they are thrice as many and
    all texts more clicked. In either a text makes no difference."""
    rng = np.random.default_rng(5)
    n = 4_000
    time, place = np.arange(n) / n, rng.integers(2, size=n)
    rate = np.where(place == 1, 0.8, 0.4 - 0.3 * time)
    lure = rng.normal(size=n) + 2.0 * time + 2.0 * place
    converted = rng.random(n) < rate
    offset, beside = beside_their_time(place, converted, np.ones(n), lure)
    found = lure_slopes(offset, beside, converted, np.ones(n), np.zeros(n, np.intp), np.zeros(1, np.intp))
    assert found == pytest.approx([0.0], abs=0.15)
    first = place == 0
    flat = np.full(first.sum(), log_odds(float(rate[first].mean())))
    of = np.zeros(first.sum(), np.intp)
    assert lure_slopes(flat, lure[first], converted[first], np.ones(first.sum()), of, of[:1])[0] < -0.15
    np.testing.assert_allclose(expit(offset[place == 1]), 0.8, atol=0.15)
