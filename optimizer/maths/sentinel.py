"""When learning has to stop: a text model's collapse, and a reward that is not what was meant, in figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from optimizer.errors import ConfigError
from optimizer.ranges import NOT_NEGATIVE, NOT_NEGATIVE_OR_ENDLESS, POSITIVE_OR_ENDLESS, SHARE, check_ranges
from optimizer.types import HaltReason

Array = NDArray[np.float64]
Ints = NDArray[np.int64]


class Vitals(NamedTuple):
    """A policy version's state. `kl`: nats per sequence from the reference, `kl_budget` what is allowed, `kl_before`
    that of the version before. `kl_step`: nats per sequence from the version before. `entropy`: nats per token. Of its
    latest samples: `length`, mean tokens over that of the reference's samples; `duplicates`, the share that repeats
    another of its pool; `rejected`, the share that the gate refuses, and `rejected_first`, that of the reference's
    samples. nan: not known yet."""

    kl: float
    kl_budget: float
    kl_before: float
    kl_step: float
    entropy: float
    length: float
    duplicates: float
    rejected: float
    rejected_first: float


@dataclass(frozen=True)
class Limits:
    """What is no longer a healthy policy; docs/learning.md has what everyday learning shows.

    `kl_over`: times the budget, above which the divergence may not be unless it falls. `kl_step`: nats per sequence
    that a version may move at most. `entropy`: nats per token at the least. `shortest`, `longest`: mean length of the
    samples over that of the first ones. `duplicates`: share of them that may repeat another. `rejected`: share that the
    gate may refuse, or `rejected_rise` times what it refused at first if that is more. What switches a
    limit off: infinity, 1 for a share, 0 for `entropy` and `shortest`.
    Raises ConfigError for what is out of its range."""

    kl_over: float = 1.05
    kl_step: float = 3.0
    entropy: float = 0.1
    shortest: float = 0.5
    longest: float = 2.0
    duplicates: float = 0.97
    rejected: float = 0.6
    rejected_rise: float = 2.0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            kl_over=POSITIVE_OR_ENDLESS,
            kl_step=POSITIVE_OR_ENDLESS,
            entropy=NOT_NEGATIVE,
            shortest=NOT_NEGATIVE,
            longest=POSITIVE_OR_ENDLESS,
            duplicates=SHARE,
            rejected=SHARE,
            rejected_rise=NOT_NEGATIVE_OR_ENDLESS,
        )
        if self.shortest >= self.longest:
            raise ConfigError(
                f"Limits.shortest: got {self.shortest}, expected less than longest, which is {self.longest}; lower it"
            )


class Ailment(NamedTuple):
    """What is wrong: the `reason`, for programs, and `why`, a phrase with its figures, for people."""

    reason: HaltReason
    why: str


def ails(vitals: Vitals, limits: Limits) -> Ailment | None:
    """What is wrong with a policy; None where nothing is. Unknown figures ail nothing."""
    # A budget that was lowered is approached from above: that is no illness.
    if vitals.kl > limits.kl_over * vitals.kl_budget and not vitals.kl < vitals.kl_before:
        why = f"divergence of {vitals.kl:.1f} nats from the reference, over its budget of {vitals.kl_budget:g}"
        return Ailment("kl", why)
    if vitals.kl_step > limits.kl_step:
        return Ailment("kl_step", f"a single version moved by {vitals.kl_step:.1f} nats (at most {limits.kl_step:g})")
    if vitals.entropy < limits.entropy:
        why = f"entropy of {vitals.entropy:.2f} nats a token (at least {limits.entropy:g}): always the same text"
        return Ailment("entropy", why)
    if vitals.length < limits.shortest or vitals.length > limits.longest:
        return Ailment(
            "length",
            f"texts are {vitals.length:.1f} times as long as the first model's "
            f"({limits.shortest:g} to {limits.longest:g} is usual)",
        )
    if vitals.duplicates > limits.duplicates:
        why = f"{vitals.duplicates:.0%} of the samples repeat another (at most {limits.duplicates:.0%})"
        return Ailment("duplicates", why)
    if vitals.rejected > max(limits.rejected, limits.rejected_rise * vitals.rejected_first):
        return Ailment(
            "rejected",
            f"the gate refuses {vitals.rejected:.0%} of the samples "
            f"(at most {limits.rejected:.0%}; {vitals.rejected_first:.0%} at first)",
        )
    return None


def windows(times: Sequence[Ints], converted: Sequence[Array], most: Sequence[int], wanted: int) -> Ints:
    """How many of each campaign's first impressions are to be compared with as many of its newest, int64[C].

    From the newest impression of all campaigns back in time, each calls in the next of its own campaign's first, as
    long as these are in its first half, until those that were called in have `wanted` conversions. The one that ends it
    is left out: it is there because it converted, and with it the rate would be too high (Haldane 1945, Biometrika 33).
    So the newest of all campaigns are of one time, and how many they are hangs on no conversion of theirs.

    Args:
      times: int64[N] each, ascending; `converted`: float64[N] each, 0 or 1.
      most: int each, how many of the newest are of late.
    """
    halves = [min(len(some) // 2, own) for some, own in zip(times, most, strict=True)]
    owners = np.repeat(np.arange(len(halves)), halves)
    if not len(owners):
        return np.zeros(len(halves), np.int64)
    newest = np.concatenate([some[::-1][:half] for some, half in zip(times, halves, strict=True)])
    first = np.concatenate([some[:half] for some, half in zip(converted, halves, strict=True)])
    order = np.argsort(-newest, kind="stable")
    size = int(np.searchsorted(np.cumsum(first[order]), wanted))
    return np.bincount(owners[order[:size]], minlength=len(halves))


class Response(NamedTuple):
    """What people did to the texts shown, by stratum (campaign and segment): float64[S] each."""

    shown: Array
    clicked: Array
    converted: Array


class Conversions(NamedTuple):
    """Conversions of late beside what the clicks of late would have brought at the rates of before. `p`: the
    probability of so few or fewer if nothing has changed; `of_shown`, `clicks_of_shown`: conversions and clicks per
    impression over what they were before."""

    p: float
    of_shown: float
    clicks_of_shown: float


def conversions(before: Response, late: Response) -> Conversions | None:
    """Compare late with before, stratum by stratum, so that a shift of the traffic between them says nothing.

    p is the exact test's of independence given the strata (Birch 1964, Journal of the Royal Statistical Society B 26):
    given a stratum's clicks and conversions in all, those of late are hypergeometric if nothing has changed, and their
    sum over the strata has the convolution of these distributions; neither sparse strata nor few conversions bring a
    bias. The ratios are Mantel's and Haenszel's risk ratios, for sparse strata (Greenland and Robins 1985, Biometrics
    41). None where no stratum can tell, or nothing was clicked or converted before."""
    before, late = (Response(*(np.asarray(one, float) for one in some)) for some in (before, late))
    clicks, converted = before.clicked + late.clicked, before.converted + late.converted
    at = (before.clicked > 0) & (late.clicked > 0) & (converted > 0) & (converted < clicks)
    of_shown = _rate_ratio(late.converted, late.shown, before.converted, before.shown)
    clicks_of_shown = _rate_ratio(late.clicked, late.shown, before.clicked, before.shown)
    if not at.any() or of_shown is None or clicks_of_shown is None:
        return None
    chances, least = np.ones(1), 0
    for all_clicks, all_converted, late_clicks in zip(clicks[at], converted[at], late.clicked[at], strict=True):
        fewest = max(0, int(all_converted + late_clicks - all_clicks))
        count = np.arange(fewest, int(min(all_converted, late_clicks)) + 1)
        chances = np.convolve(chances, hypergeom.pmf(count, all_clicks, all_converted, late_clicks))
        least += fewest
    p = float(chances[: int(late.converted[at].sum()) - least + 1].sum())
    return Conversions(min(1.0, p), of_shown, clicks_of_shown)


def _rate_ratio(count: Array, of: Array, count_before: Array, of_before: Array) -> float | None:
    total = np.maximum(of + of_before, 1.0)
    before = float(np.sum(count_before * of / total))
    return float(np.sum(count * of_before / total)) / before if before > 0 else None


def baits(found: Conversions, most_p: float = 1e-4, least_loss: float = 0.1) -> Ailment | None:
    """Clicks up with conversions down; None where there is no such thing.

    That clicks convert less is no harm while more of them make up for it: conversions per impression must have fallen
    as well, by `least_loss`."""
    if found.clicks_of_shown > 1.0 and found.p < most_p and found.of_shown < 1.0 - least_loss:
        return Ailment(
            "bait",
            f"clicks are up {found.clicks_of_shown - 1.0:+.0%} and conversions down {found.of_shown - 1.0:+.0%} per "
            f"impression (so few would have a probability of {found.p:.0e} if clicks converted as before)",
        )
    return None
