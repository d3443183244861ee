"""What a demo's impressions amount to. Pure: records of impressions in, figures out (shapes: simulators/results.py).

Rates are the world's true click rates of what was shown, so they carry no click noise; intervals come from realised
clicks, since a real advertiser sees nothing else. `METHOD` says so to the reader of the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

from optimizer.errors import AdloopError
from optimizer.maths.intervals import Interval, Moments, lift
from optimizer.maths.proportions import wilson
from simulators.results import CurvePoint, SegmentRow, TextPair, TrafficBin
from simulators.traffic import Shown

CURVE_BINS = 40
TEXTS = 3

ClickRate = Callable[[str, dict[str, object], dict[str, str]], float]

CONTROL_AND_LEARNED = (
    "Control and learned click rates are the market's true click rates over the last fifth of the run (an advertiser "
    "would never be told them): learned over what was shown from the pool, control as the mean over the campaign's "
    "control texts for all the same arrivals."
)
LIFT = (
    "The lift and its 95 % interval come from realised clicks alone: pool-served impressions of the last fifth over "
    "the control impressions of the whole run (control texts do not learn), Fieller's interval for a ratio of means. "
    "So the lift is near, but not equal to, the ratio of the two true rates."
)
ORACLE = "The oracle is the mean true click rate of the best text per campaign and segment that the market knows of."
VALID = "The well-formed share is over all pool-served impressions, by the market's own judgement."
CURVE = (
    "In the learning curve the learned line is the realised click rate with Wilson's 95 % interval; the control line "
    "is the true rate."
)
METHOD = (CONTROL_AND_LEARNED, LIFT, ORACLE, VALID, CURVE)


class TooLittle(AdloopError):
    """The run served too little to tell anything: the text says what was missing."""


def learned(shown: Iterable[Shown]) -> list[Shown]:
    """The impressions served from a pool."""
    return [one for one in shown if one.source == "pool"]


def last_fifth(shown: Sequence[Shown]) -> Sequence[Shown]:
    """The last fifth of the run, rounded up."""
    return shown[len(shown) * 4 // 5 :]


def rates(shown: Sequence[Shown]) -> tuple[float, float]:
    """(control, learned): see CONTROL_AND_LEARNED. Raises TooLittle where nothing late was served from a pool."""
    late = last_fifth(shown)
    ours = learned(late)
    if not ours:
        raise TooLittle(
            "nothing was served from a pool in the last fifth of the run: raise --impressions, or see whether "
            "learner and generator are alive (/readyz)"
        )
    return fmean(one.control_rate for one in late), fmean(one.rate for one in ours)


def realised_lift(shown: Sequence[Shown]) -> Interval | None:
    """Realised clicks per impression, learned over control minus one: see LIFT. None where there are too few clicks."""
    return lift(_clicks(learned(last_fifth(shown))), _clicks([one for one in shown if one.source == "control"]))


def valid_share(shown: Sequence[Shown]) -> float:
    """The well-formed share of pool-served impressions; 1 where there were none."""
    ours = learned(shown)
    return sum(one.valid for one in ours) / len(ours) if ours else 1.0


def curve(shown: Sequence[Shown], bins: int = CURVE_BINS) -> tuple[CurvePoint, ...]:
    """The learning curve in bins of equal numbers of impressions."""
    points = []
    for part in _parts(shown, bins):
        ours = _clicks(learned(part))
        band = wilson(ours.rewarded, ours.n)
        points.append(
            CurvePoint(
                impression=part[-1].number + 1,
                learned_ctr=band.value if band else None,
                low=band.low if band else None,
                high=band.high if band else None,
                control_ctr=fmean(one.control_rate for one in part),
            )
        )
    return tuple(points)


def traffic(shown: Sequence[Shown], bins: int = CURVE_BINS) -> tuple[TrafficBin, ...]:
    """Impressions by policy version in the curve's bins; control texts under "control"."""
    return tuple(
        TrafficBin(
            part[-1].number + 1,
            Counter("control" if one.source == "control" else one.policy_version for one in part),
        )
        for part in _parts(shown, bins)
    )


def segments(shown: Sequence[Shown]) -> tuple[SegmentRow, ...]:
    """The last fifth by campaign and segment."""
    rows = []
    for (campaign_id, segment), part in sorted(_cells(last_fifth(shown)).items()):
        ours = learned(part)
        rows.append(
            SegmentRow(
                campaign_id,
                segment,
                len(part),
                fmean(one.control_rate for one in part),
                fmean(one.rate for one in ours) if ours else None,
            )
        )
    return tuple(rows)


def text_pairs(
    shown: Sequence[Shown],
    controls: Mapping[str, dict[str, str]],
    click_rate: ClickRate,
    count: int = TEXTS,
) -> tuple[TextPair, ...]:
    """Before and after, in the `count` busiest cells of different campaigns.

    After is the text most often drawn from the pool in the last fifth, before the campaign's first control; both rates
    are means over the same arrivals, the cell's in the last fifth.

    Args:
      controls: the first control's slots by campaign_id.
      click_rate: the world's true rate, (campaign_id, context, slots).
    """
    pairs: dict[str, TextPair] = {}
    cells = {at: part for at, part in _cells(last_fifth(shown)).items() if learned(part)}
    for (campaign_id, segment), part in sorted(cells.items(), key=lambda cell: (-len(cell[1]), cell[0])):
        if campaign_id in pairs or len(pairs) == count:
            continue
        texts = Counter(tuple(one.slots.items()) for one in learned(part))
        after = dict(max(texts.items(), key=lambda text_times: (text_times[1], text_times[0]))[0])
        before = controls[campaign_id]
        old, new = (
            fmean(click_rate(campaign_id, dict(one.context), slots) for one in part) for slots in (before, after)
        )
        pairs[campaign_id] = TextPair(
            campaign_id, segment, "\n".join(before.values()), "\n".join(after.values()), old, new
        )
    return tuple(pairs.values())


def _clicks(shown: Sequence[Shown]) -> Moments:
    clicks = sum(one.clicked for one in shown)
    return Moments(n=len(shown), total=float(clicks), squares=float(clicks), rewarded=clicks)


def _parts(shown: Sequence[Shown], bins: int) -> list[Sequence[Shown]]:
    bins = min(bins, len(shown))
    edges = [len(shown) * i // bins for i in range(bins + 1)] if bins else []
    return [shown[start:end] for start, end in pairwise(edges)]


def _cells(shown: Sequence[Shown]) -> dict[tuple[str, str], list[Shown]]:
    cells: defaultdict[tuple[str, str], list[Shown]] = defaultdict(list)
    for one in shown:
        cells[one.campaign_id, one.segment].append(one)
    return cells
