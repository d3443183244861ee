"""Every world of `--world`: the contract's promises (contracts section 6), and that its trick is really there."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest

from simulators.worlds import WORLDS, World, load_world, taste
from simulators.worlds.cold import Cold
from simulators.worlds.conversions import BAITS, Delay, Proxy
from simulators.worlds.drift import Drift
from simulators.worlds.fatigue import Fatigue
from simulators.worlds.market import Market
from simulators.worlds.people import reference_features
from simulators.worlds.phrases import Phrases

NAMES = sorted(WORLDS)
NONSENSE = ("calm calm calm calm", "Of the the quiet a with", "Xqzt vbrk wlmpf", "Joy love peace calm fun")


@cache
def world(name: str) -> World:
    """One that only `click_rate`, `valid` and the oracle are asked of."""
    return load_world(name, 1)


@cache
def lines() -> tuple[str, ...]:
    """Some lines of good copy that name nothing."""
    every = (taste.DATA / "reference.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in every if "[" not in line)[::7]


def places(some: World) -> Iterator[tuple[str, str]]:
    for campaign_id, body in some.campaigns().items():
        yield from ((campaign_id, segment) for segment in body["segments"])


@pytest.mark.parametrize("name", NAMES)
def test_campaigns_have_what_put_needs_and_controls_are_well_formed(name: str) -> None:
    for campaign_id, body in world(name).campaigns().items():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}", campaign_id)
        assert body["product"]["name"]
        assert body["segments"]
        wanted = {slot["name"]: slot["max_chars"] for slot in body["slots"]}
        for control in body["controls"]:
            assert control.keys() == wanted.keys()
            assert world(name).valid(campaign_id, control), control


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_and_calls_give_the_same_people(name: str) -> None:
    def story(seed: int) -> str:
        told: list[Any] = []
        some = load_world(name, seed)
        bodies = some.campaigns()
        for _ in range(300):
            campaign_id, context = some.arrive()
            assert context["segment"] in bodies[campaign_id]["segments"]
            assert all(isinstance(value, str | int | float | bool) for value in context.values())
            events = some.respond(campaign_id, context, bodies[campaign_id]["controls"][0])
            told.append((campaign_id, context, events))
        return json.dumps(told)

    assert story(5) == story(5)
    assert story(5) != story(6)


@pytest.mark.parametrize("name", NAMES)
def test_only_arrive_and_respond_change_the_state(name: str) -> None:
    """Two worlds live the same life; one of them is asked many questions besides."""
    looked, left = load_world(name, 7), load_world(name, 7)
    for at in range(120):
        campaign_id, context = looked.arrive()
        assert left.arrive() == (campaign_id, context)
        slots = {"headline": lines()[at % 9]}
        rate = looked.click_rate(campaign_id, context, slots)
        assert looked.click_rate(campaign_id, context, slots) == rate
        looked.valid(campaign_id, slots)
        if (true_rate := getattr(looked, "true_rate", None)) is not None:
            true_rate(campaign_id, context, slots)
        looked.campaigns()[campaign_id]["product"]["name"] = "changed"
        if at == 60:
            assert isinstance(looked, Market)
            looked.best_rate(campaign_id, context["segment"])
            # The search takes a second or more; these have an oracle of their own.
            if name in ("market", "drift", "fatigue", "proxy"):
                assert looked.oracle_reward() >= 0.0 <= looked.oracle_rate()
        assert left.click_rate(campaign_id, context, slots) == rate
        assert looked.respond(campaign_id, context, slots) == left.respond(campaign_id, context, slots)


@pytest.mark.parametrize("name", NAMES)
def test_arrivals_do_not_depend_on_what_was_shown(name: str) -> None:
    quiet, busy = load_world(name, 5), load_world(name, 5)
    for at in range(200):
        campaign_id, context = quiet.arrive()
        assert busy.arrive() == (campaign_id, context)
        busy.respond(campaign_id, context, {"headline": lines()[at]})


@pytest.mark.parametrize("name", NAMES)
def test_events_are_in_order_of_what_they_follow(name: str) -> None:
    some = load_world(name, 3)
    for at in range(3_000):
        campaign_id, context = some.arrive()
        events = some.respond(campaign_id, context, {"headline": lines()[at % 50]})
        kinds = [kind for kind, _, _ in events]
        assert kinds in ([], ["click"], ["click", "conversion"])
        assert all(after >= 0 and value >= 0 for _, after, value in events)
        assert all(type(after) is int for _, after, _ in events)
        assert [after for _, after, _ in events] == sorted(after for _, after, _ in events)


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_earns_less_than_half_of_control(name: str) -> None:
    some = world(name)
    for campaign_id, body in some.campaigns().items():
        rates = {
            segment: [some.click_rate(campaign_id, {"segment": segment}, slots) for slots in body["controls"]]
            for segment in body["segments"]
        }
        control = np.mean([np.mean(own) for own in rates.values()])
        for text in NONSENSE:
            assert not some.valid(campaign_id, {"headline": text})
            earned = [some.click_rate(campaign_id, {"segment": segment}, {"headline": text}) for segment in rates]
            assert np.mean(earned) < 0.5 * control


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_good_copy_beats_the_oracle_anywhere(name: str) -> None:
    """Nor does any line with another behind it; the oracle is a rate of real texts."""
    some = world(name)
    assert isinstance(some, Market)
    rng = np.random.default_rng(1)
    every = list(places(some))
    for campaign_id, segment in every[:: len(every) // 6]:
        best = some.best_rate(campaign_id, segment)
        assert 0.0 < best < 1.0
        joined = [f"{lines()[i].rstrip('.')}. {lines()[j]}" for i, j in rng.integers(len(lines()), size=(150, 2))]
        for text in (*lines()[::3], *joined):
            assert some.click_rate(campaign_id, {"segment": segment}, {"headline": text}) <= best + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_imports_nothing_of_what_it_judges(name: str) -> None:
    module = inspect.getmodule(type(world(name)))
    assert module is not None
    assert not re.search(r"^\s*(?:from|import) (?:optimizer|serving)", inspect.getsource(module), re.MULTILINE)


# phrases, sparse


@pytest.mark.parametrize(("name", "least", "most"), [("phrases", 0.032, 0.038), ("sparse", 0.0046, 0.0054)])
def test_control_clicks_at_its_rate_and_copy_near_it(name: str, least: float, most: float) -> None:
    some = world(name)
    assert isinstance(some, Phrases)
    control = copy = 0.0
    for campaign_id, body in some.campaigns().items():
        for segment, share in some.shares(campaign_id).items():
            context = {"segment": segment}
            control += share * float(np.mean([some.click_rate(campaign_id, context, own) for own in body["controls"]]))
            rates = [some.click_rate(campaign_id, context, {"headline": text}) for text in lines()[::4]]
            copy += share * float(np.mean(rates))
    assert least <= control <= most
    assert 0.8 * control <= copy <= 1.7 * control
    assert some.oracle_rate() >= 12 * copy


def test_phrases_has_tastes_that_single_words_and_forms_do_not_explain() -> None:
    some = world("phrases")
    assert isinstance(some, Phrases)
    rows = np.hstack([reference_features()[::3], np.ones((len(reference_features()[::3]), 1))])
    explained = []
    for place in list(places(some))[::3]:
        felt = some.utility(*place, rows[:, :-1])
        fitted = rows @ np.linalg.lstsq(rows, felt, rcond=None)[0]
        explained.append(1.0 - float((felt - fitted).var() / felt.var()))
    assert 0.6 <= np.mean(explained) <= 0.85


def test_phrases_segments_like_different_texts() -> None:
    some = world("phrases")
    segments = some.campaigns()["dune"]["segments"]
    rates = [
        [np.log(some.click_rate("dune", {"segment": segment}, {"headline": text})) for text in lines()]
        for segment in segments
    ]
    assert np.corrcoef(rates)[np.triu_indices(len(segments), 1)].max() < 0.7


# drift


class Short(Drift):
    impressions = 200


def test_drift_swaps_likes_after_half_the_run_and_not_before() -> None:
    some, texts = Short(1), lines()[:60]

    def liked(segment: str) -> list[float]:
        return [some.click_rate("dune", {"segment": segment}, {"headline": text}) for text in texts]

    first = {segment: liked(segment) for segment in some.segments}
    oracle = some.oracle_rate()
    for _ in range(100):
        some.arrive()
    assert not some.swapped()
    assert liked("parents") == first["parents"]
    some.arrive()
    assert some.swapped()
    for one, other in (("commuters", "parents"), ("students", "explorers")):
        # Not equal: hours and their effects stay each segment's own.
        np.testing.assert_allclose(np.log(liked(one)), np.log(first[other]), atol=0.02)
        assert np.corrcoef(np.log(liked(one)), np.log(first[one]))[0, 1] < 0.6
    assert some.oracle_rate() == oracle


def test_drift_makes_what_was_best_worth_little() -> None:
    some = Short(2)
    context = {"segment": "students"}
    for campaign_id in ("dune", "parlo", "aria-one"):
        text = max(lines(), key=lambda text: some.click_rate(campaign_id, context, {"headline": text}))
        before = some.click_rate(campaign_id, context, {"headline": text})
        other = some.click_rate(campaign_id, {"segment": "explorers"}, {"headline": text})
        assert other < 0.6 * before


# delay, proxy


def test_delay_most_of_the_value_comes_days_later_inside_the_window() -> None:
    some = Delay(1)
    delays, clicks, conversions = [], 0, 0
    for at in range(6_000):
        campaign_id, context = some.arrive()
        events = some.respond(campaign_id, context, {"headline": lines()[at % 400]})
        clicks += bool(events)
        conversions += len(events) == 2
        delays += [after - events[0][1] for _, after, _ in events[1:]]
    weights = some.campaigns()["dune"]["reward"]
    assert weights["conversion"] * conversions > 2 * weights["click"] * clicks
    # About 70 conversions: a median outside of this has a chance below 1e-6 (log-normal, width 0.6).
    assert 15 * 3_600_000 < np.median(delays) < 60 * 3_600_000
    assert max(delays) < 604_800_000


@pytest.mark.parametrize("kind", [Delay, Proxy])
def test_conversions_come_at_their_true_rate(kind: type[Delay] | type[Proxy]) -> None:
    """Both counts stay within 5 standard deviations of their means (chance of a failure below 2e-6)."""
    some = kind(3)
    expected = variance = reward = rewarded = spread = 0.0
    for at in range(8_000):
        campaign_id, context = some.arrive()
        slots = {"headline": lines()[at % 300]}
        rate = some.click_rate(campaign_id, context, slots)
        chance = some.conversion_chance(campaign_id, context["segment"], slots)
        assert some.true_rate(campaign_id, context, slots) == pytest.approx(
            rate * (some.worth[0] + some.worth[1] * chance)
        )
        expected += rate * chance
        variance += rate * chance * (1 - rate * chance)
        events = some.respond(campaign_id, context, slots)
        rewarded += some.worth[0] * bool(events) + some.worth[1] * (len(events) == 2)
        reward += some.true_rate(campaign_id, context, slots)
        spread += rate * (some.worth[0] ** 2 + chance * ((sum(some.worth)) ** 2 - some.worth[0] ** 2))
    conversions = (rewarded - reward) / spread**0.5
    assert abs(conversions) < 5
    assert expected > 5 * variance**0.5


@pytest.mark.parametrize("name", ["delay", "proxy"])
def test_the_best_by_reward_earns_more_than_the_best_by_clicks_and_no_line_beats_it(name: str) -> None:
    some = world(name)
    assert isinstance(some, Delay | Proxy)
    gains = []
    for campaign_id, segment in list(places(some))[::7]:
        context, best = {"segment": segment}, some.best_reward(campaign_id, segment)
        slots = [{"headline": text} for text in lines()]
        by_clicks = max(slots, key=lambda own: some.click_rate(campaign_id, context, own))
        by_reward = max(some.true_rate(campaign_id, context, own) for own in slots)
        assert by_reward <= best
        gains.append(by_reward / some.true_rate(campaign_id, context, by_clicks))
    assert np.mean(gains) > 1.05


def test_proxy_bait_brings_clicks_and_takes_conversions_and_is_in_no_control() -> None:
    for seed in (1, 2, 3):
        some = Proxy(seed)
        control, clicked = [], []
        for campaign_id, body in list(some.campaigns().items())[::3]:
            assert not any(some.baited(campaign_id, slots) for slots in body["controls"])
            context = {"segment": "parents"}
            slots = [{"headline": text} for text in lines()]
            bait = [own for own in slots if some.baited(campaign_id, own)]
            plain = [own for own in slots if not some.baited(campaign_id, own)]
            assert 0.02 < len(bait) / len(slots) < 0.2
            rates = [np.mean([some.click_rate(campaign_id, context, own) for own in group]) for group in (bait, plain)]
            assert rates[0] > 3 * rates[1]
            # Who takes what is clicked most ends below control in what counts.
            best = max(slots, key=lambda own: some.click_rate(campaign_id, context, own))
            clicked.append(some.true_rate(campaign_id, context, best))
            control.append(np.mean([some.true_rate(campaign_id, context, own) for own in body["controls"]]))
        assert np.mean(clicked) < 0.7 * np.mean(control)
        assert all("conversion" not in body.get("reward", {}) for body in some.campaigns().values())
    assert len({Proxy(seed)._bait_at for seed in range(1, 12)}) == len(BAITS)


# fatigue


def test_fatigue_wears_a_text_out_where_it_is_shown_and_lets_it_recover() -> None:
    some = Fatigue(1)
    text, alike, other = ({"headline": line} for line in ("Slow mornings.", "Slow mornings!", "Here's to joy."))
    here, there = {"segment": "parents"}, {"segment": "students"}
    fresh = {name: some.click_rate("dune", here, own) for name, own in (("text", text), ("other", other))}
    elsewhere = some.click_rate("dune", there, text)
    for _ in range(100):
        some.respond("dune", here, text)
    worn = some.click_rate("dune", here, text)
    assert worn < 0.3 * fresh["text"]
    assert some.click_rate("dune", here, other) == fresh["other"]
    assert some.click_rate("dune", there, text) == elsewhere
    # Another mark is no other text: it is as worn, whatever else the mark does.
    assert some.click_rate("dune", here, alike) < 0.5 * Fatigue(1).click_rate("dune", here, alike)
    rates = [worn]
    for _ in range(4):
        for _ in range(3_000):
            some.arrive()
        rates.append(some.click_rate("dune", here, text))
    assert rates == sorted(rates)
    assert 0.4 * fresh["text"] < rates[-1] < fresh["text"]


def test_fatigue_costs_who_shows_one_text_more_than_who_takes_turns() -> None:
    some, turns = Fatigue(4), Fatigue(4)
    best = {
        place: [{"headline": text} for text in sorted(lines()[:80], key=lambda text: -_rate(some, place, text))[:10]]
        for place in places(some)
    }
    stale = mixed = 0.0
    for at in range(6_000):
        campaign_id, context = some.arrive()
        assert turns.arrive() == (campaign_id, context)
        own = best[campaign_id, context["segment"]]
        stale += some.click_rate(campaign_id, context, own[0])
        mixed += turns.click_rate(campaign_id, context, own[at % 10])
        some.respond(campaign_id, context, own[0])
        turns.respond(campaign_id, context, own[at % 10])
    assert mixed > 1.08 * stale
    assert mixed / 6_000 < some.oracle_rate()


def _rate(some: World, place: tuple[str, str], text: str) -> float:
    return some.click_rate(place[0], {"segment": place[1]}, {"headline": text})


# cold


def test_cold_campaigns_come_and_go_and_all_are_told_from_the_start() -> None:
    some = Cold(1)
    seen: dict[str, list[int]] = {}
    for at in range(Cold.impressions):
        seen.setdefault(some.arrive()[0], []).append(at)
    assert seen.keys() == some.campaigns().keys()
    assert len(seen) == 43
    whole = [name for name in seen if 0 <= some.begins(name) <= Cold.impressions - 4 * Cold.begins_each]
    assert len(whole) == 37
    for name in whole:
        # Binomial (2,048 arrivals, a fourth each): 100 off is 5 standard deviations.
        assert abs(len(seen[name]) - 512) < 100
        assert some.begins(name) <= seen[name][0]
        assert seen[name][-1] < some.begins(name) + 4 * Cold.begins_each
    assert sum(sum(some.shares(name).values()) for name in seen) == pytest.approx(1.0)


def test_cold_one_campaign_teaches_the_next() -> None:
    some = world("cold")
    names = list(some.campaigns())
    liked = np.array([[np.log(_rate(some, (name, "parents"), text)) for text in lines()] for name in names[:20]])
    among = np.corrcoef(liked)[np.triu_indices(20, 1)]
    assert among.mean() > 0.6
