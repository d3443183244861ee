"""The peers: what they count, how they choose, and that they find the better arm."""

from __future__ import annotations

import numpy as np
import pytest

from simulators.peers import PEERS, UCB1, Peer, ThompsonSampling, Uniform

ARMS = np.array([2, 5, 3], dtype=np.int64)
ROWS = np.arange(3, dtype=np.int64)


@pytest.mark.parametrize("kind", PEERS)
def test_only_arms_that_exist_are_chosen(kind: type[Uniform]) -> None:
    peer, rng = kind(ARMS), np.random.default_rng(0)
    for _ in range(30):
        arms = peer.choose(ROWS, 7, rng)
        assert arms.shape == (3, 7)
        assert (arms >= 0).all()
        assert (arms < ARMS[:, None]).all()
        peer.update(ROWS, arms, (rng.random(arms.shape) < 0.02).astype(float))
    assert peer.impressions.sum(axis=1) == pytest.approx([210, 210, 210])


@pytest.mark.parametrize("kind", PEERS)
def test_one_row_at_a_time_learns_for_that_row_alone(kind: type[Uniform]) -> None:
    peer = kind(ARMS)
    peer.update(np.array([1]), np.array([[4, 4, 0]]), np.array([[1.0, 0.0, 0.0]]))
    assert peer.impressions.tolist() == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 2], [0, 0, 0, 0, 0]]
    assert peer.rewards.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_uniform_is_uniform() -> None:
    # Chi-square with 4 degrees of freedom over 50,000 draws: above 23.5 once in 10,000 seeds.
    arms = Uniform(ARMS).choose(np.array([1]), 50_000, np.random.default_rng(1))
    counts = np.bincount(arms[0], minlength=5)
    assert (np.square(counts - 10_000) / 10_000).sum() < 23.5


def test_thompson_chooses_with_the_posterior_probability_of_being_best() -> None:
    peer = ThompsonSampling(np.array([2]))
    peer.update(
        np.array([0]),
        np.array([[0] * 1000 + [1] * 1000]),
        np.array([([1.0] * 20 + [0.0] * 980) + [1.0] * 12 + [0.0] * 988]),
    )
    arms = peer.choose(np.array([0]), 20_000, np.random.default_rng(2))
    # P(Beta(21, 1055) > Beta(13, 1063)) by 10^7 draws of another generator: 0.9202. Standard error of the frequency
    # 0.002: five of them, a false alarm once in a million seeds.
    assert (arms == 0).mean() == pytest.approx(0.9202, abs=0.01)


def test_ucb_equals_its_formula_and_spreads_a_batch() -> None:
    peer = UCB1(np.array([3]))
    row, rng = np.array([0]), np.random.default_rng(0)
    assert peer.choose(row, 5, rng)[0, :3].tolist() == [0, 1, 2]
    peer.impressions[0], peer.rewards[0] = [400, 300, 300], [8, 9, 3]
    pooled = 21 / 1076
    index = np.array([8 / 400, 9 / 300, 3 / 300]) + np.sqrt(
        2 * pooled * (1 - pooled) * np.log(1000) / np.array([400.0, 300.0, 300.0])
    )
    assert peer.choose(row, 1, rng)[0, 0] == index.argmax()
    # As its own impressions narrow its interval, the leader hands over within one long batch.
    assert set(peer.choose(row, 2000, rng)[0].tolist()) >= {0, 1}


@pytest.mark.parametrize("kind", [ThompsonSampling, UCB1])
def test_the_better_arm_is_found(kind: type[ThompsonSampling]) -> None:
    rng, peer = np.random.default_rng(5), kind(np.full(40, 3, dtype=np.int64))
    rows, rates = np.arange(40, dtype=np.int64), np.array([0.01, 0.03, 0.01])
    for _ in range(120):
        arms = peer.choose(rows, 50, rng)
        peer.update(rows, arms, (rng.random(arms.shape) < rates[arms]).astype(float))
    last = peer.choose(rows, 50, rng)
    # A uniform choice gives 1/3.
    assert (last == 1).mean() > 0.75


def test_bad_shapes_are_refused() -> None:
    peer: Peer = Uniform(ARMS)
    with pytest.raises(ValueError, match="expected one count >= 1"):
        Uniform(np.array([2, 0]))
    with pytest.raises(ValueError, match="expected rows"):
        peer.update(ROWS, np.zeros((3, 2), dtype=np.int64), np.zeros((3, 1)))


@pytest.mark.parametrize("kind", [ThompsonSampling, UCB1])
def test_rewards_of_another_size_are_learnt_alike(kind: type[ThompsonSampling]) -> None:
    def played(pays: float) -> list[int]:
        peer, rng = kind(np.array([4])), np.random.default_rng(3)
        row, chosen = np.array([0]), []
        for _ in range(400):
            arms = peer.choose(row, 1, rng)
            chosen.append(int(arms[0, 0]))
            clicked = rng.random((1, 1)) < 0.1 * arms
            peer.update(row, arms, clicked.astype(np.float64) * pays)
        return chosen

    assert played(1.0) == played(256.0)


def test_rewards_of_many_sizes_count_as_clicks_of_their_mean_and_variance() -> None:
    peer = ThompsonSampling(np.array([2]))
    peer.update(np.array([0]), np.array([[0, 0, 0, 1]]), np.array([[2.0, 6.0, 0.0, 8.0]]))
    # sum r^2 / sum r = 104 / 16: a click is worth 6.5.
    assert peer.clicks(np.array([0])).tolist() == [pytest.approx([8 / 6.5, 8 / 6.5])]


@pytest.mark.parametrize("kind", PEERS)
@pytest.mark.parametrize("pays", [-3.0, 0.25])
def test_rewards_may_be_negative_or_come_with_every_impression(kind: type[Uniform], pays: float) -> None:
    peer, rng = kind(ARMS), np.random.default_rng(0)
    for _ in range(200):
        peer.update(ROWS, peer.choose(ROWS, 3, rng), np.full((3, 3), pays))
    assert peer.impressions.sum() == 1800


@pytest.mark.parametrize("pays", [-1.0, -1e6])
def test_thompson_finds_the_arm_that_loses_least(pays: float) -> None:
    rng, peer = np.random.default_rng(5), ThompsonSampling(np.full(20, 4, dtype=np.int64))
    rows, rates = np.arange(20, dtype=np.int64), np.array([0.2, 0.15, 0.02, 0.2])
    for _ in range(150):
        arms = peer.choose(rows, 10, rng)
        peer.update(rows, arms, np.where(rng.random(arms.shape) < rates[arms], pays, 0.0))
    # A uniform choice gives 1/4: that is what it was while nothing told arms apart that are never paid for.
    assert (peer.choose(rows, 50, rng) == 2).mean() > 0.75


def test_a_row_that_once_paid_less_than_nothing_still_tries_every_arm() -> None:
    # Nothing is lost but by the first arm, once: that the others were not shown yet must not count against them.
    peer, rng = ThompsonSampling(np.array([5])), np.random.default_rng(0)
    row = np.array([0])
    peer.update(row, np.array([[0]]), np.array([[-1.0]]))
    for _ in range(300):
        arms = peer.choose(row, 1, rng)
        peer.update(row, arms, np.where(arms == 3, 0.0, -0.3))
    assert (peer.impressions[0] >= 2).all()
    assert peer.impressions[0].argmax() == 3


def test_rewards_of_nothing_and_more_count_as_before() -> None:
    peer, rng = ThompsonSampling(np.array([3, 3])), np.random.default_rng(1)
    rows = np.array([0, 1])
    for _ in range(50):
        arms = peer.choose(rows, 4, rng)
        peer.update(rows, arms, (rng.random(arms.shape) < 0.2) * np.array([[1.0], [2.5]]))
    raised, nothing = peer.raised(rows)
    assert (raised == peer.clicks(rows)).all()
    assert (nothing == 0.0).all()
    peer.update(np.array([1]), np.array([[0]]), np.array([[-0.5]]))
    raised, nothing = peer.raised(rows)
    assert (raised[0] == peer.clicks(rows)[0]).all()
    assert nothing[1] > 0.0
    # In every unit alike: what a click is worth is the rewards' own.
    above = (peer.rewards[1] + 0.5 * peer.impressions[1]) * nothing[1] / 0.5
    assert raised[1] == pytest.approx(above)
