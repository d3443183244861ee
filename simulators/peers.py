"""Policies that Adloop is measured against: uniform, Thompson sampling and UCB1 over a fixed set of arms.

A peer plays many independent bandits ("rows": one headline test each, or one campaign and segment) at once, so that a
whole round of a replay is one array operation. It knows how many arms a row has and the clicks that came back,
nothing else.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PRIOR_ALPHA, PRIOR_BETA = 1.0, 75.0
LEAST = 0.01


class Peer(Protocol):
    """A bandit policy over rows of arms.

    `choose` picks for each of R distinct rows the arms of its next `count` impressions, before any of them is answered:
    int[R, count]. `update` gives the rewards of what was shown, same shapes: clicks, 0 or 1, or what a campaign pays
    for, of any size."""

    name: str

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints: ...

    def update(self, rows: Ints, arms: Ints, rewards: Floats) -> None: ...


class _Counting:
    """What the peers share: which arms exist, each arm's impressions and rewards so far, float[rows, max arms], and
    each row's sums of |r| and r^2 and its lowest reward, 0 where none was negative."""

    def __init__(self, arms: Ints) -> None:
        """`arms`: int[rows], each row's number of arms, at least 1."""
        if arms.ndim != 1 or not len(arms) or arms.min() < 1:
            raise ValueError(f"arms: got {arms!r}, expected one count >= 1 for each row")
        self.arms = arms
        self.exists = np.arange(arms.max())[None, :] < arms[:, None]
        self.impressions: Floats = np.zeros(self.exists.shape)
        self.rewards: Floats = np.zeros(self.exists.shape)
        self._sizes: Floats = np.zeros(len(arms))
        self._squares: Floats = np.zeros(len(arms))
        self._lowest: Floats = np.zeros(len(arms))

    def update(self, rows: Ints, arms: Ints, rewards: Floats) -> None:
        """Count rewards [R, count] of the arms shown."""
        if arms.shape != rewards.shape or len(rows) != len(arms):
            raise ValueError(
                f"expected rows [R], arms and rewards [R, count], got {rows.shape}, {arms.shape}, {rewards.shape}"
            )
        at = np.broadcast_to(rows[:, None], arms.shape)
        np.add.at(self.impressions, (at, arms), 1.0)
        np.add.at(self.rewards, (at, arms), rewards)
        self._sizes[rows] += np.abs(rewards).sum(axis=1)
        self._squares[rows] += np.square(rewards).sum(axis=1)
        self._lowest[rows] = np.minimum(self._lowest[rows], rewards.min(axis=1, initial=0.0))

    def clicks(self, rows: Ints) -> Floats:
        """The arms' rewards as numbers of clicks, float[R, max arms].

        A click is worth sum r^2 / sum |r| of its row: where rewards are rare, N clicks of that worth have the mean and
        the variance that the rewards have (a compound Poisson sum matched by a scaled Poisson one). It is 1, and these
        are the clicks, where rewards are 0 or 1."""
        squares = self._squares[rows]
        per_reward = np.divide(self._sizes[rows], squares, out=np.ones_like(squares), where=squares > 0.0)
        counted: Floats = self.rewards[rows] * per_reward[:, None]
        return counted

    def raised(self, rows: Ints) -> tuple[Floats, Floats]:
        """(`clicks` of the rewards above the row's lowest so far, float[R, max arms]; what a reward of nothing is then,
        float[R]): the clicks themselves and 0 where no reward was negative."""
        low, shown, rewards = self._lowest[rows], self.impressions[rows], self.rewards[rows]
        count, total = shown.sum(axis=1), rewards.sum(axis=1)
        sizes = np.where(low < 0.0, total - low * count, self._sizes[rows])
        squares = self._squares[rows] - 2.0 * low * total + low * low * count
        # Where all were the lowest, what is left of the sums is rounding: a click is then what is lost each time.
        usual = np.where(low < 0.0, np.divide(-1.0, low, out=np.ones_like(low), where=low < 0.0), 1.0)
        known = squares > 1e-9 * low * low * count
        per_reward = np.divide(sizes, squares, out=usual, where=known)
        return (rewards - low[:, None] * shown) * per_reward[:, None], -low * per_reward


class Uniform(_Counting):
    """Each arm with the same probability, for ever: the baseline."""

    name = "uniform"

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints:
        chosen: Ints = (rng.random((len(rows), count)) * self.arms[rows][:, None]).astype(np.int64)
        return chosen


class ThompsonSampling(_Counting):
    """Beta-Bernoulli Thompson sampling (Thompson 1933; Chapelle, Li 2011, "An Empirical Evaluation of Thompson
    Sampling").

    Every impression draws anew from the posteriors as they stood when the batch began. Prior Beta(1, 75), for click
    rates near 1.3 %. Once a row has had a negative reward its rewards count from the lowest so far, those of the
    prior's 76 impressions too: arms of which none is paid for would all have the same posterior otherwise, and with the
    prior left behind no second arm would be tried."""

    name = "thompson"

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints:
        clicks, nothing = self.raised(rows)
        more = (PRIOR_ALPHA + PRIOR_BETA) * np.minimum(nothing, PRIOR_BETA / (PRIOR_ALPHA + PRIOR_BETA))[:, None]
        # Rewards that are not 0 or 1 may count as more clicks than impressions, or as fewer than none.
        alpha = np.maximum(PRIOR_ALPHA + more + clicks, LEAST)
        beta = np.maximum(PRIOR_BETA - more + self.impressions[rows] - clicks, LEAST)
        draws = rng.beta(alpha[:, None, :], beta[:, None, :], size=(len(rows), count, alpha.shape[1]))
        chosen: Ints = np.where(self.exists[rows][:, None, :], draws, -1.0).argmax(axis=2)
        return chosen


class UCB1(_Counting):
    """UCB1 (Auer, Cesa-Bianchi, Fischer 2002) with the Bernoulli variance in place of the worst case, 1/4:

    index_i = rate_i + sqrt(2 v ln N / n_i), v = m (1 - m) with m the row's pooled click rate under the prior Beta(1,
    75). Within a batch the impressions already given out count in n_i and N, their rewards do not yet: without that a
    whole batch would go to one arm. Arms never shown come first, the lowest index first."""

    name = "ucb"

    def choose(self, rows: Ints, count: int, rng: np.random.Generator) -> Ints:
        shown, clicks = self.impressions[rows].copy(), self.clicks(rows)
        pooled = (clicks.sum(axis=1) + PRIOR_ALPHA) / (shown.sum(axis=1) + PRIOR_ALPHA + PRIOR_BETA)
        variance = np.clip(pooled * (1.0 - pooled), 0.0, None)[:, None]
        rate = np.divide(clicks, shown, out=np.zeros_like(clicks), where=shown > 0)
        every = np.arange(len(rows))
        chosen = np.empty((len(rows), count), dtype=np.int64)
        for slot in range(count):
            total = np.maximum(shown.sum(axis=1, keepdims=True), 1.0)
            width = np.sqrt(2.0 * variance * np.log(total) / np.maximum(shown, 1.0))
            index = np.where(shown > 0, rate + width, np.inf)
            chosen[:, slot] = np.where(self.exists[rows], index, -np.inf).argmax(axis=1)
            shown[every, chosen[:, slot]] += 1.0
        return chosen


PEERS: tuple[type[Uniform] | type[ThompsonSampling] | type[UCB1], ...] = (Uniform, ThompsonSampling, UCB1)
