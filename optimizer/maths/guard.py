"""What a click counts where conversions come back but are not paid for: the guard against bait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, betaln

Floats = NDArray[np.float64]


POWER = 2.0
LOW = 0.16  # the quantile that lies one standard deviation below
CLICKS = 2.0 ** np.arange(8)[:, None]  # what the shared prior may count as, in clicks of a campaign


def click_worth(converts: Floats, reference: float) -> Floats:
    """min(1, c / c0) ** POWER, float64[n]: a click counts in full where it converts as often as the campaign's
    reference clicks, a quarter where it converts half as often. It never counts more: what is not paid for is no aim of
    its own.

    By click and not by impression: text that draws nine times the clicks would have to lose eight ninths of its
    conversions before it had fewer of them than control, and by then it would be shown everywhere. Squared, since c is
    learnt after the clicks: drawn towards c0 by its prior, it is too high just when it matters (docs/decisions.md). So
    a text with nine times the clicks of which a third as many convert stands about where control does, though it
    brings three times the conversions: the guard errs on the side of what the campaign has.

    Args:
      converts: c float[n], probability that a click on each text converts.
      reference: c0 > 0, what the reference clicks convert at, at least (`reference_rates`).
    """
    if not reference > 0:
        raise ValueError(f"reference: got {reference}, expected > 0")
    return np.minimum(1.0, np.asarray(converts, np.float64) / reference) ** POWER


def reference_rates(converted: Floats, known: Floats) -> tuple[Floats, Floats]:
    """(centre, low), float64[C] each: how often each campaign's clicks convert, the posterior's mean and its LOW
    quantile, under a beta prior that the campaigns share: of their common rate, and as narrow as makes what they show
    likeliest (empirical Bayes for the beta-binomial: Skellam 1948; Efron, Hastie 2016, section 6.1). Campaigns that are
    alike learn from each other; one that is not has its own rate. A text is held against the low one, so that a few
    lucky clicks don't make all other texts look like bait.

    Args:
      converted: k float[C], clicks that converted.
      known: n float[C] >= k, clicks of which that is known; parts of clicks for those still open.
    """
    k, n = np.asarray(converted, np.float64), np.asarray(known, np.float64)
    if (k < 0).any() or (n < k).any():
        raise ValueError("converted, known: got a campaign with fewer clicks than conversions, expected 0 <= k <= n")
    mean = (k.sum() + 0.5) / (n.sum() + 1.0)
    likelihood = (
        betaln(k + mean * CLICKS, n - k + (1 - mean) * CLICKS) - betaln(mean * CLICKS, (1 - mean) * CLICKS)
    ).sum(axis=1)
    prior = CLICKS[int(np.argmax(likelihood)), 0] if len(k) > 1 else 1.0
    a, b = k + mean * prior, n - k + (1 - mean) * prior
    return a / (a + b), betaincinv(a, b, LOW)
