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
            looked.oracle_rate()
            getattr(looked, "oracle_reward", looked.oracle_rate)()
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
    for place in list(places(some))[::5]:
        campaign_id, segment = place
        best = some.best_rate(campaign_id, segment)
        assert 0.0 < best < 1.0
        joined = [f"{lines()[i].rstrip('.')}. {lines()[j]}" for i, j in rng.integers(len(lines()), size=(300, 2))]
        for text in (*lines()[::2], *joined):
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
