"""Whether a campaign's texts convert differently: the slopes, the evidence of it, and how far that is trusted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from optimizer.learning.critic import Critic
from optimizer.learning.features import campaign_name
from optimizer.learning.view import CriticView
from optimizer.maths.guard import (
    LEAST_OTHERS,
    LEAST_OWN,
    MOST_OTHERS,
    PRIOR_TRUST,
    beside_their_time,
    conversion_evidence,
    conversion_logs,
    lure_slopes,
    trust_in_texts,
)
from optimizer.types import Attribution, Campaign, Candidate
from tests.guard_rig import CONFIG, POOL, TEXTS, tell
from tests.learning_rig import START_MS, campaign, candidate


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
