"""When learning has to stop: a text model's collapse, and a reward that is not what was meant, in figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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
    """What is no longer a healthy policy; docs/learning.md has what everyday learning shows."""

    kl_over: float = 1.05
    kl_step: float = 3.0
    entropy: float = 0.1
    shortest: float = 0.5
    longest: float = 2.0
    duplicates: float = 0.97
    rejected: float = 0.6
    rejected_rise: float = 2.0


def ails(vitals: Vitals, limits: Limits) -> str | None:
    """What is wrong with a policy, a phrase with its figures; None where nothing is. Unknown figures ail nothing."""
    # A budget that was lowered is approached from above: that is no illness.
    if vitals.kl > limits.kl_over * vitals.kl_budget and not vitals.kl < vitals.kl_before:
        return f"divergence of {vitals.kl:.1f} nats from the reference, over its budget of {vitals.kl_budget:g}"
    if vitals.kl_step > limits.kl_step:
        return f"a single version moved by {vitals.kl_step:.1f} nats (at most {limits.kl_step:g})"
    if vitals.entropy < limits.entropy:
        return f"entropy of {vitals.entropy:.2f} nats a token (at least {limits.entropy:g}): always the same text"
    if vitals.length < limits.shortest or vitals.length > limits.longest:
        return (
            f"texts are {vitals.length:.1f} times as long as the first model's "
            f"({limits.shortest:g} to {limits.longest:g} is usual)"
        )
    if vitals.duplicates > limits.duplicates:
        return f"{vitals.duplicates:.0%} of the samples repeat another (at most {limits.duplicates:.0%})"
    if vitals.rejected > max(limits.rejected, limits.rejected_rise * vitals.rejected_first):
        return (
            f"the gate refuses {vitals.rejected:.0%} of the samples "
            f"(at most {limits.rejected:.0%}; {vitals.rejected_first:.0%} at first)"
        )
    return None


class Response(NamedTuple):
    """What people did to the texts shown, by campaign: float64[C] each."""

    shown: Array
    clicked: Array
    converted: Array


class Conversions(NamedTuple):
    """Conversions of late beside what the clicks of late would have brought at the rates of before. `z`: standard
    deviations by which there are more; `of_shown`, `clicks_of_shown`: conversions and clicks over what as many
    impressions brought before."""

    z: float
    of_shown: float
    clicks_of_shown: float


def conversions(before: Response, late: Response) -> Conversions | None:
    """Compare late with before, campaign by campaign, so that a shift of the traffic between campaigns says nothing.

    z is Mantel's and Haenszel's (1959, Journal of the National Cancer Institute 22): given a campaign's clicks and
    conversions in all, those of late are hypergeometric if nothing has changed; sparse campaigns bring no bias. None
    where that has no variance, or nothing was clicked or converted before."""
    before, late = (Response(*(np.asarray(one, float) for one in some)) for some in (before, late))
    clicks, converted = before.clicked + late.clicked, before.converted + late.converted
    at = (before.clicked > 0) & (late.clicked > 0) & (clicks > 1)
    clicks, converted = clicks[at], converted[at]
    share = late.clicked[at] / np.maximum(clicks, 1.0)
    variance = float(np.sum(share * (1 - share) * converted * (clicks - converted) / (clicks - 1.0)))
    shown = before.shown > 0
    rate = np.divide(late.shown, before.shown, out=np.zeros_like(late.shown), where=shown)
    expected_conversions, expected_clicks = float(rate @ before.converted), float(rate @ before.clicked)
    if variance <= 0 or expected_conversions <= 0 or expected_clicks <= 0:
        return None
    return Conversions(
        z=float(np.sum(late.converted[at] - converted * share)) / math.sqrt(variance),
        of_shown=float(late.converted[shown].sum()) / expected_conversions,
        clicks_of_shown=float(late.clicked[shown].sum()) / expected_clicks,
    )


def baits(found: Conversions, least_z: float = 3.5, least_loss: float = 0.1) -> str | None:
    """Clicks up with conversions down, as a phrase; None where there is no such thing.

    That clicks convert less is no harm while more of them make up for it: conversions per impression must have fallen
    as well, by `least_loss`."""
    if found.clicks_of_shown > 1.0 and found.z < -least_z and found.of_shown < 1.0 - least_loss:
        return (
            f"clicks are up {found.clicks_of_shown - 1.0:+.0%} and conversions down {found.of_shown - 1.0:+.0%} per "
            f"impression ({-found.z:.1f} standard deviations under what the clicks would have brought before)"
        )
    return None
