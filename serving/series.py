"""Impressions and clicks over time in bounded memory, and the bins that a chart shows of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

CONTROL = ""
EARLIER = "earlier"
CAPACITY = 480
FIRST_WIDTH_MS = 1_000
MAX_VERSIONS = 96
# A chart gets at most about this many bins, none with fewer impressions than this.
MAX_BINS = 28
MIN_BIN_IMPRESSIONS = 30


@dataclass(slots=True)
class Count:
    """Impressions and how many of them were clicked."""

    impressions: int = 0
    clicks: int = 0

    def add(self, impressions: int, clicks: int) -> None:
        self.impressions += impressions
        self.clicks += clicks


@dataclass(frozen=True, slots=True)
class Bin:
    """A stretch of the run. `ts` is the mean impression time in ms, `seen` the impressions from the start to its end;
    `counts` are by policy version, `CONTROL` for what was served from controls."""

    ts: float
    seen: int
    counts: Mapping[str, Count]

    def control(self) -> Count:
        return self.counts.get(CONTROL, Count())

    def learned(self) -> Count:
        total = Count()
        for version, count in self.counts.items():
            if version != CONTROL:
                total.add(count.impressions, count.clicks)
        return total


class Series:
    """Counts by time and policy version, in at most `capacity` buckets.

    Buckets are `width_ms` wide, aligned to the epoch, and exist only where something was shown. When they become too
    many their width doubles and neighbours merge, so a run of any length fits, at a resolution that is a fixed share
    of it. Of the versions the newest `MAX_VERSIONS` keep their names; older ones merge into `EARLIER`. Both merges keep
    every sum, and taking back an outcome finds the bucket that it was merged into.
    """

    def __init__(self, capacity: int = CAPACITY, width_ms: int = FIRST_WIDTH_MS) -> None:
        self.capacity = capacity
        self.width_ms = width_ms
        self._buckets: dict[int, dict[str, Count]] = {}
        self._named: dict[str, None] = {}

    def add(self, ts: int, version: str, clicks: int, sign: int = 1) -> None:
        """Count one impression at `ts` in, or take it back with `sign` -1; `version` is `CONTROL` for a control."""
        name = self._name(version, new=sign > 0)
        bucket = self._buckets.setdefault(ts // self.width_ms, {})
        count = bucket.setdefault(name, Count())
        count.add(sign, sign * clicks)
        if not count.impressions and not count.clicks:
            del bucket[name]
            if not bucket:
                del self._buckets[ts // self.width_ms]
        while len(self._buckets) > self.capacity:
            self._widen()

    def versions(self) -> list[str]:
        """The versions counted here, oldest first, without control."""
        shown = {name for bucket in self._buckets.values() for name in bucket}
        return [name for name in (EARLIER, *self._named) if name in shown]

    def bins(self, most: int = MAX_BINS, at_least: int = MIN_BIN_IMPRESSIONS) -> list[Bin]:
        """Neighbouring buckets joined into bins of about the same number of impressions, in order of time."""
        total = sum(count.impressions for bucket in self._buckets.values() for count in bucket.values())
        wanted = max(at_least, -(-total // most))
        groups: list[list[int]] = []
        sizes: list[int] = []
        for index in sorted(self._buckets):
            size = sum(count.impressions for count in self._buckets[index].values())
            if groups and sizes[-1] < wanted:
                groups[-1].append(index)
                sizes[-1] += size
            else:
                groups.append([index])
                sizes.append(size)
        if len(groups) > 1 and sizes[-1] < wanted * 2 / 3:
            # The newest bin is what people look at: it must not be the noisiest.
            groups[-2:] = [groups[-2] + groups[-1]]
        return list(self._joined(groups))

    def _joined(self, groups: Sequence[Sequence[int]]) -> Iterator[Bin]:
        seen = 0
        for group in groups:
            counts: dict[str, Count] = {}
            weighted = 0.0
            size = 0
            for index in group:
                for name, count in self._buckets[index].items():
                    counts.setdefault(name, Count()).add(count.impressions, count.clicks)
                    weighted += (index - group[0] + 0.5) * count.impressions
                    size += count.impressions
            if size > 0:
                seen += size
                yield Bin(group[0] * self.width_ms + self.width_ms * weighted / size, seen, counts)

    def _name(self, version: str, new: bool) -> str:
        if version == CONTROL or version in self._named:
            return version
        if not new:
            return EARLIER
        self._named[version] = None
        if len(self._named) > MAX_VERSIONS:
            self._fold(next(iter(self._named)))
        return version

    def _fold(self, version: str) -> None:
        del self._named[version]
        for bucket in self._buckets.values():
            count = bucket.pop(version, None)
            if count is not None:
                bucket.setdefault(EARLIER, Count()).add(count.impressions, count.clicks)

    def _widen(self) -> None:
        self.width_ms *= 2
        narrow, self._buckets = self._buckets, {}
        for index, bucket in narrow.items():
            wide = self._buckets.setdefault(index // 2, {})
            for name, count in bucket.items():
                wide.setdefault(name, Count()).add(count.impressions, count.clicks)


def group_name(numbers: Sequence[int]) -> str:
    """How a chart calls neighbouring versions."""
    first, last = min(numbers), max(numbers)
    return f"Version {first}" if first == last else f"Versions {first} to {last}"


def version_groups(bins: Sequence[Bin], versions: Sequence[str], most: int) -> list[list[str]]:
    """Neighbouring versions joined into at most `most` groups of about the same traffic, for a chart's layers."""
    sizes = [sum(b.counts[v].impressions for b in bins if v in b.counts) for v in versions]
    if len(versions) <= most:
        return [[version] for version in versions]
    groups: list[list[str]] = []
    filled, total = 0, sum(sizes)
    for left, (version, size) in enumerate(zip(versions, sizes, strict=True)):
        # The next group opens where the traffic so far fills the ones before, or where each version left needs its own.
        due = not groups or filled * most >= total * len(groups) or len(versions) - left <= most - len(groups)
        if due and len(groups) < most:
            groups.append([])
        groups[-1].append(version)
        filled += size
    return groups
