"""The market world: the contract's promises, its ear for language, hidden tastes with room to learn, its oracle."""

from __future__ import annotations

import json
import random
import re
from functools import cache

import numpy as np
import pytest

from optimizer.errors import ConfigError
from optimizer.learning.corpus import generate_corpus
from optimizer.learning.prompt import fill
from optimizer.types import Campaign, Product
from simulators.worlds import load_world, taste
from simulators.worlds.language import Language
from simulators.worlds.market import SEGMENTS, Market
from simulators.worlds.oracle import best_text
from simulators.worlds.people import saturated


@cache
def market() -> Market:
    return Market(1)


@cache
def language() -> Language:
    return Language((taste.DATA / "reference.txt").read_text(encoding="utf-8").splitlines())


@cache
def copy() -> tuple[str, ...]:
    """Fresh headlines from another seed than the reference's, placeholders still in them."""
    rows = generate_corpus(4242, 4_000)
    return tuple(row.slots["headline"] for row in rows if "headline" in row.slots and "[fact]" not in str(row.slots))


def ads(campaign_id: str, texts: tuple[str, ...]) -> list[str]:
    body = market().campaigns()[campaign_id]
    own = body["product"]
    product = Product(own["name"], own.get("brand", ""), own["category"], own.get("price", ""))
    filled = (fill(Campaign(campaign_id, product, ()), text) for text in texts)
    return [text for text in filled if "[" not in text and len(text) <= 80]


def test_the_registry_knows_the_market_and_says_what_it_knows() -> None:
    assert isinstance(load_world("market", 3), Market)
    assert isinstance(load_world("simulators.worlds.market:Market", 3), Market)
    with pytest.raises(ConfigError, match="market"):
        load_world("no-such-world", 1)


def test_the_same_seed_and_calls_give_the_same_people() -> None:
    def story(world: Market) -> str:
        told = []
        for _ in range(300):
            campaign_id, context = world.arrive()
            slots = world.campaigns()[campaign_id]["controls"][0]
            told.append((campaign_id, context, world.respond(campaign_id, context, slots)))
        return json.dumps(told)

    assert story(Market(5)) == story(Market(5))
    assert story(Market(5)) != story(Market(6))


def test_arrivals_do_not_depend_on_what_was_shown() -> None:
    quiet, busy = Market(5), Market(5)
    for _ in range(200):
        campaign_id, context = quiet.arrive()
        assert busy.arrive() == (campaign_id, context)
        busy.respond(campaign_id, context, {"headline": "Brew something worth waking for."})


def test_only_arrive_and_respond_change_the_state() -> None:
    looked, left = Market(7), Market(7)
    for _ in range(50):
        campaign_id, context = looked.arrive()
        assert left.arrive() == (campaign_id, context)
        slots = {"headline": "Here's to slow mornings."}
        looked.click_rate(campaign_id, context, slots)
        looked.true_rate(campaign_id, context, slots)
        looked.valid(campaign_id, slots)
        looked.campaigns()[campaign_id]["product"]["name"] = "changed"
        assert looked.respond(campaign_id, context, slots) == left.respond(campaign_id, context, slots)


def test_campaigns_have_what_put_needs_and_controls_are_good_copy() -> None:
    world = market()
    assert len(world.campaigns()) == 8
    for campaign_id, body in world.campaigns().items():
        assert body["product"]["name"]
        assert body["segments"] == list(SEGMENTS)
        for control in body["controls"]:
            assert world.valid(campaign_id, control), control


def test_contexts_hold_their_segment_and_all_hours_come_up() -> None:
    world = Market(2)
    contexts = [world.arrive()[1] for _ in range(3_000)]
    assert {context["segment"] for context in contexts} == set(SEGMENTS)
    assert {context["hour"] for context in contexts} == set(range(24))
    assert all(isinstance(value, str | int) for context in contexts for value in context.values())


def test_clicks_come_at_the_true_rate_and_what_follows_comes_later() -> None:
    """20,000 responses: the count stays within 5 standard deviations of its mean (chance of a failure below 1e-6)."""
    world = Market(3)
    slots = {"headline": "Remember the first sip?"}
    expected = variance = clicks = 0.0
    delays, conversions = [], []
    for _ in range(20_000):
        campaign_id, context = world.arrive()
        rate = world.click_rate(campaign_id, context, slots)
        expected += rate
        variance += rate * (1 - rate)
        events = world.respond(campaign_id, context, slots)
        if events:
            kinds = [kind for kind, _, _ in events]
            assert kinds in (["click"], ["click", "conversion"])
            clicks += 1
            delays.append(events[0][1])
            conversions += [(later - events[0][1], value) for _, later, value in events[1:]]
    assert abs(clicks - expected) < 5 * variance**0.5
    assert min(delays) >= 0
    assert max(delays) < 1_800_000
    assert 5_000 < np.median(delays) < 60_000
    assert conversions
    assert np.median([delay for delay, _ in conversions]) > 3_600_000
    assert all(value > 0 for _, value in conversions)


def test_control_clicks_at_three_to_four_percent_and_the_oracle_far_above() -> None:
    world = market()
    rate = sum(
        share * np.mean([world.click_rate(campaign_id, {"segment": segment}, slots) for slots in body["controls"]])
        for campaign_id, body in world.campaigns().items()
        for segment, share in world.shares(campaign_id).items()
    )
    assert 0.03 <= rate <= 0.04
    assert 0.35 <= world.oracle_rate() <= 0.7
    assert world.oracle_reward() >= world.oracle_rate()


def test_no_random_ad_beats_the_oracle_and_typical_ads_are_near_control() -> None:
    world = market()
    means, found = [], []
    for campaign_id in world.campaigns():
        texts = ads(campaign_id, copy())
        for segment, share in world.shares(campaign_id).items():
            rates = np.array(
                [world.click_rate(campaign_id, {"segment": segment}, {"headline": text}) for text in texts]
            )
            means.append(share * rates.mean())
            found.append(share * rates.max())
    assert 0.015 <= sum(means) <= 0.06
    assert 2 * sum(means) < sum(found) < world.oracle_rate()


def test_segments_and_seeds_like_different_texts() -> None:
    texts = ads("first-hive", copy())[:400]

    def liked(world: Market, segment: str) -> list[float]:
        return [world.click_rate("first-hive", {"segment": segment}, {"headline": text}) for text in texts]

    by_segment = np.corrcoef([liked(market(), segment) for segment in SEGMENTS])
    assert by_segment[np.triu_indices(4, 1)].max() < 0.9
    by_seed = np.corrcoef([liked(Market(seed), "parents") for seed in range(1, 6)])
    assert by_seed[np.triu_indices(5, 1)].max() < 0.75


def test_ill_formed_text_earns_far_less_than_control_whatever_it_says() -> None:
    world = market()
    for campaign_id, body in world.campaigns().items():
        for segment in SEGMENTS:
            context = {"segment": segment}
            control = max(world.click_rate(campaign_id, context, slots) for slots in body["controls"])
            for nonsense in (
                "calm calm calm calm",
                "Of the the quiet a with",
                "Xqzt vbrk wlmpf",
                "Joy love peace calm fun",
            ):
                assert world.click_rate(campaign_id, context, {"headline": nonsense}) < 0.5 * control


def test_device_position_and_hour_matter_and_average_out() -> None:
    world = market()
    slots = {"headline": "Remember the first sip?"}
    context = {"segment": "parents", "device": "mobile", "position": "top", "hour": 9}
    rate = world.click_rate("morning-ember", context, slots)
    assert rate > world.click_rate("morning-ember", {**context, "position": "bottom"}, slots)
    hours = [world.click_rate("morning-ember", {**context, "hour": hour}, slots) for hour in range(24)]
    assert max(hours) > 1.3 * min(hours)
    mean = world.click_rate("morning-ember", {"segment": "parents"}, slots)
    assert min(hours) * 0.5 < mean < max(hours)


def test_copy_for_other_goods_earns_less() -> None:
    world, context = market(), {"segment": "students"}
    own = world.click_rate("trail-runner", context, {"headline": "Remember the finish line?"})
    other = world.click_rate("trail-runner", context, {"headline": "Remember the kettle?"})
    assert own > 1.5 * other


def test_likes_saturate() -> None:
    values = saturated(np.linspace(-3, 30, 200), 6.0)
    assert np.all(np.diff(values) >= 0)
    assert values.max() <= 6.0
    once = taste.features("Calm.")[taste.names().index("topic calm")]
    more = taste.features("Calm and quiet and peace and breath.")[taste.names().index("topic calm")]
    assert once < more < 2 * once


# The ear for language.


def test_good_copy_sounds_right() -> None:
    flagged = [(text, language().flaws(text)) for text in copy() if language().flaws(text)]
    assert len(flagged) <= 0.005 * len(copy()), flagged


def test_shuffled_words_do_not() -> None:
    rng = random.Random(1)
    shuffled = []
    for text in copy():
        words = text.split()
        if len(words) >= 4:
            mixed = rng.sample(words, len(words))
            if mixed != words:
                shuffled.append(" ".join(mixed))
    heard = sum(bool(language().flaws(text)) for text in shuffled)
    assert len(shuffled) > 1_000
    assert heard >= 0.95 * len(shuffled)


def test_sentences_cut_off_after_a_small_word_do_not() -> None:
    cut = set()
    for text in copy():
        words = text.split()
        cut |= {
            " ".join(words[:at]) for at in range(2, len(words)) if words[at - 1] in {"the", "a", "and", "your", "of"}
        }
    heard = sum(bool(language().flaws(text)) for text in cut)
    assert heard >= 0.98 * len(cut)


@pytest.mark.parametrize(
    "text",
    [
        "Calm, quiet, peace, stillness, slow, rest.",
        "Comfort. Calm. Peace. Joy. Love.",
        "Time gift smile laugh story quiet family calm",
        "Fun fun fun for all",
        "asdf qwerty zxcv blorp",
        "Xqzt vbrk wlmpf krnt",
        "Meet [product] and {thing}.",
        "run the river path",
        "Run the river path,",
        "Run the river. path",
        "Run the the river path.",
        "RUN THE RIVER PATH TODAY",
        "",
        "...",
    ],
)
def test_stuffing_gibberish_and_broken_marks_do_not(text: str) -> None:
    assert language().flaws(text)


@pytest.mark.parametrize(
    "text",
    [
        "[product]: light and waterproof",
        "Try [product] today and feel the difference.",
        "Coffee that makes early mornings easier.",
        "Learn Spanish in ten minutes a day.",
        "Sleep well. Wake up ready.",
        "Why do dogs love dinner time? Find out with [product].",
        "Everything a new beekeeper needs, in one box.",
        "A good night's sleep starts with [product].",
    ],
)
def test_a_copywriters_own_lines_sound_right(text: str) -> None:
    assert language().flaws(text) == []


def test_valid_wants_the_campaigns_slots_and_no_placeholder() -> None:
    world = market()
    assert world.valid("parlo", {"headline": "Say hello properly with Parlo."})
    assert not world.valid("parlo", {"headline": "Say hello properly with [product]."})
    assert not world.valid("parlo", {"title": "Say hello properly with Parlo."})
    assert not world.valid("parlo", {"headline": "Say hello properly with Parlo. " * 4})


def test_the_search_finds_the_best_pair_in_a_small_case() -> None:
    """Two topics and one tone: the best text says both topics in two sentences, and an exhaustive search agrees."""
    lines = ["Say a", "Say b", "Say c!", "Say nothing."]
    matrix = np.array([[0.6, 0.0, 0.0], [0.0, 0.6, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    weights = np.array([1.0, 2.0, -1.0])

    def read(text: str) -> float:
        said = np.array([0.6 * ("Say a" in text), 0.6 * ("Say b" in text), float("!" in text)])
        return float(said @ weights)

    value, text = best_text(lines, matrix, lambda rows: rows @ weights, read, lambda text: True, 2)
    assert value == pytest.approx(1.8)
    assert set(re.findall(r"Say \w+", text)) >= {"Say a", "Say b"}
    with pytest.raises(ValueError, match="no line is allowed"):
        best_text(lines, matrix, lambda rows: rows @ weights, read, lambda text: False, 2)


def test_the_world_imports_nothing_of_what_it_judges() -> None:
    for name in ("people", "catalogue", "taste", "language", "oracle"):
        source = (taste.DATA.parent / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(r"^\s*(?:from|import) (?:optimizer|serving)", source, re.MULTILINE), name
