"""The watch for bait: clicks up with conversions down, in the records of what people did."""

from __future__ import annotations

import zlib
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.maths.sentinel import Ailment, Response, baits, conversions, windows
from optimizer.ranges import SHARE_OVER_0, check_ranges, whole
from optimizer.types import Outcome

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BaitConfig:
    """`conversions`: so many of each campaign's first impressions as brought that many conversions in all campaigns
    together, or the first half while these bring fewer, are what its newest, as many, are compared with. `arrived`: the
    share of the `delays` newest clicks and conversions that is waited for; what comes later counts nowhere, so that old
    and new are treated alike. `least`: before so many conversions have come nothing is compared. `recent_ms`: nothing
    older is of late; a campaign that has shown nothing for so long begins anew. `kept`: first and newest impressions
    held a campaign, each, or fewer where all campaigns together would hold more than `kept_in_all`. Raises ConfigError
    for what is out of its range."""

    conversions: int = 30
    arrived: float = 0.8
    delays: int = 2_000
    least: int = 10
    recent_ms: int = 7 * 86_400_000
    kept: int = 10_000
    kept_in_all: int = 200_000

    def __post_init__(self) -> None:
        check_ranges(
            self,
            conversions=whole(1),
            arrived=SHARE_OVER_0,
            delays=whole(1),
            least=whole(1),
            recent_ms=whole(1),
            kept=whole(1),
            kept_in_all=whole(1),
        )


class Found(NamedTuple):
    """Why it looks like bait; and the oldest impression that says so (Unix ms)."""

    ailment: Ailment
    since_ms: int


class BaitWatch:
    """Impressions of generated texts whose decisions are not paid for conversions. Not thread-safe."""

    def __init__(self, config: BaitConfig) -> None:
        self.config = config
        self.now_ms = 0
        self._campaigns: dict[str, _Watched] = {}
        self._segments: dict[str, int] = {}
        self._delays = _Delays(config.arrived, config.delays)
        self._most = config.kept
        self._from_ms = 0

    def __len__(self) -> int:
        """Impressions held."""
        return sum(map(len, self._campaigns.values()))

    def note(self, outcome: Outcome) -> None:
        """A revision came. Decisions that are paid for conversions are learnt for what they pay and are left out."""
        decision, shown_ms = outcome.decision, outcome.impression_ts
        self.now_ms = max(self.now_ms, outcome.as_of)
        if decision.source == "control" or decision.reward.conversion or decision.reward.value:
            return
        if shown_ms < self._from_ms:
            return
        place = f"{decision.tenant}/{decision.campaign_id}"
        seen = self._campaigns.get(place)
        if seen is None or shown_ms - seen.latest_ms > self.config.recent_ms:
            seen = self._campaigns[place] = _Watched()
        known = seen.get(outcome.decision_id)
        if known is None and outcome.revision > 1:
            # Let go before; when its conversion came is no longer known.
            return
        segment = self._segments.setdefault(str(decision.context.get("segment", "")), len(self._segments))
        click_ms = conversion_ms = -1
        if outcome.click_ts is not None:
            click_ms = max(0, outcome.click_ts - shown_ms)
            if known is None or known.click_ms < 0:
                self._delays.click(click_ms)
            if outcome.components.conversion > 0:
                conversion_ms = -1 if known is None else known.conversion_ms
                if conversion_ms < 0:
                    # The first revision that has it: when the conversion could be known.
                    conversion_ms = max(0, outcome.as_of - outcome.click_ts)
                    self._delays.conversion(conversion_ms)
        one = _Seen(shown_ms, segment, click_ms, conversion_ms)
        # Twice what is waited for, so that some of the newest that are held are old enough to be looked at.
        seen.put(outcome.decision_id, one, self._most, 2.0 * sum(self._delays.waited()))

    def begin_at(self, from_ms: int | None = None) -> None:
        """What was shown before `from_ms` (now) no longer counts; a campaign's first impressions are those since."""
        self._from_ms = max(self._from_ms, self.now_ms if from_ms is None else from_ms)
        for seen in self._campaigns.values():
            seen.begin_at(self._from_ms, self._most)

    def look(self) -> Found | None:
        """Clicks up with conversions down, where that can be told.

        Each campaign's first impressions are compared with its newest, as many, people of one segment with each
        other."""
        click_by, convert_by = self._delays.waited()
        until = self.now_ms - click_by - convert_by
        recent = until - self.config.recent_ms
        self._let_go(recent)
        if self._delays.conversions < self.config.least:
            return None
        counts = [_counts(seen.columns(), click_by, convert_by, until, recent) for seen in self._campaigns.values()]
        sizes = windows(
            [one.ts for one in counts],
            [one.converted for one in counts],
            [one.most for one in counts],
            self.config.conversions,
        )
        compared = [(one, int(own)) for one, own in zip(counts, sizes, strict=True) if own]
        if not compared:
            return None
        sums = [one.by_segment(own) for one, own in compared]
        before, late = (np.concatenate(some).T for some in zip(*sums, strict=True))
        found = conversions(Response(*before), Response(*late))
        ailment = None if found is None else baits(found)
        return None if ailment is None else Found(ailment, min(int(one.ts[-own]) for one, own in compared))

    def _let_go(self, recent: float) -> None:
        """Campaigns that have shown nothing since then, and of the largest what is more than all may hold."""
        self._campaigns = {name: seen for name, seen in self._campaigns.items() if seen.latest_ms >= recent}
        if len(self) < self.config.kept_in_all // 4:
            self._most = min(self.config.kept, 2 * self._most)
        while len(self) > self.config.kept_in_all and self._most > 1:
            self._most //= 2
            for seen in self._campaigns.values():
                seen.trim(self._most)


class _Delays:
    """How late the newest clicks and conversions came, in ms."""

    def __init__(self, arrived: float, kept: int) -> None:
        self._clicks: deque[int] = deque(maxlen=kept)
        self._conversions: deque[int] = deque(maxlen=kept)
        self._arrived = arrived
        self._waited = (0.0, 0.0)
        self._new = 0
        self.conversions = 0

    def click(self, after_ms: int) -> None:
        self._clicks.append(after_ms)
        self._new += 1

    def conversion(self, after_ms: int) -> None:
        self._conversions.append(after_ms)
        self.conversions += 1
        self._new += 1

    def waited(self) -> tuple[float, float]:
        """Within what time this share of the clicks has come, and of the conversions after the click; as of the last
        time that a few per cent of them were new."""
        if self._conversions and self._new > len(self._clicks) // 32:
            self._new = 0
            click_by, convert_by = (
                float(np.quantile(some, self._arrived)) for some in (self._clicks, self._conversions)
            )
            self._waited = click_by, convert_by
        return self._waited


class _Seen(NamedTuple):
    """One impression of a generated text to a person of a segment, by its number; `click_ms` after it and
    `conversion_ms` after the click, -1 where there is none."""

    ts: int
    segment: int
    click_ms: int
    conversion_ms: int


class _Watched:
    """A campaign's impressions by decision, in the order in which they came: its first ones and its newest.

    Where the newest that may be held are all too new to be looked at, every second is let go, and again as often as it
    takes: by the decision's hash, which nothing depends on."""

    def __init__(self) -> None:
        self._first: dict[str, _Seen] = {}
        self._newest: OrderedDict[str, _Seen] = OrderedDict()
        self._halved = 0
        self.latest_ms = 0

    def __len__(self) -> int:
        return len(self._first) + len(self._newest)

    def get(self, name: str) -> _Seen | None:
        return self._first.get(name) or self._newest.get(name)

    def put(self, name: str, one: _Seen, most: int, reach_ms: float) -> None:
        """`most`: first and newest ones that may be held, each; the newest should go `reach_ms` back."""
        self.latest_ms = max(self.latest_ms, one.ts)
        if name in self._first or (not self._newest and len(self._first) < most):
            self._first[name] = one
            return
        if name not in self._newest and not self._counts(name):
            return
        self._newest[name] = one
        reaches = self.latest_ms - next(iter(self._newest.values())).ts
        if len(self._newest) > most and reaches < reach_ms:
            self._halved += 1
            self._newest = OrderedDict((name, one) for name, one in self._newest.items() if self._counts(name))
        elif reaches > 3 * reach_ms and self._halved:
            self._halved -= 1
        self.trim(most)

    def _counts(self, name: str) -> bool:
        return zlib.crc32(name.encode()) % (1 << self._halved) == 0

    def trim(self, most: int) -> None:
        """Let go what is more than that, of the first and of the newest each: what lies between them."""
        while len(self._first) > most:
            self._first.popitem()
        while len(self._newest) > most:
            self._newest.popitem(last=False)

    def begin_at(self, from_ms: int, most: int) -> None:
        """Let go what is older; of what is left the oldest are the first ones."""
        held = [*self._first.items(), *self._newest.items()]
        self._first, self._newest = {}, OrderedDict()
        for name, one in held:
            if one.ts >= from_ms:
                self.put(name, one, most, 0.0)

    def columns(self) -> Ints:
        """When, segment, click and conversion: int64[4, N], the oldest first."""
        held = [*self._first.values(), *self._newest.values()]
        columns = np.array(list(zip(*held, strict=True)), np.int64).reshape(4, len(held))
        return columns[:, np.argsort(columns[0], kind="stable")]


class _Counts(NamedTuple):
    """A campaign's impressions that are old enough, the oldest first: when (Unix ms) and to whom, int64[N]; whether
    clicked and whether converted in time, float64[N]. `most`: so many of the newest are of late."""

    ts: Ints
    segment: Ints
    clicked: Floats
    converted: Floats
    most: int

    def by_segment(self, own: int) -> tuple[Floats, Floats]:
        """Shown, clicked and converted of the first `own` impressions and of the newest, float64[S, 3] each."""
        here = np.concatenate([self.segment[:own], self.segment[-own:]])
        names, codes = np.unique(here, return_inverse=True)

        def sums(at: Ints, part: slice) -> Floats:
            columns = (None, self.clicked[part], self.converted[part])
            return np.stack([np.bincount(at, some, len(names)).astype(float) for some in columns], axis=1)

        return sums(codes[:own], slice(None, own)), sums(codes[own:], slice(-own, None))


def _counts(columns: Ints, click_by: float, convert_by: float, until: float, recent: float) -> _Counts:
    ts, segment, click, conversion = columns[:, : int(np.searchsorted(columns[0], until, side="right"))]
    clicked = ((click >= 0) & (click <= click_by)).astype(float)
    converted = clicked * ((conversion >= 0) & (conversion <= convert_by))
    return _Counts(ts, segment, clicked, converted, len(ts) - int(np.searchsorted(ts, recent)))
