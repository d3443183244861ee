"""Headline tests played again: a simulation from real arm rates, not a replay of logged impressions.

Each group of headlines is a campaign and its headlines are one pool. Every policy meets the same people: whether the
visitor in slot s of round t would click arm a of group g is one draw, made from (seed, t) alone (common random
numbers), so policies differ only in what they chose. Groups advance in lockstep, 50 impressions a round, as in the
reference's measurements.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulators.peers import Ints, Peer
from simulators.stats import captured_interval, captured_share

Floats = NDArray[np.float64]

BATCH = 50
HORIZONS = (1_000, 5_000, 15_000)
DRAWS_STREAM, PEER_STREAM = 0x5EED, 0xB0B
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Arena:
    """Groups with their true arm rates: `rates` float64[G, A], 0 where a group has no such arm; `arms` int[G];
    `numbers` [G] says which of the file's groups each is."""

    rates: Floats
    arms: Ints
    numbers: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, rates: Sequence[Floats], seed: int, numbers: Sequence[int] | None = None) -> Arena:
        """From each group's rates float64[k]; `numbers` None counts from 0."""
        if not rates:
            raise ValueError("rates: got no group, expected at least one")
        arms = np.array([len(group) for group in rates], dtype=np.int64)
        table = np.zeros((len(rates), int(arms.max())))
        for row, group in enumerate(rates):
            table[row, : len(group)] = group
        return cls(table, arms, tuple(range(len(rates)) if numbers is None else numbers), seed)

    @property
    def best(self) -> Floats:
        """[G] the best arm's rate."""
        best: Floats = self.rates.max(axis=1)
        return best

    @property
    def uniform(self) -> Floats:
        """[G] the mean over arms: what a uniform choice earns."""
        mean: Floats = self.rates.sum(axis=1) / self.arms
        return mean

    def clicks(self, round_: int, arms: Ints) -> Floats:
        """Whether each visitor of a round clicks what is shown, 0.0 or 1.0 of shape [G, BATCH]; `arms` int[G, BATCH].

        Counter-based (Philox, Salmon et al. 2011): the draws of (seed, group, round) are the same for every policy, in
        any order, and whichever other groups are played."""
        drawn = np.empty(arms.shape)
        slots = np.arange(BATCH)
        for row, number in enumerate(self.numbers):
            bits = np.random.Philox(key=[DRAWS_STREAM, self.seed], counter=[0, 0, number, round_])
            drawn[row] = np.random.Generator(bits).random((BATCH, int(self.arms[row])))[slots, arms[row]]
        return (drawn < np.take_along_axis(self.rates, arms, axis=1)).astype(np.float64)


@dataclass(frozen=True)
class Played:
    """What one policy earned. `earned[h]` float64[G]: clicks expected, under the arm rates, from what it showed in
    the first h
    impressions of each group; `clicks` counts those realised."""

    name: str
    earned: dict[int, Floats]
    clicks: int
    seconds: float


class Difference(NamedTuple):
    """A difference of captured shares and its 95 % interval over groups, None below two groups."""

    value: float
    low: float | None
    high: float | None


def play(
    peer: Peer, arena: Arena, horizons: Sequence[int] = HORIZONS, progress: Progress = lambda done, of: None
) -> Played:
    """Play a policy through all groups up to the last horizon. Horizons are multiples of BATCH."""
    if any(h <= 0 or h % BATCH for h in horizons):
        raise ValueError(f"horizons: got {list(horizons)}, expected positive multiples of {BATCH}")
    begun = time.perf_counter()
    rng = np.random.default_rng([PEER_STREAM, arena.seed])
    rows = np.arange(len(arena.arms), dtype=np.int64)
    expected, realised = np.zeros(len(rows)), 0
    earned: dict[int, Floats] = {}
    rounds = max(horizons) // BATCH
    for round_ in range(rounds):
        arms = peer.choose(rows, BATCH, rng)
        rewards = arena.clicks(round_, arms)
        peer.update(rows, arms, rewards)
        expected += np.take_along_axis(arena.rates, arms, axis=1).sum(axis=1)
        realised += int(rewards.sum())
        if (round_ + 1) * BATCH in horizons:
            earned[(round_ + 1) * BATCH] = expected.copy()
        progress(round_ + 1, rounds)
    return Played(peer.name, earned, realised, time.perf_counter() - begun)


def merged(parts: Sequence[Played]) -> Played:
    """One policy's plays over disjoint groups as one play."""
    return Played(
        parts[0].name,
        {h: np.concatenate([part.earned[h] for part in parts]) for h in parts[0].earned},
        sum(part.clicks for part in parts),
        sum(part.seconds for part in parts),
    )


def captured(played: Played, arena: Arena) -> dict[str, float]:
    """Captured share by horizon, keys as text (docs/api.md, Commands)."""
    return {str(h): captured_share(earned, h * arena.uniform, h * arena.best) for h, earned in played.earned.items()}


def captured_intervals(played: Played, arena: Arena) -> dict[str, tuple[float, float] | None]:
    """95 % interval of each captured share over groups."""
    return {str(h): captured_interval(earned, h * arena.uniform, h * arena.best) for h, earned in played.earned.items()}


def differences(one: Played, other: Played, arena: Arena) -> dict[str, Difference]:
    """By how much `one` captured more than `other`, paired group by group: what both have in common drops out."""
    found = {}
    for h, earned in one.earned.items():
        more, none, gap = earned - other.earned[h], np.zeros(len(earned)), h * (arena.best - arena.uniform)
        interval = captured_interval(more, none, gap)
        found[str(h)] = Difference(captured_share(more, none, gap), *((None, None) if interval is None else interval))
    return found
