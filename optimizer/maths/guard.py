"""What a click counts where conversions come back but are not paid for: the guard against bait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, expit

Floats = NDArray[np.float64]


POWER = 2.0
QUANTILE, SLACK = 0.75, 0.9
PRIOR_TRUST, PRIOR_ALONE = 4.0, -3.0
CLICKS = 2.0 ** np.arange(8)[:, None]  # what the places' shared prior may count as, in clicks of one of them


def click_worth(converts: Floats, trust: float = 1.0) -> Floats:
    """min(1, c / c0) ** (POWER trust), float64[n], where c0 is SLACK of the QUANTILE of the texts' c: with full trust a
    click counts whole where it converts nearly as often as on the better quarter of the texts, a quarter where it
    converts half as often as that. It never counts more: what is not paid for is no aim of its own.

    Beside the other texts, and not beside the controls: those get few clicks, and a text's c is learnt with theirs, so
    that all are too high or too low together. By click and not by impression: text that draws nine times the clicks
    would have to lose eight ninths of its conversions before it had fewer of them than control, and by then it would be
    shown everywhere. Squared, since c is learnt after the clicks: the prior draws all texts together just when it
    matters. So a text with nine times the clicks of which a third as many convert comes out about where control does,
    though it brings three times the conversions: the guard errs on the side of what the campaign has.

    Args:
      converts: c float[n] > 0, probability that a click on each text converts.
      trust: probability that what a text says matters for conversions at all (`trust_in_texts`).
    """
    c = np.asarray(converts, np.float64)
    if not (c > 0).all():
        raise ValueError(f"converts: got {c.min()}, expected probabilities > 0")
    return np.minimum(1.0, c / (SLACK * np.quantile(c, QUANTILE))) ** (POWER * trust) if c.size else c


def conversion_evidence(said: Floats, common: Floats, converted: NDArray[np.bool_], arrived: Floats) -> Floats:
    """Log of how much likelier each click's fate so far is where texts differ in what they convert at than where they
    do not, nats float64[n]. What was said before the click was learnt from makes the sum over clicks a prequential
    likelihood ratio (Dawid 1984, Journal of the Royal Statistical Society A 147, 278-292): differences that are chance
    cost it what they promise, without a penalty for the number of features.

    Args:
      said: c float[n] in (0, 1), predicted probability that a click on this text converts.
      common: c0 float[n] in (0, 1), the same for any text of its place.
      converted: bool[n], whether it has.
      arrived: F float[n] in [0, 1], share of conversions that have come by the click's age; 1 where none can come.
    """
    return np.asarray(
        np.where(converted, np.log(said / common), np.log1p(-said * arrived) - np.log1p(-common * arrived)), np.float64
    )


def trust_in_texts(own: Floats, together: float = PRIOR_TRUST, alone: float = PRIOR_ALONE) -> Floats:
    """Probability that texts differ in what they convert at, float64[C], of campaigns with the evidence `own` float[C]
    (nats): the larger of that by the evidence of all, since features are shared, and that by the campaign's own.

    `together`, `alone`: log-odds before any evidence that texts differ in all campaigns, and in this one but not in
    all. The first is high: a guard that waits for proof would come after the bait. The second is low: of many
    campaigns in which texts convert alike some look otherwise by chance."""
    evidence = np.asarray(own, np.float64)
    return np.asarray(np.maximum(expit(together + evidence.sum()), expit(alone + evidence)), np.float64)


def shared_rates(converted: Floats, known: Floats) -> Floats:
    """How often each place's clicks convert, float64[C]: the posterior's mean under a beta prior that the places
    share, of their common rate, and as narrow as makes what they show likeliest (empirical Bayes for the beta-binomial:
    Efron, Hastie 2016, Computer Age Statistical Inference, section 6.1). Places that are alike learn from each
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
