from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.maths.intervals import Interval, Moments, lift
from serving import board as boards
from serving import sheets
from serving.board import LiveBoard
from serving.joiners import Lane, StreamFigures
from serving.series import CONTROL, EARLIER, MAX_VERSIONS, Series, version_groups
from serving.summary import stratified_lift
from tests.fakes.live_feed import START, campaign, outcome, play, policy, pool

Entry = tuple[int, str, int]
ENTRIES = st.lists(
    st.tuples(st.integers(0, 10**9), st.sampled_from([CONTROL, "a", "b", "c"]), st.integers(0, 1)), max_size=60
)


def sums(series: Series) -> tuple[int, int]:
    counts = [count for each in series.bins(most=10**6, at_least=1) for count in each.counts.values()]
    return sum(count.impressions for count in counts), sum(count.clicks for count in counts)


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(2, 12), st.data())
def test_a_series_keeps_its_sums_and_its_bound_and_takes_back(
    entries: list[Entry], capacity: int, data: st.DataObject
) -> None:
    series = Series(capacity)
    for entry in entries:
        series.add(*entry)
        assert len(series._buckets) <= capacity
    assert sums(series) == (len(entries), sum(clicks for _, _, clicks in entries))
    gone = data.draw(st.sets(st.integers(0, len(entries) - 1))) if entries else set()
    for n in gone:
        series.add(*entries[n], sign=-1)
    left = [entry for n, entry in enumerate(entries) if n not in gone]
    assert sums(series) == (len(left), sum(clicks for _, _, clicks in left))


def test_bins_hold_about_the_same_and_rise() -> None:
    series = Series()
    for n in range(20_000):
        series.add(START + n * 137, "v", n % 10 == 0)
    bins = series.bins(most=30)
    sizes = [each.learned().impressions for each in bins]
    assert 20 <= len(bins) <= 31
    assert max(sizes) < 2 * min(sizes)
    assert [b.ts for b in bins] == sorted(b.ts for b in bins)
    assert bins[-1].seen == 20_000


def test_old_versions_fold_into_one_and_can_still_be_taken_back() -> None:
    series = Series()
    for n in range(MAX_VERSIONS + 40):
        series.add(START + n * 1000, f"v{n}", 1)
    assert len(series.versions()) == MAX_VERSIONS + 1
    assert series.versions()[0] == EARLIER
    series.add(START, "v0", 1, sign=-1)
    assert sums(series) == (MAX_VERSIONS + 39, MAX_VERSIONS + 39)


@pytest.mark.parametrize("versions", [0, 1, 7, 8, 50])
def test_groups_of_versions_are_few_contiguous_and_complete(versions: int) -> None:
    series = Series()
    for n in range(versions * 50):
        series.add(START + n * 1000, f"v{n // 50:02}", 0)
    groups = version_groups(series.bins(), series.versions(), 7)
    assert [v for group in groups for v in group] == [f"v{n:02}" for n in range(versions)]
    assert len(groups) == min(versions, 7)


def test_a_revision_takes_the_one_before_it_back() -> None:
    board = LiveBoard()
    board.on_campaign(campaign())
    first, clicked = outcome(), outcome(click=1, revision=2)
    board.on_outcome(None, first)
    board.on_outcome(first, clicked)
    board.on_outcome(clicked, outcome(click=0, revision=3))
    board.on_outcome(outcome(click=0, revision=3), outcome(click=1, revision=4))
    for campaign_id in (None, "trail-runner"):
        learned = board.snapshot(START, campaign_id=campaign_id)["learned"]
        assert (learned["impressions"], learned["clicks"], learned["rate"]) == (1, 1, 1.0)
    assert [row["clicks"] for row in board.snapshot(START)["best"]] == [1]


def test_the_board_equals_a_count_by_hand() -> None:
    board = LiveBoard()
    count = sum(1 for _ in play(board, 3000, seed=3))
    snapshot = board.snapshot(START)
    assert snapshot["impressions"] == count == 3000
    assert snapshot["control"]["impressions"] + snapshot["learned"]["impressions"] == 3000
    each = [board.snapshot(START, campaign_id=c["campaign_id"]) for c in snapshot["campaigns"]]
    for side in ("learned", "control"):
        for figure in ("impressions", "clicks"):
            assert snapshot[side][figure] == sum(one[side][figure] for one in each)
    shares = snapshot["traffic"]["layers"]
    assert sum(sum(layer["sizes"]) for layer in shares) == 3000
    assert snapshot["curve"]["control"][-1][1] == pytest.approx(snapshot["control"]["rate"])
    assert json.loads(json.dumps(snapshot)) == snapshot
    by_count = board.snapshot(START, axis="count")["curve"]["learned"]
    assert by_count[-1][0] == 3000


def test_lift_of_one_campaign_is_that_of_stats_and_of_several_is_stratified() -> None:
    board = LiveBoard()
    for n in range(400):
        board.on_campaign(campaign()) if n == 0 else None
        board.on_outcome(None, outcome(click=n % 4 == 0, source="control" if n % 2 else "pool", decision_id=f"d{n}"))
    learned, control = Moments(200, 100.0, 100.0, 100), Moments(200, 0.0, 0.0, 0)
    assert lift(learned, control) is None
    one = board.snapshot(START, campaign_id="trail-runner")
    assert one["lift"] is None
    assert one["lift_missing"].startswith("Control texts need 100 impressions, 5 of them rewarded")


def test_a_mix_of_campaigns_does_not_pass_for_a_lift() -> None:
    # Simpson's paradox: in both campaigns both sides earn the same; the good campaign holds back much less.
    good = (Moments(9000, 900.0, 900.0, 900), Moments(1000, 100.0, 100.0, 100))
    poor = (Moments(1000, 10.0, 10.0, 10), Moments(9000, 90.0, 90.0, 90))
    pooled = lift(Moments(10_000, 910.0, 910.0, 910), Moments(10_000, 190.0, 190.0, 190))
    assert pooled is not None
    assert pooled.value > 3
    told = stratified_lift([good, poor])
    assert told is not None
    assert told.value == pytest.approx(0.0)
    assert told.low < 0 < told.high


def test_the_stratified_interval_covers() -> None:
    # 400 runs of two campaigns with a true lift of 1.0: 95 % coverage is 380; fewer than 362 happens by chance
    # with probability below 1e-4 (binomial, and the seed is fixed).
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        strata = []
        for rate, ours, theirs in ((0.10, 1500, 300), (0.04, 2000, 500)):
            a, b = int(rng.binomial(ours, 2 * rate)), int(rng.binomial(theirs, rate))
            strata.append((Moments(ours, a, a, a), Moments(theirs, b, b, b)))
        told = stratified_lift(strata)
        assert isinstance(told, Interval)
        covered += told.low <= 1.0 <= told.high
    assert 362 <= covered <= 396


def test_one_lucky_click_does_not_win() -> None:
    board = LiveBoard()
    board.on_campaign(campaign())
    for n in range(200):
        board.on_outcome(None, outcome("Steady", click=n % 20 == 0, decision_id=f"s{n}"))
    board.on_outcome(None, outcome("Lucky", click=1, decision_id="l"))
    board.on_pool(pool("trail-runner", ["Steady", "Lucky"], "v1"))
    assert [row["text"] for row in board.snapshot(START)["best"]] == ["Steady", "Lucky"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "MAX_VARIANTS", 16)
    monkeypatch.setattr(sheets, "MAX_TEXTS", 32)
    monkeypatch.setattr(boards, "MAX_CAMPAIGNS", 4)
    monkeypatch.setattr(boards, "MAX_POLICIES", 10)
    board = LiveBoard()
    for n in range(9):
        board.on_campaign(campaign(f"c{n}"))
    for n in range(300):
        board.on_policy(policy(f"v{n}", 1.0, START + n))
        board.on_pool(pool("c0", [f"text {n}"], f"v{n}"))
        first = outcome(f"text {n}", campaign_id="c0", version=f"v{n}", decision_id=f"d{n}")
        board.on_outcome(None, first)
        board.on_outcome(first, outcome(f"text {n}", 1, "c0", f"v{n}", revision=2, decision_id=f"d{n}"))
    sheet = board._campaigns[("default", "c0")]
    assert len(board._campaigns) == 4
    assert len(sheet.variants) <= 16
    assert len(sheet.texts) <= 32
    assert len(board._policies) == 10
    assert len(board._numbers) <= boards.MAX_NUMBERED
    snapshot = board.snapshot(START, campaign_id="c0")
    assert snapshot["impressions"] == 300
    # A late revision for a text that was let go: counted in the sums, not for a text that nobody knows.
    old = outcome("text 0", 1, "c0", "v0", revision=2, decision_id="d0")
    board.on_outcome(old, outcome("text 0", 0, "c0", "v0", revision=3, decision_id="d0"))
    assert board.snapshot(START, campaign_id="c0")["learned"]["clicks"] == 299


def test_the_live_version_is_the_last_live_record_and_kl_is_its_own() -> None:
    board = LiveBoard()
    board.on_policy(policy("v1", 1.0, START))
    board.on_policy(policy("v2", 2.5, START + 1))
    board.on_policy(policy("v3", float("nan"), START + 2, stage="candidate"))
    snapshot = board.snapshot(START)
    assert (snapshot["live"], snapshot["kl"]["value"], snapshot["kl"]["budget"]) == ("v2", 2.5, 8.0)
    assert [(p["number"], p["stage"]) for p in snapshot["policies"]] == [(3, "candidate"), (2, "live"), (1, "retired")]
    board.on_policy(policy("v1", 1.0, START + 3))
    assert board.snapshot(START)["live"] == "v1"
    assert len(board.snapshot(START)["kl"]["points"]) == 2


def test_a_version_is_called_by_the_number_that_it_bears() -> None:
    board = LiveBoard()
    for version in ("000000-c27274dd876f", "000013-0cf1a2b3c4d5", "branch"):
        board.on_policy(policy(version, 1.0, START))
    assert [p["number"] for p in board.snapshot(START)["policies"]] == [3, 13, 0]
    board.on_campaign(campaign())
    board.on_pool(pool("trail-runner", ["New"], "000000-c27274dd876f"))
    assert board.snapshot(START)["newest"][0]["number"] == 0


def test_tenants_see_their_own() -> None:
    board = LiveBoard()
    board.on_campaign(campaign())
    board.on_outcome(None, outcome())
    other = board.snapshot(START, tenant="other")
    assert other["impressions"] == 0
    assert other["campaigns"] == []
    assert not board.knows("other", "trail-runner")
    board.on_campaign_deleted("default", "trail-runner")
    assert not board.knows("default", "trail-runner")
    assert board.snapshot(START)["impressions"] == 1


def test_many_threads_lose_nothing() -> None:
    board = LiveBoard()
    board.on_campaign(campaign())

    def work(k: int) -> None:
        for n in range(500):
            board.on_outcome(None, outcome(click=n % 5 == 0, decision_id=f"{k}-{n}"))
            if n % 100 == 0:
                board.snapshot(START)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    learned = board.snapshot(START)["learned"]
    assert (learned["impressions"], learned["clicks"]) == (2000, 400)


def test_gauges_change_the_board_only_when_they_change() -> None:
    board = LiveBoard()
    for age_s in (1.1, 1.2):
        board.set_gauges(learner="paused", learner_reason="by an operator", kl_budget=6.0)
        board.set_stream(StreamFigures(open_decisions=2, lanes=(Lane(0, 1, 2, age_s),)), 0.5)
        changes = board.changes
    assert changes == 2
    snapshot = board.snapshot(START)
    assert (snapshot["learner"], snapshot["kl"]["budget"]) == ("paused", 6.0)
    assert (snapshot["stream"]["waiting"], snapshot["stream"]["open_decisions"]) == (3, 2)
