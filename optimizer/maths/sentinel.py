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
    """What is no longer a healthy policy. Set wide: everyday learning keeps well inside (docs/learning.md)."""

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
    deviations by which there are more; `of_clicks`: their number over that; `of_shown`, `clicks_of_shown`: conversions
    and clicks over what as many impressions brought before."""

    z: float
    of_clicks: float
    of_shown: float
    clicks_of_shown: float


def conversions(before: Response, late: Response, least_clicks: float = 5.0) -> Conversions | None:
    """Compare late with before, campaign by campaign, so that a shift of the traffic between campaigns says nothing.

    Given the clicks, a conversion is a draw with its campaign's chance; that chance is known from `before` with its own
    sampling error (delta method). Campaigns with fewer than `least_clicks` clicks before are left out; None where no
    campaign is left, or nothing converted before."""
    at = (before.clicked >= least_clicks) & (late.shown > 0)
    if not at.any() or before.converted[at].sum() == 0:
        return None
    shown, clicked, converted = (values[at] for values in before)
    shown_late, clicked_late, converted_late = (values[at] for values in late)
    # Half a conversion and half a failure more: a campaign without conversions before has no chance of 0.
    chance = (converted + 0.5) / (clicked + 1.0)
    expected = float(clicked_late @ chance)
    variance = float(np.sum(chance * (1 - chance) * (clicked_late + np.square(clicked_late) / (clicked + 1.0))))
    if expected <= 0 or variance <= 0:
        return None
    got = float(converted_late.sum())
    return Conversions(
        z=(got - expected) / math.sqrt(variance),
        of_clicks=got / expected,
        of_shown=got / max(float(shown_late @ (converted / shown)), 1e-12),
        clicks_of_shown=float(clicked_late.sum()) / max(float(shown_late @ (clicked / shown)), 1e-12),
    )


def baits(found: Conversions, least_z: float = 3.0, least_loss: float = 0.1) -> str | None:
    """Clicks up with conversions down, as a phrase; None where there is no such thing.

    That clicks convert less is no harm while more of them make up for it: conversions per impression must have fallen
    as well, by `least_loss`."""
    if found.clicks_of_shown > 1.0 and found.z < -least_z and found.of_shown < 1.0 - least_loss:
        return (
            f"clicks are up {found.clicks_of_shown - 1.0:+.0%} and conversions down {found.of_shown - 1.0:+.0%} per "
            f"impression ({-found.z:.1f} standard deviations under what the clicks would have brought before)"
        )
    return None
