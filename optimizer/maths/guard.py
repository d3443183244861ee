"""What a click counts where conversions come back but are not paid for: the guard against bait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

Floats = NDArray[np.float64]


POWER = 2.0
QUANTILE, SLACK = 0.75, 0.9
CLICKS = 2.0 ** np.arange(8)[:, None]  # what the campaigns' shared prior may count as, in clicks of one of them


def click_worth(converts: Floats) -> Floats:
    """min(1, c / c0) ** POWER, float64[n], where c0 is SLACK of the QUANTILE of the texts' c: a click counts in full
    where it converts nearly as often as on the better quarter of the texts, a quarter where it converts half as often
    as that. It never counts more: what is not paid for is no aim of its own.

    Beside the other texts, and not beside the controls: those get few clicks, and a text's c is learnt with theirs, so
    that all are too high or too low together. By click and not by impression: text that draws nine times the clicks
    would have to lose eight ninths of its conversions before it had fewer of them than control, and by then it would be
    shown everywhere. Squared, since c is learnt after the clicks: the prior draws all texts together just when it
    matters. So a text with nine times the clicks of which a third as many convert comes out about where control does,
    though it brings three times the conversions: the guard errs on the side of what the campaign has.

    Args:
      converts: c float[n] > 0, probability that a click on each text converts.
    """
    c = np.asarray(converts, np.float64)
    if not (c > 0).all():
        raise ValueError(f"converts: got {c.min()}, expected probabilities > 0")
    return np.minimum(1.0, c / (SLACK * np.quantile(c, QUANTILE))) ** POWER if c.size else c


def shared_rates(converted: Floats, known: Floats) -> Floats:
    """How often each campaign's clicks convert, float64[C]: the posterior's mean under a beta prior that the campaigns
    share, of their common rate, and as narrow as makes what they show likeliest (empirical Bayes for the beta-binomial:
    Efron, Hastie 2016, Computer Age Statistical Inference, section 6.1). Campaigns that are alike learn from each
    other; one that is not has its own rate.

    Args:
      converted: k float[C], clicks that converted.
      known: n float[C] >= k, clicks of which that is known; parts of clicks for those still open.
    """
    k, n = np.asarray(converted, np.float64), np.asarray(known, np.float64)
    if (k < 0).any() or (n < k).any():
        raise ValueError("converted, known: got a campaign with fewer clicks than conversions, expected 0 <= k <= n")
    mean = (k.sum() + 0.5) / (n.sum() + 1.0)
    a, b = mean * CLICKS, (1.0 - mean) * CLICKS
    likelihood = (betaln(k + a, n - k + b) - betaln(a, b)).sum(axis=1)
    prior = CLICKS[int(np.argmax(likelihood)), 0] if len(k) > 1 else 1.0
    return np.asarray((k + mean * prior) / (n + prior), np.float64)
