"""The watch for bait, clicks up with conversions down: in which records it is seen, and in which not."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np
import pytest

from optimizer.learning.bait import BaitConfig, BaitWatch
from optimizer.types import Outcome, RewardWeights
from tests.learning_rig import outcome

NOW = 1_700_000_000_000


def shown(
    number: int,
    how: tuple[float, float],
    start: int,
    *,
    step_ms: int = 1_000,
    wait_ms: int = 60_000,
    campaign_id: str = "c1",
    segment: str = "all",
    seed: int = 0,
    fields: dict[str, object] | None = None,
) -> list[Outcome]:
    """What is told of impressions `step_ms` apart from the `start`-th second on: `how` likely people click, half a
    second later, and then convert, `wait_ms` after that."""
    rng = np.random.default_rng([seed, start])
    told = []
    for at in range(number):
        ts = NOW + 1_000 * start + step_ms * at
        clicked = bool(rng.random() < how[0])
        name = f"{campaign_id}.{segment}.{ts}"
        told_of = partial(outcome, name, impression_ts=ts, click=clicked, click_ts=ts + 500, campaign_id=campaign_id)
        revisions = [told_of(as_of=ts + 500)]
        if clicked and rng.random() < how[1]:
            revisions.append(told_of(revision=2, as_of=ts + 500 + wait_ms, conversions=1))
        for one in revisions:
            drawn = msgspec.structs.replace(one.decision, context={"segment": segment}, **(fields or {}))
            told.append(msgspec.structs.replace(one, decision=drawn))
    return told


def watched(*told: list[Outcome], config: BaitConfig | None = None) -> BaitWatch:
    """A watch that was told of all this, in the order of time."""
    watch = BaitWatch(config or BaitConfig())
    tell(watch, *told)
    return watch


def tell(watch: BaitWatch, *told: list[Outcome]) -> None:
    for one in sorted((one for some in told for one in some), key=lambda one: one.as_of):
        watch.note(one)


GOOD, BAIT = (0.2, 0.5), (0.5, 0.02)


def test_bait_is_seen_in_the_records_and_forgiven_where_an_operator_goes_on() -> None:
    watch = watched(shown(600, GOOD, start=0))
    assert watch.look() is None
    tell(watch, shown(700, BAIT, start=600))
    found = watch.look()
    assert found is not None
    assert "clicks are up" in found.ailment.why
    # What is compared began after the change, so what was published before it is good.
    assert found.since_ms >= NOW + 600_000
    watch.begin_at()
    assert watch.look() is None
    tell(watch, shown(700, BAIT, start=1_400))
    assert watch.look() is None  # That is how it is now.


def test_a_resumption_from_before_a_restart_is_heeded() -> None:
    watch = BaitWatch(BaitConfig())
    watch.begin_at(NOW + 650_000)
    tell(watch, shown(600, GOOD, start=0), shown(700, BAIT, start=600))
    assert watch.look() is None


def test_after_a_resumption_the_first_impressions_stay_those_after_it() -> None:
    # It gets worse bit by bit, and many more come than are held.
    watch = watched(shown(600, GOOD, start=0), config=BaitConfig(kept=400))
    watch.begin_at()
    for at in range(6):
        chance = (0.2 + 0.1 * at, 0.5 * 0.5**at)
        tell(watch, shown(500, chance, start=700 + 500 * at))
    found = watch.look()
    assert found is not None


def test_a_campaign_that_comes_later_is_watched_too() -> None:
    watch = watched(shown(2_000, GOOD, start=0), shown(600, GOOD, start=2_000, campaign_id="later"))
    assert watch.look() is None
    tell(watch, shown(600, (0.8, 0.0), start=2_600, campaign_id="later"))
    assert watch.look() is not None


def test_campaigns_that_have_ended_do_not_hide_bait_in_those_that_run() -> None:
    ended = [shown(1_500, GOOD, start=0, campaign_id=f"ended{at}") for at in range(10)]
    runs = [
        shown(number, how, start=start, campaign_id=f"runs{at}")
        for at in range(2)
        for number, how, start in ((1_000, GOOD, 500), (1_000, BAIT, 2_000))
    ]
    assert watched(*ended, *runs).look() is not None


def test_a_campaign_of_long_ago_does_not_date_the_bait() -> None:
    day = 86_400
    told = [
        shown(40, GOOD, start=0, campaign_id="old"),
        shown(200, GOOD, start=30 * day),
        shown(260, BAIT, start=31 * day),
    ]
    found = watched(*told).look()
    assert found is not None
    assert found.since_ms >= NOW + 1_000 * 30 * day


def test_many_small_campaigns_are_watched_together() -> None:
    told = [
        shown(6, how, start=start + at, campaign_id=f"c{at}", step_ms=100_000)
        for how, start in ((GOOD, 0), (BAIT, 10_000))
        for at in range(300)
    ]
    assert watched(*told).look() is not None


def test_a_campaign_busier_than_what_is_held_is_watched() -> None:
    # Conversions come after ten minutes, in which more is shown than may be held.
    config = BaitConfig(kept=300)
    clean = watched(shown(3_000, GOOD, start=0, wait_ms=600_000), config=config)
    for start in range(3_000, 9_000, 500):
        assert clean.look() is None
        tell(clean, shown(500, (0.3, 0.5), start=start, wait_ms=600_000))
    baited = watched(shown(3_000, GOOD, start=0, wait_ms=600_000), config=config)
    seen = []
    for start in range(3_000, 9_000, 500):
        seen.append(baited.look() is not None)
        tell(baited, shown(500, BAIT, start=start, wait_ms=600_000))
    assert not seen[0]
    assert baited.look() is not None


def test_a_busy_hour_and_what_is_told_late_do_not_blind_it() -> None:
    config = BaitConfig(kept=200)
    told = [
        shown(1_000, GOOD, 0, wait_ms=300_000),
        shown(10_000, GOOD, 1_000, step_ms=50, wait_ms=300_000),  # five hundred seconds
        shown(3_000, GOOD, 1_500, wait_ms=300_000),
        shown(2_000, BAIT, 4_500, wait_ms=300_000),
    ]
    watch = watched(*told, config=config)
    assert watch.look() is not None


@pytest.mark.parametrize("count", [2, 7])
def test_it_does_not_matter_which_partition_is_read_first(count: int) -> None:
    told = [*shown(600, GOOD, 0), *shown(700, BAIT, 600)]
    in_turn, by_partition = watched(told), BaitWatch(BaitConfig())
    for part in range(count):
        tell(by_partition, [one for one in told if one.impression_ts // 1_000 % count == part])
    found, other = in_turn.look(), by_partition.look()
    assert found is not None
    assert other is not None
    assert other.since_ms >= NOW + 600_000


def test_many_campaigns_that_have_ended_take_nothing_from_one_that_runs() -> None:
    ended = [shown(2, GOOD, 2 * at, campaign_id=f"ended{at}") for at in range(1_000)]
    config = BaitConfig(kept_in_all=4_000)
    watch = watched(*ended, shown(700, GOOD, 2_500), shown(700, BAIT, 3_200), config=config)
    assert watch.look() is not None
    # As many as all may hold, of the campaigns that have the most.
    tell(watch, *(shown(1_000, GOOD, 5_000, campaign_id=f"more{at}") for at in range(4)))
    watch.look()
    assert 2_000 < len(watch) <= 4_000
    # A week later nobody remembers the ended ones.
    tell(watch, shown(10, GOOD, 9 * 86_400))
    watch.look()
    assert len(watch) == 10


def test_a_campaign_that_pauses_for_long_begins_anew() -> None:
    watch = watched(shown(600, GOOD, 0), shown(700, BAIT, 8 * 86_400), shown(700, BAIT, 8 * 86_400 + 700))
    assert watch.look() is None


def test_a_campaign_with_few_impressions_a_day_does_not_date_the_bait() -> None:
    day = 86_400
    slow = shown(60 * 24, (0.2, 0.0), 0, step_ms=3_600_000, campaign_id="slow")
    found = watched(slow, shown(260, GOOD, 59 * day), shown(700, BAIT, 59 * day + 260)).look()
    assert found is not None
    assert found.since_ms >= NOW + 1_000 * 52 * day


def test_another_campaigns_slow_conversions_do_not_hold_it_up() -> None:
    day = 86_400
    slow = shown(2_000, GOOD, 0, wait_ms=5_000 * day, campaign_id="slow")
    found = watched(slow, shown(4_000, GOOD, 14 * day), shown(4_000, BAIT, 15 * day), config=BaitConfig(delays=200))
    assert found.look() is not None


def test_conversions_are_dated_by_the_first_that_is_heard_of_them() -> None:
    good = shown(600, GOOD, 0)
    closes = [
        msgspec.structs.replace(one, revision=3, state="closed", as_of=NOW + 2_000_000) for one in good if one.click_ts
    ]
    last = {one.decision_id: one for one in closes}
    watch = watched(good, shown(700, BAIT, 600), list(last.values()))
    assert watch.look() is not None


def test_late_conversions_of_old_count_no_more_than_those_that_are_still_to_come() -> None:
    # Every sixth comes after a day: of the first impressions all have come, of the newest none yet.
    config = BaitConfig(conversions=2_000)

    def some(start: int, click: float) -> list[Outcome]:
        told = shown(6_000, (click, 0.5), start, step_ms=100)
        late = {one.decision_id for at, one in enumerate(told) if one.revision == 2 and at % 6 == 0}
        return [
            msgspec.structs.replace(one, as_of=one.as_of + 86_400_000)
            if one.revision == 2 and one.decision_id in late
            else one
            for one in told
        ]

    newest = [one for one in some(200_000, 0.84) if one.as_of < NOW + 202_000_000]
    assert watched(some(0, 0.8), newest, config=config).look() is None


def test_clicks_that_have_not_had_their_time_to_convert_are_not_counted() -> None:
    hour = 3_600_000
    watch = watched(shown(2_000, GOOD, start=0, wait_ms=hour), shown(1_500, (0.5, 0.0), start=4_050))
    # By now nobody who saw the last 1,500 can have converted.
    assert watch.now_ms < NOW + 4_050_000 + hour
    assert watch.look() is None


def test_few_conversions_are_enough() -> None:
    # 5 % clicked, a tenth of them converting; then half clicked, none converting.
    watch = watched(shown(7_000, (0.05, 0.1), start=0), shown(8_000, (0.3, 0.0), start=7_000))
    assert watch.look() is not None


def test_bait_is_seen_before_the_first_impressions_are_over() -> None:
    watch = watched(shown(240, GOOD, start=0), shown(600, BAIT, start=240))
    assert watch.look() is not None


def test_segments_that_click_more_and_seldom_convert_are_no_bait() -> None:
    # Nothing changes in either segment, but later hardly anybody is of the one that converts.
    told = [
        shown(number, how, start, step_ms=step_ms, segment=name)
        for name, how, numbers in (
            ("keen", (0.2, 0.6), (1_800, 200)),
            ("idle", (0.4, 0.02), (200, 3_800)),
        )
        for number, start in zip(numbers, (0, 4_000), strict=True)
        for step_ms in (4_000_000 // number,)
    ]
    assert watched(*told).look() is None


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_where_nothing_is_wrong(seed: int) -> None:
    # Texts get better: more clicks, each worth what it was. Looked at after every 100 impressions.
    watch = BaitWatch(BaitConfig())
    for at in range(20):
        for name in ("a", "b", "c"):
            tell(watch, shown(100, (0.05 + 0.015 * at, 0.1), start=100 * at, campaign_id=name, seed=seed))
        assert watch.look() is None


@pytest.mark.parametrize(
    "fields", [{"reward": RewardWeights(click=1.0, conversion=5.0)}, {"source": "control"}], ids=["paid", "control"]
)
def test_who_pays_for_conversions_and_controls_are_left_out(fields: dict[str, object]) -> None:
    watch = watched(shown(600, GOOD, start=0, fields=fields), shown(700, BAIT, start=600, fields=fields))
    assert watch.look() is None


def test_what_was_let_go_does_not_come_back_with_its_close() -> None:
    config = BaitConfig(kept=500)
    watch = watched(shown(2_000, GOOD, start=0), config=config)
    late = NOW + 86_400_000
    for at in range(500, 1_500):
        # The close says all that is known: among the rest a click and its conversion.
        ts = NOW + 1_000 * at
        watch.note(
            outcome(
                f"c1.all.{ts}", 2, impression_ts=ts, click=True, click_ts=ts, conversions=1, as_of=late, closed=True
            )
        )
    tell(watch, shown(700, BAIT, start=90_000))
    assert watch.look() is not None
