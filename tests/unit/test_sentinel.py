"""When learning stops by itself: the figures that say so, and what the learner does then."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from scipy.stats import fisher_exact

from optimizer.control import HALT_FILE, RESUME_FILE
from optimizer.learning.learner import Learner
from optimizer.learning.sentinel import Sentinel, SentinelConfig
from optimizer.maths.sentinel import Conversions, Limits, Response, Vitals, ails, baits, conversions
from optimizer.stream.views import live_policy, policy_table
from optimizer.types import Candidate, Decode, Pool, RewardWeights
from serving.operate import Operator
from serving.views import Views
from tests.learning_rig import SMALL_LEARNER, Loop, campaign, candidate, open_loop, outcome

WELL = Vitals(
    kl=5.0,
    kl_budget=8.0,
    kl_before=5.0,
    kl_step=0.2,
    entropy=1.0,
    length=1.1,
    duplicates=0.5,
    rejected=0.1,
    rejected_first=0.1,
)
NEVER = Vitals(*[math.nan] * 9)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("kl", 8.5, "8.5 nats"),
        ("kl_step", 3.5, "moved by 3.5"),
        ("entropy", 0.05, "entropy of 0.05"),
        ("length", 0.4, "0.4 times as long"),
        ("length", 2.5, "2.5 times as long"),
        ("duplicates", 0.99, "99% of the samples repeat"),
        ("rejected", 0.7, "refuses 70%"),
    ],
)
def test_each_ill_has_its_phrase(field: str, value: float, said: str) -> None:
    assert ails(WELL, Limits()) is None
    why = ails(WELL._replace(**{field: value}), Limits())
    assert why is not None
    assert said in why


def test_what_is_not_known_ails_nothing() -> None:
    assert ails(NEVER, Limits()) is None


def test_a_lowered_budget_that_is_approached_is_no_illness() -> None:
    assert ails(WELL._replace(kl=9.0, kl_before=9.5), Limits()) is None
    assert ails(WELL._replace(kl=9.0, kl_before=9.0), Limits()) is not None


def test_a_gate_that_always_refuses_much_is_no_illness() -> None:
    assert ails(WELL._replace(rejected=0.7, rejected_first=0.5), Limits()) is None


def response(shown: list[float], clicked: list[float], converted: list[float]) -> Response:
    return Response(np.array(shown), np.array(clicked), np.array(converted))


def test_conversions_are_compared_campaign_by_campaign() -> None:
    # The traffic moves from a campaign that converts well to one that does not: nothing has become worse in either.
    before = response([800, 200], [80, 20], [40, 2])
    late = response([200, 800], [20, 80], [10, 8])
    found = conversions(before, late)
    assert found is not None
    assert found.p > 0.2
    assert found.of_shown == pytest.approx(1.0)
    assert found.clicks_of_shown == pytest.approx(1.0)
    assert baits(found) is None


@pytest.mark.parametrize(
    ("chance", "clicked", "late_clicked"),
    [
        ([0.4, 0.1, 0.25], [60, 200, 30], [150, 80, 90]),
        # Sparse: five clicks a campaign and hardly a conversion.
        ([0.02] * 40, [5] * 40, [15] * 40),
    ],
)
def test_so_few_conversions_are_as_rare_as_p_says(
    chance: list[float], clicked: list[int], late_clicked: list[int]
) -> None:
    # With equal chances before and late, p is at most 0.05 in a twentieth of the cases, or fewer: counts are whole.
    rng = np.random.default_rng(1)
    clicks, late_clicks = np.array(clicked), np.array(late_clicked)
    found = []
    for _ in range(2_000):
        before = Response(clicks * 20.0, clicks.astype(float), rng.binomial(clicks, chance).astype(float))
        converted = rng.binomial(late_clicks, chance).astype(float)
        late = Response(late_clicks * 10.0, late_clicks.astype(float), converted)
        one = conversions(before, late)
        if one is not None:
            found.append(one.p)
    assert len(found) > 1_900
    for level in (0.05, 0.2, 0.5):
        assert 0.4 * level < np.mean(np.array(found) <= level) < 1.1 * level + 0.01


def test_p_is_the_exact_tests() -> None:
    # One stratum: Fisher's exact test. Two: every way in which two of them convert is counted.
    one = conversions(response([50], [10], [6]), response([50], [20], [3]))
    assert one is not None
    assert one.p == pytest.approx(fisher_exact(np.array([[3, 17], [6, 4]]), alternative="less").pvalue)
    two = conversions(response([9, 9], [3, 2], [2, 1]), response([9, 9], [2, 4], [0, 1]))
    assert two is not None
    ways = [
        (len([at for at in first if at < 2]) + len([at for at in second if at < 4]))
        for first in combinations(range(5), 2)
        for second in combinations(range(6), 2)
    ]
    assert two.p == pytest.approx(np.mean(np.array(ways) <= 1))


def test_rates_are_compared_within_their_strata() -> None:
    found = conversions(response([100, 300], [10, 60], [5, 12]), response([300, 100], [60, 40], [15, 4]))
    assert found is not None
    assert found.of_shown == pytest.approx((15 * 0.25 + 4 * 0.75) / (5 * 0.75 + 12 * 0.25))
    assert found.clicks_of_shown == pytest.approx((60 * 0.25 + 40 * 0.75) / (10 * 0.75 + 60 * 0.25))


@pytest.mark.parametrize(
    ("found", "halts"),
    [
        (Conversions(p=1e-6, of_shown=0.6, clicks_of_shown=2.0), True),
        # More clicks make up for their poorer conversion.
        (Conversions(p=1e-6, of_shown=1.1, clicks_of_shown=2.2), False),
        # Clicks fall as well: demand has changed, nobody is baited.
        (Conversions(p=1e-6, of_shown=0.4, clicks_of_shown=0.8), False),
        (Conversions(p=0.01, of_shown=0.8, clicks_of_shown=1.2), False),
    ],
)
def test_bait_is_more_clicks_with_fewer_conversions(found: Conversions, halts: bool) -> None:
    assert (baits(found) is not None) is halts


def test_nothing_is_said_without_conversions() -> None:
    assert conversions(response([100], [10], [0]), response([100], [10], [5])) is None
    assert conversions(response([100], [0], [0]), response([100], [10], [5])) is None
    assert conversions(response([100], [1], [1]), response([100], [1], [1])) is None


# -- the watch over records --------------------------------------------------------------------------------------------

SMALL = SentinelConfig(samples=40, first_samples=40)
NOW = 1_700_000_000_000


def impressions(
    sentinel: Sentinel,
    count: int,
    click: float,
    convert: float,
    start: int,
    campaign_id: str = "c1",
    fields: dict[str, object] | None = None,
    segment: str = "all",
) -> None:
    """People who click and convert with these chances, a second apart, conversions a minute after the click."""
    rng = np.random.default_rng(start)
    for at in range(start, start + count):
        clicked = bool(rng.random() < click)
        converted = clicked and rng.random() < convert
        ts = NOW + 1_000 * at
        one = outcome(
            f"{campaign_id}.{at}",
            impression_ts=ts,
            click=clicked,
            click_ts=ts + 500,
            conversions=int(converted),
            as_of=ts + (60_500 if converted else 500),
            campaign_id=campaign_id,
        )
        drawn = msgspec.structs.replace(one.decision, context={"segment": segment}, **(fields or {}))
        sentinel.note_outcome(msgspec.structs.replace(one, decision=drawn))


def test_bait_is_seen_in_the_records_and_forgiven_where_an_operator_goes_on() -> None:
    sentinel = Sentinel(SMALL)
    impressions(sentinel, 600, click=0.2, convert=0.5, start=0)
    assert sentinel.bait() is None
    impressions(sentinel, 600, click=0.5, convert=0.04, start=600)
    halt = sentinel.bait()
    assert halt is not None
    assert "clicks are up" in halt.why
    # What is compared began after the change, so what was published before it is good.
    assert halt.since_ms >= NOW + 600_000
    sentinel.forgive()
    assert sentinel.bait() is None
    impressions(sentinel, 600, click=0.5, convert=0.04, start=1_200)
    assert sentinel.bait() is None  # That is how it is now.


def test_a_resumption_from_before_a_restart_is_heeded() -> None:
    sentinel = Sentinel(SMALL)
    sentinel.forgive(NOW + 650_000)
    impressions(sentinel, 600, click=0.2, convert=0.5, start=0)
    impressions(sentinel, 600, click=0.5, convert=0.04, start=600)
    assert sentinel.bait() is None


def test_a_campaign_that_comes_later_is_watched_too() -> None:
    sentinel = Sentinel(SMALL)
    impressions(sentinel, 2_000, click=0.2, convert=0.5, start=0)
    impressions(sentinel, 600, click=0.2, convert=0.5, start=2_000, campaign_id="later")
    assert sentinel.bait() is None
    impressions(sentinel, 600, click=0.8, convert=0.0, start=2_600, campaign_id="later")
    assert sentinel.bait() is not None


def test_segments_that_click_more_and_seldom_convert_are_no_bait() -> None:
    # Nothing changes in either segment, but later hardly anybody is of the one that converts.
    sentinel = Sentinel(SMALL)
    for start, keen, idle in ((0, 90, 10), (10_000, 10, 190)):
        for at in range(20):
            impressions(sentinel, keen, click=0.2, convert=0.6, start=start + 300 * at, segment="keen")
            impressions(sentinel, idle, click=0.4, convert=0.02, start=start + 300 * at + 100, segment="idle")
    assert sentinel.bait() is None


def test_bait_is_seen_before_the_first_impressions_are_over() -> None:
    sentinel = Sentinel(SMALL)
    impressions(sentinel, 240, click=0.2, convert=0.5, start=0)
    impressions(sentinel, 600, click=0.5, convert=0.02, start=240)
    assert sentinel.bait() is not None


def test_few_conversions_are_enough() -> None:
    # 5 % clicked, a tenth of them converting; then half clicked, none converting.
    sentinel = Sentinel(SMALL)
    impressions(sentinel, 7_000, click=0.05, convert=0.1, start=0)
    impressions(sentinel, 8_000, click=0.3, convert=0.0, start=7_000)
    assert sentinel.bait() is not None


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_said_where_nothing_is_wrong(seed: int) -> None:
    # Texts get better: more clicks, each worth what it was. Looked at after every 100 impressions.
    sentinel = Sentinel(SMALL)
    for at in range(20):
        for name in ("a", "b", "c"):
            start = 100 * at + 1_000_000 * seed
            impressions(sentinel, 100, click=0.05 + 0.015 * at, convert=0.1, start=start, campaign_id=name)
        assert sentinel.bait() is None


@pytest.mark.parametrize(
    "fields", [{"reward": RewardWeights(click=1.0, conversion=5.0)}, {"source": "control"}], ids=["paid", "control"]
)
def test_who_pays_for_conversions_and_controls_are_left_out(fields: dict[str, object]) -> None:
    sentinel = Sentinel(SMALL)
    impressions(sentinel, 600, click=0.2, convert=0.5, start=0, fields=fields)
    impressions(sentinel, 600, click=0.5, convert=0.04, start=600, fields=fields)
    assert sentinel.bait() is None


def test_what_was_let_go_does_not_come_back_with_its_close() -> None:
    sentinel = Sentinel(dataclasses.replace(SMALL, kept=500))
    impressions(sentinel, 2_000, click=0.2, convert=0.5, start=0)
    late = NOW + 7 * 86_400_000
    for at in range(500, 1_500):
        # The close says all that is known: among the rest a click and its conversion.
        ts = NOW + 1_000 * at
        sentinel.note_outcome(
            outcome(f"c1.{at}", 2, impression_ts=ts, click=True, click_ts=ts, conversions=1, as_of=late, closed=True)
        )
    impressions(sentinel, 600, click=0.5, convert=0.02, start=800_000)
    assert sentinel.bait() is not None


def pool(texts: int, count: int, rejected: bool = False, tokens: int = 5, campaign_id: str = "c1") -> Pool:
    some = tuple(
        candidate(f"text {at}", count=count, token_ids=((1,) * tokens,), rejected="gate" if rejected else None)
        for at in range(texts)
    )
    return Pool("p", "default", campaign_id, "all", "v", "h", (*some, kept("old")), Decode(), 0)


def kept(text: str) -> Candidate:
    return candidate(text, count=0, kept=True)


def test_samples_are_compared_with_their_campaigns_first_ones() -> None:
    sentinel = Sentinel(SMALL)
    unknown = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert math.isnan(unknown.length)
    for _ in range(8):
        sentinel.note_pool(pool(10, 1))
    found = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert (found.length, found.duplicates, found.rejected) == (1.0, 0.0, 0.0)
    # Another campaign, whose texts are longer and often refused from the start, is no illness.
    for _ in range(8):
        sentinel.note_pool(pool(10, 1, rejected=True, tokens=15, campaign_id="c2"))
    found = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert (found.length, found.rejected, found.rejected_first) == (1.0, 1.0, 1.0)
    for _ in range(4):
        sentinel.note_pool(pool(1, 10, rejected=True, tokens=15))
    found = sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0)
    assert (found.length, found.duplicates, found.rejected, found.rejected_first) == (3.0, 0.9, 1.0, 0.0)
    sentinel.forgive()
    assert math.isnan(sentinel.vitals(1.0, 8.0, 1.0, 0.1, 1.0).length)


def test_an_ill_must_last_and_dates_from_its_beginning() -> None:
    sentinel = Sentinel(SMALL)
    ill = WELL._replace(entropy=0.01)
    seen = [sentinel.judge(one, at) for at, one in enumerate((ill, ill, WELL, ill, ill, ill))]
    assert seen[:5] == [None] * 5
    assert seen[5] is not None
    assert seen[5].since_ms == 3
    # What nothing new is known of is no second time.
    assert [sentinel.judge(one, 9) is None for one in (WELL, ill, None, ill, ill)] == [True] * 5


# -- the learner -------------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(tiny_model_folder: Path, tmp_path: Path) -> Loop:
    return open_loop(tmp_path / "data", tiny_model_folder, campaigns=[campaign()])


def learn(loop: Loop, learner: Learner, rounds: int) -> None:
    generator, rng = loop.generator(), np.random.default_rng(0)
    for _ in range(rounds):
        while generator.step():
            pass
        loop.serve(loop.pools()[-1], 30, rng, lambda shown: 0.3)
        while learner.step():
            pass


def live(loop: Loop) -> str:
    table = policy_table(loop.log)
    table.refresh()
    found = live_policy(table)
    assert found is not None
    return found.version


def test_an_ill_policy_halts_the_learner_and_the_healthy_version_comes_back(loop: Loop) -> None:
    config = dataclasses.replace(SMALL_LEARNER, sentinel=SentinelConfig(limits=Limits(entropy=0.0), patience=2))
    learner = loop.learner(config)
    learn(loop, learner, 2)
    good = live(loop)
    assert not learner.halted
    # From here on every policy is called too narrow: the first ill version goes out, the second halts.
    learner.sentinel.config = SentinelConfig(limits=Limits(entropy=99.0), patience=2)
    loop.clock.advance(1_000)
    learn(loop, learner, 1)
    ill = live(loop)
    assert ill != good
    learn(loop, learner, 2)
    assert "always the same text" in learner.halted
    assert live(loop) == good
    table = policy_table(loop.log)
    table.refresh()
    assert table.rows[ill].stage == "rolled_back"
    assert table.rows[ill].evidence["by"] == "sentinel"
    increments = learner.increments
    learn(loop, learner, 1)
    assert learner.increments == increments
    # Neither does a learner that is started anew, until somebody resumes it.
    again = loop.learner(SMALL_LEARNER)
    learn(loop, again, 1)
    assert again.halted
    assert live(loop) == good
    operator = Operator(loop.log, loop.clock, Views(loop.log), loop.data)
    assert operator.halted() == again.halted
    assert operator.idle()
    operator.resume()
    assert not operator.idle()
    assert (loop.data / RESUME_FILE).exists()
    learn(loop, again, 1)
    assert not again.halted
    assert live(loop) not in (good, ill)


def test_what_an_operator_made_live_is_not_taken_back(loop: Loop) -> None:
    config = dataclasses.replace(SMALL_LEARNER, sentinel=SentinelConfig(limits=Limits(entropy=99.0), patience=2))
    learner = loop.learner(config)
    first = live(loop)
    learn(loop, learner, 1)
    views = Views(loop.log)
    views.refresh_tables()
    Operator(loop.log, loop.clock, views, loop.data).promote(first)
    learn(loop, learner, 4)
    assert learner.halted
    assert live(loop) == first


def test_an_empty_halt_file_still_halts(loop: Loop) -> None:
    (loop.data / HALT_FILE).touch()
    learner = loop.learner(SMALL_LEARNER)
    learn(loop, learner, 1)
    assert learner.halted
    assert learner.increments == 0


def test_the_optimizers_state_outlives_a_restart(loop: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    learner = loop.learner(SMALL_LEARNER)
    learn(loop, learner, 2)
    assert learner.trainer is not None
    path = tmp_path / "kept"
    learner.trainer.save(path)
    other_config = dataclasses.replace(SMALL_LEARNER, kl_aim=0.5)
    again = loop.learner(other_config)
    assert again.trainer is not None
    again.trainer.kl = again.trainer.kl.updated(0.0)
    assert not again.trainer.restore(tmp_path / "missing", [live(loop)])
    assert not again.trainer.restore(path, ["another"])
    assert again.trainer.kl.weight != learner.trainer.kl.weight
    assert again.trainer.restore(path, [live(loop)])
    assert again.trainer.kl.weight == learner.trainer.kl.weight
    for (_, one), (_, other) in zip(again.trainer.moments(), learner.trainer.moments(), strict=True):
        np.testing.assert_array_equal(one, other)
    path.write_bytes(b"no such state")
    assert not again.trainer.restore(path, [live(loop)])
    assert "not an optimizer's state" in caplog.text
