"""The watch for bait: clicks up with conversions down, in the records of what people did."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.maths.sentinel import Response, baits, conversions, windows
from optimizer.types import Outcome

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BaitConfig:
    """`conversions`: so many of each campaign's first impressions as brought that many conversions in all campaigns
    together, or the first half while these bring fewer, are what its newest, as many, are compared with. `arrived`: the
    share of clicks and conversions that is waited for; what comes later counts nowhere, so that old and new are treated
    alike. `least`: before so many conversions are known of nothing is compared. `idle_ms`: a campaign that has shown
    nothing for so long is left out, for what it showed last is not of late. `kept`: first and newest impressions held a
    campaign, each; `kept_in_all`: the same of all campaigns together."""

    conversions: int = 30
    arrived: float = 0.8
    least: int = 10
    idle_ms: int = 3 * 86_400_000
    kept: int = 10_000
    kept_in_all: int = 100_000


class Found(NamedTuple):
    """Why it looks like bait, a phrase; and the oldest impression that says so (Unix ms)."""

    why: str
    since_ms: int


class _Seen(NamedTuple):
    """One impression of a generated text to a person of a segment, by its number; `click_ms` after it and
    `conversion_ms` after the click, -1 where there is none."""

    ts: int
    segment: int
    click_ms: int
    conversion_ms: int


class _Counts(NamedTuple):
    """A campaign's impressions that are old enough, the oldest first: when (Unix ms) and to whom, int64[N]; whether
    clicked and whether converted in time, float64[N]."""

    ts: Ints
    segment: Ints
    clicked: Floats
    converted: Floats

    def by_segment(self, part: slice, segments: int) -> Floats:
        """Shown, clicked and converted: float64[segments, 3]."""
        codes = self.segment[part]
        weights = (None, self.clicked[part], self.converted[part])
        return np.stack([np.bincount(codes, some, segments) for some in weights], axis=1)


class BaitWatch:
    """Impressions of generated texts whose decisions are not paid for conversions. Not thread-safe."""

    def __init__(self, config: BaitConfig) -> None:
        self.config = config
        self._campaigns: dict[str, _Watched] = {}
        self._segments: dict[str, int] = {}
        self._from_ms = 0
        self._reach_ms = 0.0
        self.now_ms = 0

    def note(self, outcome: Outcome) -> None:
        """A revision came. Decisions that are paid for conversions are learnt for what they pay and are left out."""
        decision = outcome.decision
        self.now_ms = max(self.now_ms, outcome.as_of)
        if decision.source == "control" or decision.reward.conversion or decision.reward.value:
            return
        if outcome.impression_ts < self._from_ms:
            return
        place = f"{decision.tenant}/{decision.campaign_id}"
        seen = self._campaigns.get(place)
        if seen is None:
            seen = self._campaigns[place] = _Watched()
        known = seen.get(outcome.decision_id)
        if known is None and outcome.revision > 1:
            # Let go before; when its conversion came is no longer known.
            return
        segment = self._segments.setdefault(str(decision.context.get("segment", "")), len(self._segments))
        click_ms = -1 if outcome.click_ts is None else max(0, outcome.click_ts - outcome.impression_ts)
        conversion_ms = -1
        if outcome.click_ts is not None and outcome.components.conversion > 0:
            # The first revision that has it: when the conversion could be known.
            conversion_ms = max(0, outcome.as_of - outcome.click_ts)
            if known is not None and known.conversion_ms >= 0:
                conversion_ms = known.conversion_ms
        one = _Seen(outcome.impression_ts, segment, click_ms, conversion_ms)
        seen.put(outcome.decision_id, one, self._kept(), self._reach_ms)

    def _kept(self) -> int:
        return max(1, min(self.config.kept, self.config.kept_in_all // len(self._campaigns)))

    def begin_at(self, from_ms: int | None = None) -> None:
        """What was shown before `from_ms` (now) no longer counts; a campaign's first impressions are those since."""
        self._from_ms = self.now_ms if from_ms is None else max(self._from_ms, from_ms)
        for seen in self._campaigns.values():
            seen.begin_at(self._from_ms, self._kept())

    def look(self) -> Found | None:
        """Clicks up with conversions down, where that can be told.

        Each campaign's first impressions are compared with its newest, as many, people of one segment with each
        other."""
        columns = [some for seen in self._campaigns.values() if (some := seen.columns()) is not None]
        delays = [(some[2][some[3] >= 0], some[3][some[3] >= 0]) for some in columns]
        if sum(len(converted) for _, converted in delays) < self.config.least:
            return None
        clicked = np.concatenate([some[2][some[2] >= 0] for some in columns])
        converted = np.concatenate([converted for _, converted in delays])
        click_by, convert_by = np.quantile(clicked, self.config.arrived), np.quantile(converted, self.config.arrived)
        # Twice that, so that some of the newest that are held are old enough to be looked at.
        self._reach_ms = 2.0 * float(click_by + convert_by)
        until = float(self.now_ms - click_by - convert_by)
        counts = list(_ripe(columns, float(click_by), float(convert_by), until, until - self.config.idle_ms))
        sizes = windows([one.ts for one in counts], [one.converted for one in counts], self.config.conversions)
        before, late, since = [], [], []
        for one, own in zip(counts, sizes.tolist(), strict=True):
            if own:
                before.append(one.by_segment(slice(None, own), len(self._segments)))
                late.append(one.by_segment(slice(-own, None), len(self._segments)))
                since.append(int(one.ts[-own]))
        if not before:
            return None
        found = conversions(Response(*np.concatenate(before).T), Response(*np.concatenate(late).T))
        why = None if found is None else baits(found)
        return None if why is None else Found(why, min(since))


class _Watched:
    """A campaign's impressions by decision, in the order in which they came: its first ones and its newest.

    Where the newest that may be held are all too new to be looked at, every second is let go, and again as often as it
    takes: by the decision's hash, which nothing depends on."""

    def __init__(self) -> None:
        self._first: dict[str, _Seen] = {}
        self._newest: OrderedDict[str, _Seen] = OrderedDict()
        self._halved = 0

    def get(self, name: str) -> _Seen | None:
        return self._first.get(name) or self._newest.get(name)

    def put(self, name: str, one: _Seen, kept: int, reach_ms: float) -> None:
        """`kept`: first and newest ones that may be held, each; the newest should go `reach_ms` back."""
        if name in self._first or (not self._newest and len(self._first) < kept):
            self._first[name] = one
            return
        while len(self._first) > kept:
            self._first.popitem()
        if name not in self._newest and not self._counts(name):
            return
        self._newest[name] = one
        if len(self._newest) > kept and one.ts - next(iter(self._newest.values())).ts < reach_ms:
            self._halved += 1
            for other in [other for other in self._newest if not self._counts(other)]:
                del self._newest[other]
        while len(self._newest) > kept:
            self._newest.popitem(last=False)

    def _counts(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % (1 << self._halved) == 0

    def begin_at(self, from_ms: int, kept: int) -> None:
        """Let go what is older; what is left are the first ones."""
        held = [*self._first.items(), *self._newest.items()]
        self._first, self._newest = {}, OrderedDict()
        for name, one in held:
            if one.ts >= from_ms:
                self.put(name, one, kept, 0.0)

    def columns(self) -> tuple[Ints, Ints, Ints, Ints] | None:
        """When, segment, click and conversion, int64[N] each, the oldest first; None where there is nothing."""
        held = [*self._first.values(), *self._newest.values()]
        if not held:
            return None
        ts, segment, click, conversion = (np.array(column, np.int64) for column in zip(*held, strict=True))
        order = np.argsort(ts, kind="stable")
        return ts[order], segment[order], click[order], conversion[order]


def _ripe(
    columns: list[tuple[Ints, Ints, Ints, Ints]], click_by: float, convert_by: float, until: float, active: float
) -> Iterator[_Counts]:
    """The impressions up to `until`, of the campaigns that have any since `active`."""
    for ts, segment, click, conversion in columns:
        count = int(np.searchsorted(ts, until, side="right"))
        if count and ts[count - 1] >= active:
            clicked = ((click[:count] >= 0) & (click[:count] <= click_by)).astype(float)
            in_time = (conversion[:count] >= 0) & (conversion[:count] <= convert_by)
            yield _Counts(ts[:count], segment[:count], clicked, clicked * in_time)
