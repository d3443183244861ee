"""What the live page shows, kept up to date by the views as the log moves: running sums, never the records themselves.

Everything here is bounded: a run of years and a million texts keeps the same memory as an afternoon's.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

from optimizer.ids import variant_id, version_number
from optimizer.maths.intervals import lift
from optimizer.types import Campaign, Outcome, PolicyRecord, Pool
from serving.joiners import StreamFigures
from serving.series import CONTROL, Bin, Count, group_name, version_groups
from serving.sheets import MAX_TEXT_CHARS, CampaignSheet, Fresh, Sheet, best, entries, newest, text_of
from serving.summary import AxisKind, curve, lift_missing, rate, stratified_lift

LearnerState = Literal["running", "paused", "halted", "waiting"]

MAX_CAMPAIGNS = 200
MAX_POLICIES = 400
MAX_NUMBERED = 4 * MAX_POLICIES
MAX_KL_POINTS = 360
POLICIES = 5
LAYERS = 7


class LiveBoard:
    """The sums behind the live page. Thread-safe; every method is short.

    Producers: `serving.views` (the four `on_` methods, each record once and in log order) and the loop (`set_gauges`).
    Consumer: `serving.live`. `changes` rises with every change, so that a reader knows whether to look again.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.closed = threading.Event()
        self._lock = threading.Lock()
        self._totals: dict[str, Sheet] = {}
        self._campaigns: dict[tuple[str, str], CampaignSheet] = {}
        self._policies: dict[str, PolicyRecord] = {}
        self._numbers: dict[str, int] = {}
        self._versions = 0
        self._kl: deque[tuple[int, float]] = deque(maxlen=MAX_KL_POINTS)
        self._kl_budget: float | None = None
        self._gauges: dict[str, str] = {
            "learner": "waiting",
            "learner_reason": "",
        }
        self._stream: dict[str, Any] | None = None

    # -- what happens --------------------------------------------------------------------------------------------------

    def on_campaign(self, campaign: Campaign) -> None:
        """A campaign was put."""
        with self._lock:
            sheet = self._sheet(campaign.tenant, campaign.campaign_id)
            if sheet is not None:
                sheet.name = campaign.product.name[:MAX_TEXT_CHARS]
                for slots in campaign.controls:
                    sheet.remember(variant_id(campaign.campaign_id, slots), text_of(slots, control=True))
            self.changes += 1

    def on_campaign_deleted(self, tenant: str, campaign_id: str) -> None:
        """A campaign was deleted: its page goes; what it earned stays in the tenant's totals."""
        with self._lock:
            self._campaigns.pop((tenant, campaign_id), None)
            self.changes += 1

    def on_pool(self, pool: Pool) -> None:
        """New texts came."""
        with self._lock:
            sheet = self._campaigns.get((pool.tenant, pool.campaign_id))
            if sheet is None:
                return
            for candidate in pool.candidates:
                if candidate.rejected is not None:
                    continue
                new = candidate.variant_id not in sheet.texts
                sheet.remember(candidate.variant_id, text_of(candidate.slots, control=False))
                if new and (not candidate.kept or candidate.token_ids):  # carried over ones have none
                    sheet.newest.appendleft(Fresh(candidate.variant_id, pool.segment, pool.policy_version, pool.ts))
            self.changes += 1

    def on_outcome(self, previous: Outcome | None, new: Outcome) -> None:
        """An outcome changed; `previous` is the revision that was counted before, None for the first."""
        decision = new.decision
        version = CONTROL if decision.source == "control" else decision.policy_version
        with self._lock:
            sheet = self._campaigns.get((decision.tenant, decision.campaign_id))
            for each in (self._totals.setdefault(decision.tenant, Sheet()), sheet):
                if each is None:
                    continue
                arm = each.control if version == CONTROL else each.learned
                if previous is not None:
                    arm.add(previous, -1)
                    each.series.add(previous.impression_ts, version, previous.components.click, -1)
                arm.add(new, 1)
                each.series.add(new.impression_ts, version, new.components.click)
            if sheet is not None:
                sheet.count(decision.variant_id, previous, new)
            if version != CONTROL:
                self._number(version)
            self.changes += 1

    def on_policy(self, record: PolicyRecord) -> None:
        """A policy version was published or its stage changed."""
        with self._lock:
            self._number(record.version)
            fresh = record.version not in self._policies
            self._policies.pop(record.version, None)
            self._policies[record.version] = record
            if len(self._policies) > MAX_POLICIES:
                self._policies.pop(next(iter(self._policies)))
            kl, budget = _finite(record.evidence.get("kl")), _finite(record.evidence.get("kl_budget"))
            if kl is not None and fresh:
                self._kl.append((record.ts, kl))
            self._kl_budget = budget if budget is not None else self._kl_budget
            self.changes += 1

    def set_gauges(
        self, learner: LearnerState = "running", learner_reason: str = "", kl_budget: float | None = None
    ) -> None:
        """What no record says: what the learner does and why, the KL budget in nats per sequence."""
        gauges = {"learner": learner, "learner_reason": learner_reason}
        with self._lock:
            budget = self._kl_budget if kl_budget is None else kl_budget
            if gauges != self._gauges or budget != self._kl_budget:
                self._gauges, self._kl_budget = gauges, budget
                self.changes += 1

    def set_stream(
        self, figures: StreamFigures | None, median_s: float | None = None, most_s: float | None = None
    ) -> None:
        """What the joiners do; None where this process does not see any. `median_s`, `most_s`: median and 99th
        percentile of the delay from an event's receipt to its outcome, in the last minute."""
        stream: dict[str, Any] | None = None
        if figures is not None:
            lanes = [
                # Whole seconds: on a quiet stream the page would else change with every look.
                lane._replace(age_s=None if lane.age_s is None else float(round(lane.age_s)))._asdict()
                for lane in figures.lanes
            ]
            stream = {
                "joiners": figures.joiners,
                "silent": figures.silent,
                "ready": figures.ready,
                "waiting": figures.waiting,
                "open_decisions": figures.open_decisions,
                "revisions": figures.revisions,
                "quarantined": dict(figures.quarantined),
                "median_s": median_s,
                "most_s": most_s,
                "lanes": lanes,
            }
        with self._lock:
            if stream != self._stream:
                self._stream = stream
                self.changes += 1

    def close(self) -> None:
        """The server stops: every stream of the page ends within a moment. May be called from a signal handler."""
        self.closed.set()

    # -- what is shown -------------------------------------------------------------------------------------------------

    def knows(self, tenant: str, campaign_id: str) -> bool:
        """Whether the tenant has a page for this campaign."""
        with self._lock:
            return (tenant, campaign_id) in self._campaigns

    def snapshot(
        self, now_ms: int, tenant: str = "default", campaign_id: str | None = None, axis: AxisKind = "time"
    ) -> dict[str, Any]:
        """Everything the page shows of one campaign, or of all (None), as JSON-able values.

        Rates are clicks per impression; `curve` points are [x, rate, low, high] with x in epoch ms (axis time) or in
        impressions from the start (axis count)."""
        with self._lock:
            mine = {key[1]: sheet for key, sheet in self._campaigns.items() if key[0] == tenant}
            chosen = mine if campaign_id is None else {c: s for c, s in mine.items() if c == campaign_id}
            whole = (
                self._totals.get(tenant, Sheet()) if campaign_id is None else chosen.get(campaign_id, CampaignSheet())
            )
            bins = whole.series.bins()
            strata = [(s.learned.moments(), s.control.moments()) for s in chosen.values()]
            told = stratified_lift(strata) if campaign_id is None else lift(*strata[0]) if strata else None
            learned, control = whole.learned, whole.control
            live = [record.version for record in self._policies.values() if record.stage == "live"]
            figures = {
                "as_of": now_ms,
                "campaign_id": campaign_id,
                "axis": axis,
                "campaigns": [{"campaign_id": c, "name": mine[c].name} for c in sorted(mine)],
                "impressions": learned.impressions + control.impressions,
                "learned": rate(Count(learned.impressions, learned.clicks)),
                "control": rate(Count(control.impressions, control.clicks)),
                "lift": None if told is None else dict(zip(("value", "low", "high"), told, strict=True)),
                "lift_missing": "" if told else lift_missing(learned.moments(), control.moments()),
                "curve": curve(bins, axis),
                "traffic": self._traffic(bins, whole.series.versions(), axis),
                "newest": newest(chosen, self._numbers),
                "kl": {
                    "value": self._live_kl(live[-1] if live else None),
                    "budget": self._kl_budget,
                    "points": [list(p) for p in self._kl],
                },
                "critic": self._critic(live[-1] if live else None),
                "policies": self._stages(bins, live[-1] if live else None),
                "policy_count": len(self._policies),
                "live": live[-1] if live else None,
                **self._gauges,
                "stream": self._stream,
            }
            shown = entries(chosen)
        # Ranking thousands of texts takes milliseconds: whoever counts outcomes must not wait for it.
        return figures | {"best": best(shown)}

    def _sheet(self, tenant: str, campaign_id: str) -> CampaignSheet | None:
        key = (tenant, campaign_id)
        if key not in self._campaigns and len(self._campaigns) < MAX_CAMPAIGNS:
            self._campaigns[key] = CampaignSheet()
        return self._campaigns.get(key)

    def _number(self, version: str) -> int:
        """People say "version 12", not a hash: the number that the store gave it, else the order of appearance."""
        if version not in self._numbers:
            self._versions += 1
            told = version_number(version)
            self._numbers[version] = self._versions if told is None else told
            if len(self._numbers) > MAX_NUMBERED:
                del self._numbers[next(iter(self._numbers))]
        return self._numbers[version]

    def _live_kl(self, live: str | None) -> float | None:
        record = self._policies.get(live) if live else None
        return None if record is None else _finite(record.evidence.get("kl"))

    def _critic(self, live: str | None) -> dict[str, Any] | None:
        """How good the live critic's predictions of clicks have been; None where its record tells nothing."""
        record = self._policies.get(live) if live else None
        evidence = {} if record is None else record.evidence
        curve = _curve(evidence.get("reliability_curve"))
        if not curve:
            return None
        names = {"expected": "clicks_expected", "seen": "clicks_seen", "brier": "brier", "skill": "brier_skill"}
        return {**{key: _finite(evidence.get(name)) for key, name in names.items()}, "curve": curve}

    def _traffic(self, bins: list[Bin], versions: list[str], axis: AxisKind) -> dict[str, Any]:
        layers = [{"name": "Control", "sizes": [b.control().impressions for b in bins]}]
        for group in version_groups(bins, versions, LAYERS):
            sizes = [sum(b.counts[v].impressions for v in group if v in b.counts) for b in bins]
            layers.append({"name": self._group_name(group), "sizes": sizes})
        return {"x": [b.ts if axis == "time" else b.seen for b in bins], "layers": layers}

    def _group_name(self, group: list[str]) -> str:
        numbers = [self._numbers[v] for v in group if v in self._numbers]
        return group_name(numbers) if numbers else "Earlier versions"

    def _stages(self, bins: Iterable[Bin], live: str | None) -> list[dict[str, Any]]:
        """The newest versions. A version that was live until another became it is called retired."""
        counts: dict[str, Count] = {}
        for each in bins:
            for version, count in each.counts.items():
                counts.setdefault(version, Count()).add(count.impressions, count.clicks)
        newest = list(self._policies.values())[::-1][:POLICIES]
        return [
            {
                "version": record.version,
                "number": self._numbers[record.version],
                "stage": "retired" if record.stage == "live" and record.version != live else record.stage,
                "ts": record.ts,
                "kl": _finite(record.evidence.get("kl")),
                **rate(counts.get(record.version, Count())),
            }
            for record in newest
        ]


def _finite(value: object) -> float | None:
    """A figure of the evidence; None for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _curve(told: object) -> list[list[float]]:
    """[count, expected, seen] of each bin, from "count:expected:seen;..."; nothing from what is no such thing."""
    try:
        bins = [[float(part) for part in one.split(":")] for one in str(told or "").split(";") if one]
    except ValueError:
        return []
    return bins if all(len(one) == 3 and all(map(math.isfinite, one)) for one in bins) else []
