"""The replay buffer: the last revision of every outcome, aggregated by what the critic can tell apart.

A *row* is a (campaign, segment, text, context): everything that determines the critic's features. Decisions that share
a row differ only in what happened, so the critic trains on rows with bootstrap-weighted counts: exact, and cheap enough
for full passes."""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.types import Outcome

Floats = NDArray[np.float32]
BOOTSTRAP_ROWS = 4096
# Sums are float32: beyond this the unit goes back to 1.
MOST_UNITS = 1e4
# Nor do squares overflow where an ad server's values are no amounts of money.
MOST_EXTRA = 1e9
_EMPTY = -1


class Totals(NamedTuple):
    """Bootstrap-weighted sums per row, float32[R, H]: decisions `clicked`; `settled` (shown, no click, click window
    over); the reward that decisions without a click earned all the same (`unclicked_extra`: view-through conversions,
    ratings)."""

    clicked: Floats
    settled: Floats
    unclicked_extra: Floats


class Entry(NamedTuple):
    """One decision as the learner needs it. `extra` is the reward seen so far that is not the click's own; `pays_later`
    says that the campaign pays for more than clicks, `pays_conversions` that among it are conversions or their values;
    `counts_once` that one conversion is all that can count. `mass`: what one decision of its time weighs, in the
    buffer's growing unit."""

    row: int
    pool_id: str
    candidate: int
    propensity: float
    version: str
    click: int
    extra: float
    conversions: int
    converted: bool
    impression_ts: int
    click_ts: int
    click_window_ms: int
    conversion_window_ms: int
    view_window_ms: int
    closed: bool
    pays_later: bool
    pays_conversions: bool
    counts_once: bool
    mass: float


class Waiting(NamedTuple):
    """Decisions without a click that may convert all the same: `row`, `age_ms` since the impression and `window_ms`,
    int[m]; `done` bool[m], for those of which nothing more can come; `once` bool[m], where one conversion is all that
    can count; `weight` float32[m, H]."""

    row: NDArray[np.intp]
    age_ms: NDArray[np.int64]
    window_ms: NDArray[np.int64]
    done: NDArray[np.bool_]
    once: NDArray[np.bool_]
    weight: Floats

    @classmethod
    def of(cls, entries: Sequence[Entry], now_ms: int, weight: Floats | None = None) -> Waiting:
        """These decisions at `now_ms`."""
        ages = np.array([max(0, now_ms - entry.impression_ts) for entry in entries], np.int64)
        windows = np.array([entry.view_window_ms for entry in entries], np.int64)
        over = [
            entry.closed or not entry.pays_conversions or (entry.converted and entry.counts_once) for entry in entries
        ]
        return cls(
            np.array([entry.row for entry in entries], np.intp),
            ages,
            windows,
            np.array(over, bool) | (ages >= windows),
            np.array([entry.counts_once for entry in entries], bool),
            np.ones((len(entries), 1), np.float32) if weight is None else weight,
        )


class OpenShown(NamedTuple):
    """Decisions shown and not clicked whose click window is open: `row`, `age_ms`, `window_ms` int[m], `weight`
    float32[m, H], `extra` float64[m], what they have earned all the same. Those `at` int[k] of them may also convert
    without a click (`waiting`)."""

    row: NDArray[np.intp]
    age_ms: NDArray[np.int64]
    window_ms: NDArray[np.int64]
    weight: Floats
    extra: NDArray[np.float64]
    at: NDArray[np.intp]
    waiting: Waiting


class ReplayBuffer:
    """Holds at most `capacity` decisions one by one; older ones stay in the totals of their rows, as they last stood.

    `evicted`: decisions that went so, in all. `stale_revisions`: revisions that came for decisions no longer held, and
    changed nothing. Not thread-safe. Deterministic: bootstrap weights are a hash of the decision_id, Poisson(1) (Oza,
    Russell 2001)."""

    def __init__(self, heads: int, capacity: int = 400_000, salt: int = 0) -> None:
        self.heads = heads
        self.capacity = capacity
        self.evicted = self.stale_revisions = 0
        self.entries: dict[str, Entry] = {}
        self._revisions: dict[str, int] = {}
        self._open: dict[str, None] = {}
        self._viewed: dict[str, None] = {}  # past their click window, with the view-through window still open
        self._gone: dict[str, None] = {}  # no longer held one by one: what comes for them yet would count twice
        self._newest: list[int] = []  # of each row, when it was last shown
        self._rows: dict[Hashable, int] = {}
        self._clicked = np.zeros((0, heads), np.float32)
        self._settled = np.zeros((0, heads), np.float32)
        self._unclicked_extra = np.zeros((0, heads), np.float32)
        self._poisson = np.random.default_rng([salt, heads]).poisson(1.0, (BOOTSTRAP_ROWS, heads)).astype(np.float32)
        # Old evidence is made light by making new evidence heavy: sums need not be touched, and what a late revision
        # takes back is what was once put in.
        self._unit = 1.0

    def discount(self, share: float) -> None:
        """What has been seen so far counts only `share` (0 to 1) of what comes from now on."""
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share: got {share}, expected 0 < share <= 1")
        self._unit /= share
        if self._unit > MOST_UNITS:
            self._rescale()

    def _rescale(self) -> None:
        for sums in (self._clicked, self._settled, self._unclicked_extra):
            sums /= self._unit
        self.entries = {name: entry._replace(mass=entry.mass / self._unit) for name, entry in self.entries.items()}
        self._unit = 1.0

    @property
    def rows(self) -> int:
        return len(self._rows)

    def row_of(self, key: Hashable) -> int | None:
        """The row of a key that has been met, else None."""
        return self._rows.get(key)

    def new_row(self, key: Hashable) -> int:
        """A new row; the caller knows its features."""
        row = self._rows[key] = len(self._rows)
        self._newest.append(0)
        if row >= len(self._clicked):
            more = np.zeros((max(256, len(self._clicked)), self.heads), np.float32)
            self._clicked = np.concatenate([self._clicked, more])
            self._settled = np.concatenate([self._settled, more])
            self._unclicked_extra = np.concatenate([self._unclicked_extra, more])
        return row

    def bootstrap(self, decision_id: str) -> Floats:
        """float32[H]: how often each head's bootstrap sample holds this decision."""
        row: Floats = self._poisson[zlib.crc32(decision_id.encode()) % BOOTSTRAP_ROWS]
        return row

    def weight(self, decision_id: str) -> Floats:
        """float32[H]: each head's bootstrap weight of a decision that is held, beside one of now."""
        held: Floats = self.bootstrap(decision_id) * np.float32(self.entries[decision_id].mass / self._unit)
        return held

    def news(self, outcome: Outcome) -> bool:
        """Whether a revision changes anything: not an older or equal one, nor one of a decision that is no longer held
        one by one (counted in `stale_revisions`)."""
        name = outcome.decision_id
        if outcome.revision <= self._revisions.get(name, 0):
            return False
        # Of those that went long ago the names are gone as well.
        full = max(len(self._revisions), len(self._gone)) >= self.capacity
        if name in self._gone or (full and outcome.revision > 1 and name not in self.entries):
            self.stale_revisions += 1
            return False
        return True

    def add(self, row: int, outcome: Outcome) -> bool:
        """Take in a revision; False where it is no `news`."""
        if not self.news(outcome):
            return False
        self.put(row, outcome)
        return True

    def put(self, row: int, outcome: Outcome) -> None:
        """Take in a revision that is `news`."""
        decision = outcome.decision
        name = outcome.decision_id
        seen = outcome.components
        entry = Entry(
            row=row,
            pool_id=decision.pool_id if decision.source != "control" else "",
            candidate=decision.candidate,
            propensity=decision.probabilities[decision.candidate] if decision.probabilities else decision.propensity,
            version=decision.policy_version,
            click=seen.click,
            extra=min(max(outcome.reward - decision.reward.click * seen.click, -MOST_EXTRA), MOST_EXTRA),
            conversions=seen.conversion,
            converted=seen.conversion > 0,
            impression_ts=outcome.impression_ts,
            click_ts=outcome.click_ts if outcome.click_ts is not None else _EMPTY,
            click_window_ms=decision.attribution.click_window_ms,
            conversion_window_ms=decision.attribution.conversion_window_ms,
            view_window_ms=decision.attribution.view_through_ms,
            closed=outcome.state == "closed",
            pays_later=bool(decision.reward.conversion or decision.reward.value or decision.reward.rating),
            pays_conversions=bool(decision.reward.conversion or decision.reward.value),
            counts_once=decision.attribution.count != "all",
            mass=self._unit,
        )
        before = self.entries.pop(name, None)
        if before is not None:
            entry = entry._replace(mass=before.mass)
        if before is not None:
            self._count(name, before, -1.0)
        self.entries[name] = entry
        self._newest[row] = max(self._newest[row], entry.impression_ts)
        self._revisions[name] = outcome.revision
        self._count(name, entry, 1.0)
        if len(self.entries) > self.capacity:
            self._evict()

    def add_counts(self, row: int, shown: int, clicked: int, rng: np.random.Generator, now_ms: int = 0) -> None:
        """Take in decisions known by their number alone, windows over: each head's bootstrap sample of them, as a sum
        of Poisson(1) weights. `now_ms`: when they count as shown."""
        self._newest[row] = max(self._newest[row], now_ms)
        self._clicked[row] += self._unit * rng.poisson(clicked, self.heads)
        self._settled[row] += self._unit * rng.poisson(shown - clicked, self.heads)

    def _count(self, name: str, entry: Entry, sign: float) -> None:
        weight = sign * entry.mass * self.bootstrap(name)
        self._viewed.pop(name, None)
        if entry.click:
            self._clicked[entry.row] += weight
        elif entry.closed:
            self._settled[entry.row] += weight
        elif sign > 0:
            self._open[name] = None
        elif name in self._open:
            del self._open[name]
        else:
            # It had been settled by age.
            self._settled[entry.row] += weight
        if not entry.click and entry.extra:
            self._unclicked_extra[entry.row] += entry.extra * weight

    def _evict(self) -> None:
        """Forget the oldest decision one by one; its weight stays in its row."""
        name = next(iter(self.entries))
        entry = self.entries.pop(name)
        self._revisions.pop(name, None)
        self._viewed.pop(name, None)
        self._let_go(name)
        if name in self._open:
            del self._open[name]
            self._settled[entry.row] += entry.mass * self.bootstrap(name)
        self.evicted += 1

    def _let_go(self, name: str) -> None:
        self._gone[name] = None
        if len(self._gone) > self.capacity:
            del self._gone[next(iter(self._gone))]

    def settle(self, now_ms: int) -> OpenShown:
        """Move what is past its click window to the settled; returns what is still open at `now_ms`."""
        names, entries = [], []
        for name in list(self._open):
            entry = self.entries[name]
            if now_ms - entry.impression_ts > entry.click_window_ms:
                del self._open[name]
                self._settled[entry.row] += entry.mass * self.bootstrap(name)
                if entry.pays_later and entry.view_window_ms > 0:
                    self._viewed[name] = None
            else:
                names.append(name)
                entries.append(entry)
        weight = self._weights(names, entries)
        at = [k for k, entry in enumerate(entries) if entry.pays_later and entry.view_window_ms > 0]
        return OpenShown(
            np.array([entry.row for entry in entries], np.intp),
            np.array([max(0, now_ms - entry.impression_ts) for entry in entries], np.int64),
            np.array([entry.click_window_ms for entry in entries], np.int64),
            weight,
            np.array([entry.extra for entry in entries], np.float64),
            np.array(at, np.intp),
            Waiting.of([entries[k] for k in at], now_ms, weight[at]),
        )

    def waiting(self, now_ms: int) -> Waiting:
        """Those past their click window that may still convert without one; `settle` first."""
        entries = [self.entries[name] for name in self._viewed]
        over = [now_ms - entry.impression_ts >= entry.view_window_ms for entry in entries]
        if any(over):
            self._viewed = {name: None for name, done in zip(self._viewed, over, strict=True) if not done}
            entries = [entry for entry, done in zip(entries, over, strict=True) if not done]
        return Waiting.of(entries, now_ms, self._weights(list(self._viewed), entries))

    def _weights(self, names: list[str], entries: list[Entry]) -> Floats:
        """float32[m, H]: each head's bootstrap weight of these, beside one of now."""
        rows = np.array([zlib.crc32(name.encode()) % BOOTSTRAP_ROWS for name in names], np.intp)
        masses = np.array([entry.mass for entry in entries], np.float32)
        weight: Floats = self._poisson[rows].reshape(-1, self.heads) * (masses / np.float32(self._unit))[:, None]
        return weight

    def stale(self, before_ms: int, most: int) -> NDArray[np.bool_]:
        """bool[R]: the rows last shown before `before_ms`, and the oldest of the others where there are more than
        `most`. What is not dated (counts of past tests, read first of all) is the oldest, but out of no date. Never
        those with decisions that are held and can still change."""
        newest = np.array(self._newest, np.int64)
        old: NDArray[np.bool_] = (newest > 0) & (newest < before_ms)
        more = len(newest) - int(old.sum()) - most
        if more > 0:
            order = np.argsort(np.where(old, np.iinfo(np.int64).max, newest), kind="stable")
            old[order[:more]] = True
        if old.any():
            old[[entry.row for entry in self.entries.values() if not entry.closed]] = False
        return old

    def keep(self, kept: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Forget the other rows, with all that was seen there. Returns each row's new number, int[R], -1 for those
        forgotten."""
        moved: NDArray[np.intp] = np.where(kept, np.cumsum(kept) - 1, -1)
        for name in [name for name, entry in self.entries.items() if not kept[entry.row]]:
            del self.entries[name], self._revisions[name]
            self._open.pop(name, None)
            self._viewed.pop(name, None)
            self._let_go(name)
        self.entries = {name: entry._replace(row=int(moved[entry.row])) for name, entry in self.entries.items()}
        self._rows = {key: int(moved[row]) for key, row in self._rows.items() if kept[row]}
        self._newest = [at for at, stays in zip(self._newest, kept, strict=True) if stays]
        count = len(kept)
        self._clicked, self._settled, self._unclicked_extra = (
            sums[:count][kept] for sums in (self._clicked, self._settled, self._unclicked_extra)
        )
        return moved

    def totals(self) -> Totals:
        """The rows' sums, beside a decision of now that weighs 1; `settle` first. Copies: what comes later leaves them
        as they are."""
        count = len(self._rows)
        unit = np.float32(1.0 / self._unit)
        return Totals(self._clicked[:count] * unit, self._settled[:count] * unit, self._unclicked_extra[:count] * unit)
