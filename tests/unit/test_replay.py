"""The replay's arena, captured shares, samples, and Adloop's own parts playing in it."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.cli import main
from simulators.peers import PEERS, Floats, Ints, ThompsonSampling, Uniform
from simulators.replay import BATCH, Arena, Difference, captured, differences, merged, play
from simulators.replay_run import sample_groups, split_by_week
from simulators.stats import captured_interval, captured_share
from simulators.upworthy import HeadlineGroup

RATES = [np.array([0.01, 0.02]), np.array([0.03, 0.01, 0.02, 0.012])]


class Always:
    """Shows one arm for ever."""

    name = "always"

    def __init__(self, arm: int) -> None:
        self.arm = arm
        self.rewards: list[Floats] = []

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints:
        return np.full((len(rows), count), self.arm, dtype=np.int64)

    def update(self, rows: Ints, arms: Ints, rewards: Floats) -> None:
        self.rewards.append(rewards)


def test_draws_do_not_depend_on_policy_order_or_the_other_groups() -> None:
    both = Arena.of(RATES, seed=4)
    second = Arena.of(RATES[1:], seed=4, numbers=[1])
    arms = np.random.default_rng(0).integers(0, 2, (2, BATCH))
    first_time = both.clicks(7, arms)
    both.clicks(8, arms)
    assert (both.clicks(7, arms) == first_time).all()
    assert (second.clicks(7, arms[1:]) == first_time[1:]).all()
    assert (Arena.of(RATES, seed=5).clicks(7, arms) != first_time).any()


def test_a_visitor_who_clicks_one_arm_is_the_same_whatever_others_saw() -> None:
    arena = Arena.of([np.array([0.4, 0.6])], seed=1)
    none, all_ = np.zeros((1, BATCH), dtype=np.int64), np.ones((1, BATCH), dtype=np.int64)
    mixed = np.where(np.arange(BATCH) % 2, all_, none)
    expected = np.where(np.arange(BATCH) % 2, arena.clicks(0, all_), arena.clicks(0, none))
    assert (arena.clicks(0, mixed) == expected).all()


def test_clicks_come_at_the_arms_rates() -> None:
    arena = Arena.of(RATES, seed=2)
    clicks = sum(arena.clicks(round_, np.zeros((2, BATCH), dtype=np.int64)) for round_ in range(400))
    # 20,000 Bernoulli draws each; five standard errors: a false alarm once in a million seeds.
    assert np.asarray(clicks).mean(axis=1) / 400 == pytest.approx([0.01, 0.03], abs=5 * (0.03 / 20_000) ** 0.5)


def test_captured_share_at_its_ends() -> None:
    arena = Arena.of(RATES, seed=1)
    best = play(Always(0), Arena.of([np.array([0.2, 0.1])], 1), [100, 300])
    assert captured(best, Arena.of([np.array([0.2, 0.1])], 1)) == pytest.approx({"100": 1.0, "300": 1.0})
    # By hand: arm 1 earns 0.02 and 0.01, uniform 0.015 and 0.018, best 0.02 and 0.03.
    assert captured(play(Always(1), arena, [50]), arena)["50"] == pytest.approx((0.03 - 0.033) / (0.05 - 0.033))


def test_play_counts_what_it_showed() -> None:
    peer = Always(1)
    played = play(peer, Arena.of(RATES, 3), [BATCH, 4 * BATCH])
    assert played.earned[BATCH] == pytest.approx([1.0, 0.5])
    assert played.earned[4 * BATCH] == pytest.approx([4.0, 2.0])
    assert played.clicks == sum(int(rewards.sum()) for rewards in peer.rewards)
    with pytest.raises(ValueError, match="multiples of 50"):
        play(peer, Arena.of(RATES, 3), [75])


@pytest.mark.parametrize("kind", PEERS)
def test_plays_of_parts_merge_to_the_play_of_the_whole(kind: type[Uniform]) -> None:
    # Peers draw for all rows at once, so only one who never draws plays the same in parts.
    parts = [Arena.of([rates], 1, [number]) for number, rates in enumerate(RATES)]
    whole = play(Always(1), Arena.of(RATES, 1), [200])
    joined = merged([play(Always(1), part, [200]) for part in parts])
    assert joined.earned[200] == pytest.approx(whole.earned[200])
    assert joined.clicks == whole.clicks
    again = [play(kind(part.arms), part, [200]) for part in (parts[1], parts[1])]
    assert again[0].clicks == again[1].clicks


# Gaps as small as the rounding of what they are added to have no share that could be told.
GAPS = st.one_of(st.just(0.0), st.floats(1e-6, 1))


@given(
    st.lists(st.tuples(st.floats(0, 1), GAPS, st.floats(0, 1)), min_size=2, max_size=20),
    st.floats(0.1, 10),
)
def test_captured_share_is_pooled_and_free_of_scale(groups: list[tuple[float, float, float]], scale: float) -> None:
    uniform = np.array([low for low, _, _ in groups])
    best = uniform + np.array([gap for _, gap, _ in groups])
    earned = uniform + np.array([gap * share for _, gap, share in groups])
    share = captured_share(earned, uniform, best)
    assert -1e-6 <= share <= 1 + 1e-6
    assert captured_share(scale * earned, scale * uniform, scale * best) == pytest.approx(share, abs=1e-6)
    interval = captured_interval(earned, uniform, best)
    assert interval is None or interval[0] <= share <= interval[1]


def test_captured_interval_covers() -> None:
    # 400 draws of 60 groups around a true share of 0.3: a 95 % interval misses 20 +- 4.4 times. More than 45 misses are
    # five standard errors away even where the coverage is only 93 %.
    rng, missed = np.random.default_rng(8), 0
    for _ in range(400):
        gap = rng.gamma(2.0, 1.0, 60)
        earned = gap * rng.normal(0.3, 0.4, 60)
        low, high = captured_interval(earned, np.zeros(60), gap) or (0.0, 0.0)
        missed += not low <= 0.3 <= high
    assert 5 <= missed <= 45


def test_a_difference_is_that_of_the_shares_and_pairs_the_groups() -> None:
    arena = Arena.of(RATES * 10, seed=1)
    low, high = play(Always(1), arena, [50, 100]), play(Always(0), arena, [50, 100])
    found = differences(high, low, arena)
    for horizon in ("50", "100"):
        share = captured(high, arena)[horizon] - captured(low, arena)[horizon]
        assert found[horizon].value == pytest.approx(share)
        assert (found[horizon].low or 0) < share < (found[horizon].high or 0)
    # A policy against itself: no difference, and no doubt about it, however far the groups lie apart.
    assert differences(high, high, arena)["50"] == Difference(0.0, 0.0, 0.0)
    one = Arena.of(RATES[:1], seed=1)
    assert differences(play(Always(0), one, [50]), play(Always(1), one, [50]), one)["50"].low is None


def test_no_gap_and_too_few_groups_have_no_interval() -> None:
    one, none = np.array([1.0]), np.array([0.0, 0.0])
    assert captured_interval(one, np.zeros(1), one) is None
    assert captured_interval(none, none, none) is None
    assert captured_share(none, none, none) == 0.0
    with pytest.raises(ValueError, match="three arrays"):
        captured_share(one, none, none)


def group(number: int, headlines: int = 3, week: int = 201446) -> HeadlineGroup:
    texts = tuple(f"Headline {number}.{arm}: what {'they' if arm else 'nobody'} learned" for arm in range(headlines))
    return HeadlineGroup(f"t{number}", "image", texts, (1000,) * headlines, (10,) * headlines, week)


def test_a_sample_is_seeded_ordered_and_without_repeats() -> None:
    groups = [group(number) for number in range(40)]
    sample = sample_groups(groups, 10, seed=3)
    assert sample.numbers == tuple(sorted(set(sample.numbers)))
    assert sample.groups == tuple(groups[number] for number in sample.numbers)
    assert sample == sample_groups(groups, 10, seed=3)
    assert sample.numbers != sample_groups(groups, 10, seed=4).numbers
    assert sample_groups(groups, None, seed=3).numbers == sample_groups(groups, 99, seed=3).numbers == tuple(range(40))


def test_earlier_weeks_teach_and_later_ones_are_played() -> None:
    groups = [group(number, week=week) for number, week in enumerate((201305, 201410, 201305, 201446, 201501))]
    middle = split_by_week(groups, None)
    assert [one.week for one in middle.past] == [201305, 201410, 201305]
    assert [one.week for one in middle.later] == [201446, 201501]
    assert middle.week == 201446
    assert split_by_week(groups, 201305).past == ()
    assert len(split_by_week(groups, 201410).later) == 3
    assert split_by_week(groups[:1], None).later == (groups[0],)


def one_word_tests(week: int, first: int, count: int) -> list[HeadlineGroup]:
    """Tests of two headlines, of which the one with "you" is clicked six times as often."""
    return [
        HeadlineGroup(f"t{n}", "i", (f"What {n} learned", f"What you learned {n}"), (3000, 3000), (60, 360), week)
        for n in range(first, first + count)
    ]


@pytest.mark.parametrize("direct", [True, False])
def test_what_earlier_tests_taught_holds_in_the_first_impressions(direct: bool, tmp_path: Path) -> None:
    from simulators.replay_adloop import AdloopPeer, DirectPeer

    past, played = one_word_tests(201305, 0, 20), one_word_tests(201446, 20, 4)
    rng = np.random.default_rng(1)
    if direct:
        chosen = DirectPeer(played, 1, past).choose(np.arange(4), BATCH, rng)
    else:
        with closing(AdloopPeer(played, tmp_path / "a", 1, past)) as peer:
            chosen = peer.choose(np.arange(4), BATCH, rng)
    assert chosen.mean() > 0.8  # 1 is the headline with "you"


def test_direct_play_learns_as_the_whole_loop_does() -> None:
    from simulators.replay_adloop import DirectPeer

    groups = [group(number) for number in range(3)]
    arena = Arena.of([np.array([0.05, 0.3, 0.05])] * 3, seed=1)
    played = play(DirectPeer(groups, 1), arena, [250, 500])
    assert ((played.earned[500] - played.earned[250]) / 250 > 0.22).all()
    assert play(DirectPeer(groups, 1), arena, [250]).earned[250] == pytest.approx(played.earned[250])


def test_adloop_plays_through_its_real_parts_and_learns(tmp_path: Path) -> None:
    from optimizer.stream.log import whole
    from optimizer.stream.open import open_log
    from simulators.replay_adloop import AdloopPeer

    groups = [group(number) for number in range(3)]
    # One arm in three is clicked six times as often: ten rounds are plenty to see it.
    arena = Arena.of([np.array([0.05, 0.3, 0.05])] * 3, seed=1)
    with closing(AdloopPeer(groups, tmp_path / "a", 1)) as peer:
        played = play(peer, arena, [250, 500])
    late = (played.earned[500] - played.earned[250]) / 250
    assert (late > 0.22).all()
    log = open_log(f"sqlite:///{tmp_path / 'a' / 'log.sqlite'}")
    counts = {topic: sum(log.end(at) for at in whole(log, topic)) for topic in ("decisions", "events", "quarantine")}
    assert counts == {"decisions": 1500, "events": 1500 + played.clicks, "quarantine": 0}
    assert sum(log.end(at) for at in whole(log, "outcomes")) >= 1500
    log.close()
    with closing(AdloopPeer(groups, tmp_path / "b", 1)) as peer:
        again = play(peer, arena, [250])
    assert again.earned[250] == pytest.approx(played.earned[250])


def test_the_command_prints_the_contracts_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tests.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clickability_test_id", "headline", "impressions", "clicks", "test_week", "eyecatcher_id"])
        writer.writerows([f"t{n // 2}", f"Headline {n}", 2000, 20 + n, 201446, "i"] for n in range(4))
    assert main(["replay", "--data", str(path), "--groups", "1", "--processes", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out.splitlines()[-1])
    assert (figures["groups"], figures["arms"]) == (1, 2)
    assert (figures["file_groups"], figures["file_arms"]) == (2, 4)
    assert list(figures["captured"]) == ["uniform", "thompson", "ucb", "adloop"]
    assert all(list(shares) == ["1000", "5000", "15000"] for shares in figures["captured"].values())
    assert "a sample of 1 of the 2 later groups" in err


def test_the_command_plays_later_weeks_directly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tests.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clickability_test_id", "headline", "impressions", "clicks", "test_week", "eyecatcher_id"])
        writer.writerows([f"t{n // 2}", f"Headline {n}", 2000, 20 + n, 201446 + n // 4, "i"] for n in range(8))
    asked = ["replay", "--data", str(path), "--direct", "--processes", "1", "--json"]
    assert main(asked) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["groups"], figures["taught_groups"], figures["played_from_week"]) == (2, 2, 201447)
    share = figures["captured"]["adloop"]["5000"] - figures["captured"]["thompson"]["5000"]
    assert figures["differences"]["adloop - thompson"]["5000"]["value"] == pytest.approx(share)
    assert main([*asked, "--play-from", "201502"]) == 1
    assert "no group of that week or later" in capsys.readouterr().err


def test_the_command_refuses_a_file_without_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tests.csv"
    path.write_text(
        "clickability_test_id,headline,impressions,clicks,test_week,eyecatcher_id\nt,A,10,1,201330,i\nt,B,10,1,201330,i\n"
    )
    assert main(["replay", "--data", str(path)]) == 1
    err = capsys.readouterr().err
    assert "no group of two headlines" in err
    assert "2 rows of broken weeks" in err
    assert "Traceback" not in err


def test_thompson_beats_uniform_in_the_arena() -> None:
    arena = Arena.of([np.array([0.02, 0.04, 0.02])] * 30, seed=6)
    share = captured(play(ThompsonSampling(arena.arms), arena, [5000]), arena)["5000"]
    assert share > 0.4
