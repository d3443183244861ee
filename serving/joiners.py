"""What the joiners do, as the live page shows it: the metrics of the joiner in this process, or of those at `--joiner`.

One form for both: the Prometheus families that a joiner exports (optimizer/stream/exporter.py).
"""

from __future__ import annotations

import time
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Final, NamedTuple

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from optimizer import metrics
from optimizer.clock import Clock
from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.stream.exporter import JoinerFigures
from optimizer.stream.joiner import Joiner
from optimizer.stream.log import EventLog
from optimizer.stream.tokens import TokenKeys

LOOK_EVERY_S: Final = 0.5
ASK_EVERY_S: Final = 1.0
ANSWER_WITHIN_S: Final = 2.0
SILENT_AFTER_S: Final = 5.0  # a busy joiner may miss a question or two
WINDOW_S: Final = 60.0  # the delays that are shown are those of the last minute
# As they stand on the page of metrics.
_REVISIONS: Final = f"{metrics.JOINER_REVISIONS.name}_total"
_QUARANTINED: Final = f"{metrics.JOINER_QUARANTINED.name}_total"
_DELAYS: Final = f"{metrics.JOINER_DELAY.name}_bucket"


class Lane(NamedTuple):
    """One partition: records of either topic that are not read yet, how far its event time is behind the clock (None
    before anything was let in), and how many records its catch-up has yet to read before it publishes."""

    partition: int
    decisions: int = 0
    events: int = 0
    age_s: float | None = None
    behind: int = 0


@dataclass(frozen=True)
class StreamFigures:
    """All joiners together. `silent`: those that did not answer. `delays`: upper edge in seconds -> events that took at
    most so long from receipt to publishing, since the joiners' start."""

    joiners: int = 1
    silent: int = 0
    ready: bool = True
    open_decisions: int = 0
    revisions: int = 0
    quarantined: Mapping[str, int] = field(default_factory=dict)
    lanes: tuple[Lane, ...] = ()
    delays: Mapping[float, float] = field(default_factory=dict)

    @property
    def waiting(self) -> int:
        """Records of decisions and events that are not read yet."""
        return sum(lane.decisions + lane.events for lane in self.lanes)


def together(scrapes: Sequence[Iterable[Metric] | None], silent: int = 0) -> StreamFigures:
    """The figures of several joiners as one; None stands for one that never answered, and `silent` is how many do not
    answer now."""
    sums: dict[tuple[str, str], float] = {}
    lanes: dict[int, Lane] = {}
    answered = [list(families) for families in scrapes if families is not None]
    for sample in (sample for families in answered for family in families for sample in family.samples):
        labels, value = sample.labels, sample.value
        if "partition" not in labels:
            told = (sample.name, labels.get("reason") or labels.get("le") or "")
            sums[told] = sums.get(told, 0.0) + value
            continue
        partition = int(labels["partition"])
        lane = lanes.get(partition, Lane(partition))
        match sample.name:
            case metrics.JOINER_LAG.name:
                lane = lane._replace(**{labels["topic"]: int(value)})
            case metrics.JOINER_EVENT_TIME_AGE.name:
                lane = lane._replace(age_s=value)
            case metrics.JOINER_CATCH_UP.name:
                lane = lane._replace(behind=int(value))
        lanes[partition] = lane
    return StreamFigures(
        joiners=len(scrapes),
        silent=silent,
        ready=not silent and sums.get((metrics.JOINER_READY.name, ""), 0.0) == len(scrapes),
        open_decisions=int(sums.get((metrics.JOINER_OPEN_DECISIONS.name, ""), 0)),
        revisions=int(sums.get((_REVISIONS, ""), 0)),
        quarantined={reason: int(count) for (name, reason), count in sorted(sums.items()) if name == _QUARANTINED},
        lanes=tuple(lanes[partition] for partition in sorted(lanes)),
        delays={float(edge): count for (name, edge), count in sums.items() if name == _DELAYS},
    )


class Delays:
    """Quantiles of the join delay over the last minute, from counts that only grow."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[float, float]]] = deque()

    def take(self, now_s: float, counts: Mapping[float, float]) -> None:
        """Note the counts as of `now_s`."""
        if self._seen and any(counts.get(edge, 0.0) < count for edge, count in self._seen[-1][1].items()):
            self._seen.clear()  # a joiner was started again: its counts begin anew
        self._seen.append((now_s, dict(counts)))
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - WINDOW_S:
            self._seen.popleft()

    def quantile(self, q: float) -> float | None:
        """Seconds, by linear interpolation inside the bucket (of the open one its lower edge); None where nothing was
        published in the last minute."""
        if len(self._seen) < 2:
            return None
        (_, first), (_, last) = self._seen[0], self._seen[-1]
        below = [(edge, last[edge] - first.get(edge, 0.0)) for edge in sorted(last)]
        total = below[-1][1] if below else 0.0
        low, under = 0.0, 0.0
        for edge, count in below:
            if total > 0 and count >= q * total:
                return low if edge == float("inf") else low + (edge - low) * (q * total - under) / max(count - under, 1)
            low, under = edge, count
        return None


class Joining:
    """The joiner as a role, and its figures as of a moment ago for other threads."""

    def __init__(self, clock: Clock) -> None:
        self.exported = JoinerFigures(clock)
        self._joiner: Joiner | None = None
        self._looked = 0.0

    def role(
        self, log: EventLog, data: Path, keys: TokenKeys, clock: Clock, extra_retention_ms: int = EXTRA_RETENTION_MS
    ) -> Joining:
        """Open the joiner's state in `DIR/joiner`. Raises ConfigError where it is another log's or in use."""
        self._joiner = Joiner(log, data / "joiner", keys, clock, extra_retention_ms=extra_retention_ms)
        return self

    def figures(self) -> StreamFigures | None:
        """What the page shows; None before the first look."""
        families = list(self.exported.collect())
        return together([families]) if families else None

    def step(self) -> int:
        """One step of the joiner; its figures are taken now and then, in its own thread."""
        joiner = self._joiner
        if joiner is None:
            return 0
        done = joiner.step()
        now = time.monotonic()
        if now - self._looked > LOOK_EVERY_S:
            self._looked = now
            self.exported.take(joiner)
        return done

    def close(self) -> None:
        if self._joiner is not None:
            self._joiner.close()
            self._joiner = None


class Asking:
    """The joiners in other processes, asked for their metrics once a second."""

    def __init__(
        self, urls: Sequence[str], get: Callable[[str], str] | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._urls = urls
        self._get = get or _get
        self._now_s = now_s
        self._heard: dict[str, tuple[float, list[Metric] | None]] = dict.fromkeys(urls, (float("-inf"), None))
        self._figures: StreamFigures | None = None

    def figures(self) -> StreamFigures | None:
        """What the page shows; None before the first look."""
        return self._figures

    def step(self) -> bool:
        """Ask all of them once; always False: the next look comes after a pause. What one last said stays shown."""
        for url in self._urls:
            families = self._ask(url)
            if families is not None:
                self._heard[url] = (self._now_s(), families)
        silent = sum(self._now_s() - at > SILENT_AFTER_S for at, _ in self._heard.values())
        self._figures = together([self._heard[url][1] for url in self._urls], silent)
        return False

    def close(self) -> None:
        """Nothing is held open between two looks."""

    def _ask(self, url: str) -> list[Metric] | None:
        try:
            return list(text_string_to_metric_families(self._get(f"{url}/metrics")))
        except (OSError, ValueError, HTTPException):
            # It is starting, busy or gone: the page says so after a while.
            return None


def _get(url: str) -> str:
    # No proxy of the environment stands between here and a joiner.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=ANSWER_WITHIN_S) as answer:
        text: str = answer.read().decode()
        return text
