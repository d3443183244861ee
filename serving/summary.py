"""From the board's sums to what people read: rates, lift, curves, rankings. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from optimizer.maths.intervals import MIN_REWARDED, MIN_SAMPLES, Interval, Moments, fieller, lift
from optimizer.maths.proportions import wilson
from serving.numbers import integer
from serving.series import Bin, Count

AxisKind = Literal["time", "count"]


def rate(count: Count) -> dict[str, Any]:
    """Impressions, clicks and the click rate with its 95 % interval (Wilson); rates are None without impressions."""
    trials = max(0, count.impressions)
    # A text that was let go and came back may have had a click corrected whose impression is not counted any more.
    found = wilson(min(max(0, count.clicks), trials), trials)
    value, low, high = found or (None, None, None)
    return {"impressions": trials, "clicks": max(0, count.clicks), "rate": value, "low": low, "high": high}


def stratified_lift(strata: Sequence[tuple[Moments, Moments]]) -> Interval | None:
    """Reward per impression over several campaigns, learned over control minus one, with Fieller's 95 % interval.

    Campaigns differ in what a click is worth and in how much they hold back, so pooled means would compare different
    mixes (Simpson's paradox). Each side's mean is therefore weighted by the campaigns' shares of all impressions, as in
    post-stratification (Cochran 1977, Sampling Techniques, section 5A.9).

    Args:
      strata: (learned, control) of each campaign; those with fewer than two impressions on a side are left out.

    Returns:
      None until it can be told; the thresholds of `optimizer.maths.intervals.lift` hold for the sums of each side.
    """
    usable = [(ours, theirs) for ours, theirs in strata if ours.n > 1 and theirs.n > 1]
    if len(usable) < 2:
        return lift(*usable[0]) if usable else None
    for side in zip(*usable, strict=True):
        if sum(m.n for m in side) < MIN_SAMPLES or sum(m.rewarded for m in side) < MIN_REWARDED:
            return None
    total = sum(ours.n + theirs.n for ours, theirs in usable)
    weights = [(ours.n + theirs.n) / total for ours, theirs in usable]

    def mean(moments: Iterable[Moments]) -> tuple[float, float]:
        pairs = list(zip(weights, moments, strict=True))
        return sum(w * m.mean() for w, m in pairs), sum(w * w * m.variance_of_mean() for w, m in pairs)

    ratio = fieller(*mean(ours for ours, _ in usable), *mean(theirs for _, theirs in usable))
    return None if ratio is None else Interval(ratio.value - 1.0, ratio.low - 1.0, ratio.high - 1.0)


def lift_missing(learned: Moments, control: Moments) -> str:
    """Why the lift cannot be told yet, in a sentence."""
    for side, name in ((control, "Control"), (learned, "Learned")):
        if side.n < MIN_SAMPLES or side.rewarded < MIN_REWARDED:
            return (
                f"{name} texts need {MIN_SAMPLES} impressions, {MIN_REWARDED} of them rewarded, to compare; "
                f"so far {integer(side.n)} and {integer(side.rewarded)}."
            )
    return "Control's reward cannot be told from zero yet: more held-back traffic will settle it."


def curve(bins: Sequence[Bin], axis: AxisKind) -> dict[str, list[list[float]]]:
    """[x, rate, low, high] of learned by bin, and of control up to and including each bin.

    Control texts do not learn and get little traffic, so their running rate is what a bin is compared with."""
    learned: list[list[float]] = []
    control: list[list[float]] = []
    so_far = Count()
    for each in bins:
        x = each.ts if axis == "time" else float(each.seen)
        so_far.add(each.control().impressions, each.control().clicks)
        for points, count in ((learned, each.learned()), (control, so_far)):
            if count.impressions > 0:
                figures = rate(count)
                points.append([x, figures["rate"], figures["low"], figures["high"]])
    return {"learned": learned, "control": control}
