"""What a click counts where conversions come back but are not paid for: the guard against bait."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, expit, logit, logsumexp

Floats = NDArray[np.float64]


POWER = 2.0
QUANTILE, SLACK = 0.75, 0.9
PRIOR_TRUST = 4.0  # log-odds that texts differ, before any evidence: a guard that waits for proof comes after the bait
LEAST_OWN, LEAST_OTHERS, MOST_OTHERS = -7.0, -6.0, 2.0  # nats
SLOPE_SCALE, BETWEEN = 1.0, 0.5
SLOPES = np.linspace(-5.0, 5.0, 41)
NEAR, NEAR_PRIOR = 100, 10.0  # clicks
CLICKS = 2.0 ** np.arange(8)[:, None]  # what the places' shared prior may count as, in clicks of one of them


def click_worth(converts: Floats, usual: float = 0.0) -> Floats:
    """min(1, c / c0) ** POWER, float64[n], where c0 is SLACK of the QUANTILE of the texts' c, or of `usual` where that
    is more: a click counts whole where it converts nearly as often as on the better quarter of the texts, a quarter
    where it converts half as often as that. It never counts more: what is not paid for is no aim of its own.

    Beside the other texts, and not beside the controls: those get few clicks, and a text's c is learnt with theirs, so
    that all are too high or too low together. By click and not by impression: text that draws nine times the clicks
    would have to lose eight ninths of its conversions before it had fewer of them than control, and by then it would be
    shown everywhere. Squared, since c is learnt after the clicks: the prior draws all texts together just when it
    matters. So a text with nine times the clicks of which a third as many convert comes out about where control does,
    though it brings three times the conversions: the guard errs on the side of what the campaign has.

    Args:
      converts: c float[n] > 0, probability that a click on each text converts.
      usual: what the texts that have been clicked there convert at in their middle, 0 where that is not known: bait
        that fills a pool must not become its own measure.
    """
    c = np.asarray(converts, np.float64)
    if not (c > 0).all():
        raise ValueError(f"converts: got {c.min()}, expected probabilities > 0")
    return np.minimum(1.0, c / (SLACK * max(float(np.quantile(c, QUANTILE)), usual))) ** POWER if c.size else c


def conversion_logs(said: Floats, converted: NDArray[np.bool_], arrived: Floats) -> Floats:
    """Log of how likely each click's fate so far is, nats float64[n].

    Args:
      said: c float[n] in (0, 1), predicted probability that the click converts.
      converted: bool[n], whether it has.
      arrived: F float[n] in [0, 1], share of conversions that have come by the click's age; 1 where none can come.
    """
    return np.asarray(np.where(converted, np.log(said), np.log1p(-said * arrived)), np.float64)


def lure_slopes(
    offset: Floats,
    lure: Floats,
    converted: NDArray[np.bool_],
    arrived: Floats,
    campaigns: NDArray[np.intp],
    tenants: NDArray[np.intp],
) -> Floats:
    """By how much the log-odds that a click converts change with the log-odds that its text is clicked, float64[C] by
    campaign: posterior means of a hierarchical model, normal around the tenant's slope (standard deviation BETWEEN),
    and that around 0 (SLOPE_SCALE in all), exact but for the grid.

    Bait is what draws clicks from people who never buy: it shows as a slope under 0. Its words are many and each has
    few clicks, so that one by one they are found out late; the slope is learnt from all clicks together, and holds for
    text that nobody has clicked yet. A tenant's campaigns teach each other; another tenant's bait says nothing here.

    Args:
      offset: float64[n], log-odds of a conversion where the lure is 0.
      lure: float64[n], log-odds of a click on each text beside those clicked around it.
      converted, arrived: as for `conversion_logs`.
      campaigns: int[n], each click's index into the C campaigns; `tenants` int[C], equal numbers belong together.
    """
    logs = np.empty((len(tenants), len(SLOPES)))
    for at, slope in enumerate(SLOPES):
        said = np.clip(expit(offset + slope * lure), 1e-9, 1.0 - 1e-9)
        each = conversion_logs(said, converted, arrived)
        logs[:, at] = np.bincount(campaigns, weights=each, minlength=len(tenants))
    near = -0.5 * ((SLOPES - SLOPES[:, None]) / BETWEEN) ** 2
    near -= logsumexp(near, axis=1, keepdims=True)
    # Of each campaign, how likely its clicks are by its tenant's slope; then the tenant's slope by the others' clicks.
    by_tenants_slope = logsumexp(near + logs[:, None, :], axis=2)
    sums = np.zeros((int(tenants.max(initial=-1)) + 1, len(SLOPES)))
    np.add.at(sums, tenants, by_tenants_slope)
    others = sums[tenants] - by_tenants_slope - 0.5 * SLOPES**2 / (SLOPE_SCALE**2 - BETWEEN**2)
    posterior = logsumexp(others[:, :, None] + near, axis=1) + logs
    posterior -= logsumexp(posterior, axis=1, keepdims=True)
    return np.asarray(np.exp(posterior) @ SLOPES, np.float64)


def beside_their_time(
    places: NDArray[np.intp], converted: NDArray[np.bool_], arrived: Floats, lure: Floats
) -> tuple[Floats, Floats]:
    """What the clicks around each convert at in log-odds, and its lure beside theirs: float64[n] each.

    Around it are NEAR clicks before and after of the same place, so that neither a place's own people nor time (a sale,
    a shop that sells less and less while better texts are found) is taken for a slope. Of few clicks the rate is drawn
    towards the place's own, that towards all places'.

    Args:
      places: int[n], each click's place; clicks are the oldest first.
      converted, arrived: as for `conversion_logs`.
      lure: float64[n], log-odds of a click on each text.
    """
    order = np.argsort(places, kind="stable")
    first = np.searchsorted(places[order], places[order], side="left")
    end = np.searchsorted(places[order], places[order], side="right")
    at = np.arange(len(order))
    low, high = np.maximum(at - NEAR, first), np.minimum(at + NEAR + 1, end)

    def around(values: Floats, low: NDArray[np.intp], high: NDArray[np.intp]) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(values[order])])
        return np.asarray(sums[high] - sums[low], np.float64)

    sold, known = converted.astype(np.float64), np.maximum(arrived, converted)
    common = (sold.sum() + 0.5) / (known.sum() + 1.0)
    ever = (around(sold, first, end) + common * NEAR_PRIOR) / (around(known, first, end) + NEAR_PRIOR)
    now = (around(sold, low, high) + ever * NEAR_PRIOR) / (around(known, low, high) + NEAR_PRIOR)
    offset, beside = np.empty(len(order)), np.empty(len(order))
    offset[order] = logit(np.clip(now, 1e-6, 1.0 - 1e-6))
    beside[order] = lure[order] - around(lure, low, high) / (high - low)
    return offset, beside


def conversion_evidence(by_text: Floats, others: Floats) -> float:
    """How much likelier a campaign's clicks fared as they did if texts differ in what they convert at in some way,
    nats, at least LEAST_OWN.

    What was said of a click before it was learnt from makes the sums prequential likelihoods (Dawid 1984, Journal of
    the Royal Statistical Society A 147, 278-292): differences that are chance cost what they promise, without a
    penalty for the number of features. Against the texts stand explanations without them, alike likely at first: a
    mixture, so that neither time (sales, weekends) nor a place's own rate is taken for text. And the evidence never
    falls under its floor, as in a cumulative sum test (Page 1954, Biometrika 41, 100-115): however long nothing was
    wrong, bait that comes later has as far to go.

    Args:
      by_text: float64[n], `conversion_logs` of its clicks, the oldest first.
      others: float64[m, n], the same by m explanations that know less of the text.
    """
    if not len(by_text):
        return 0.0
    null = logsumexp(np.cumsum(others, axis=1), axis=0) - np.log(len(others))
    moved = np.cumsum(by_text) - null
    return float(moved[-1] + max(0.0, float((LEAST_OWN - moved).max())))


def trust_in_texts(own: Floats, tenants: NDArray[np.intp]) -> Floats:
    """Probability that texts differ in what they convert at, float64[C], of campaigns with the evidence `own` float[C]
    (nats): posterior log-odds of PRIOR_TRUST, the campaign's own evidence, and that of its tenant's others.

    What others' clicks say counts within bounds, LEAST_OTHERS to MOST_OTHERS: that texts are alike in many
    campaigns makes it likelier here and does not outweigh this one's own bait, nor does another's bait outweigh its
    own peace. `tenants` int[C]: equal numbers belong together."""
    evidence = np.asarray(own, np.float64)
    sums = np.bincount(tenants, weights=evidence) if len(evidence) else np.zeros(0)
    others = np.clip(sums[tenants] - evidence, LEAST_OTHERS, MOST_OTHERS)
    return np.asarray(expit(PRIOR_TRUST + evidence + others), np.float64)


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
