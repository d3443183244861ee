"""The sums of one campaign, or of all of a tenant's, behind the live page, and the rankings of its texts. Bounded."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from optimizer.maths.intervals import Moments
from optimizer.types import Outcome
from serving.series import Count, Series
from serving.summary import rate

MAX_VARIANTS = 256
MAX_TEXTS = 1024
MAX_TEXT_CHARS = 280
BEST, NEWEST = 8, 8
MIN_RANKED = 30


@dataclass(slots=True)
class Arm:
    """Sums over the last revisions of one side's outcomes."""

    impressions: int = 0
    clicks: int = 0
    reward: float = 0.0
    squares: float = 0.0
    rewarded: int = 0

    def add(self, outcome: Outcome, sign: int) -> None:
        self.impressions += sign
        self.clicks += sign * outcome.components.click
        self.reward += sign * outcome.reward
        self.squares += sign * outcome.reward * outcome.reward
        self.rewarded += sign * (outcome.reward != 0.0)

    def moments(self) -> Moments:
        return Moments(self.impressions, self.reward, self.squares, self.rewarded)


@dataclass(frozen=True, slots=True)
class Text:
    """A text as it is shown: cut to `MAX_TEXT_CHARS` code points."""

    text: str
    control: bool


@dataclass(frozen=True, slots=True)
class Fresh:
    """A text that came in with a pool."""

    variant_id: str
    segment: str
    policy_version: str
    ts: int


@dataclass
class Sheet:
    """One campaign, or all of a tenant's."""

    series: Series = field(default_factory=Series)
    learned: Arm = field(default_factory=Arm)
    control: Arm = field(default_factory=Arm)


@dataclass
class CampaignSheet(Sheet):
    """One campaign with its texts."""

    name: str = ""
    variants: dict[str, Count] = field(default_factory=dict)
    texts: dict[str, Text] = field(default_factory=dict)
    newest: deque[Fresh] = field(default_factory=lambda: deque(maxlen=NEWEST))

    def remember(self, variant: str, text: Text) -> None:
        """Keep the text, and let go of the oldest one that nothing was counted for."""
        self.texts.pop(variant, None)
        self.texts[variant] = text
        if len(self.texts) > MAX_TEXTS:
            idle = next((v for v, t in self.texts.items() if v not in self.variants and not t.control), None)
            del self.texts[next(iter(self.texts)) if idle is None else idle]

    def count(self, variant: str, previous: Outcome | None, new: Outcome) -> None:
        """Count an outcome for its text. Beyond `MAX_VARIANTS` texts the least shown one is let go."""
        known = self.variants.get(variant)
        if known is None:
            if previous is not None:
                # The text was let go after the outcome's earlier revision was counted: nothing to correct.
                return
            known = self.variants[variant] = Count()
        if previous is not None:
            known.add(-1, -previous.components.click)
        known.add(1, new.components.click)
        if len(self.variants) > MAX_VARIANTS:
            least = min((v for v in self.variants if v != variant), key=lambda v: self.variants[v].impressions)
            del self.variants[least]


class Entry(NamedTuple):
    """A text with what was counted for it; `text` is None where it is not known."""

    campaign_id: str
    variant_id: str
    impressions: int
    clicks: int
    text: Text | None


def entries(sheets: Mapping[str, CampaignSheet]) -> list[Entry]:
    """Every text that was shown."""
    return [
        Entry(campaign_id, variant, count.impressions, count.clicks, sheet.texts.get(variant))
        for campaign_id, sheet in sheets.items()
        for variant, count in sheet.variants.items()
        if count.impressions > 0
    ]


def best(shown: Sequence[Entry]) -> list[dict[str, Any]]:
    """Texts by the lower end of their rate's interval, those shown less than `MIN_RANKED` times last: one click in one
    impression has a lower end of 21 %, which no honest text reaches."""

    def rank(entry: Entry) -> tuple[bool, float, int, str]:
        low = rate(Count(entry.impressions, entry.clicks))["low"]
        return entry.impressions < MIN_RANKED, -low, -entry.impressions, entry.variant_id

    return [
        {
            "campaign_id": entry.campaign_id,
            "variant_id": entry.variant_id,
            **_shown(entry.text),
            **rate(Count(entry.impressions, entry.clicks)),
        }
        for entry in heapq.nsmallest(BEST, shown, key=rank)
    ]


def newest(sheets: Mapping[str, CampaignSheet], numbers: Mapping[str, int]) -> list[dict[str, Any]]:
    """The texts that came last, with the numbers of the versions that wrote them."""
    rows = [
        {
            "campaign_id": campaign_id,
            "variant_id": fresh.variant_id,
            "segment": fresh.segment,
            "number": numbers.get(fresh.policy_version),
            "ts": fresh.ts,
            **_shown(sheet.texts.get(fresh.variant_id)),
        }
        for campaign_id, sheet in sheets.items()
        for fresh in sheet.newest
    ]
    rows.sort(key=lambda row: (-row["ts"], row["campaign_id"]))
    return rows[:NEWEST]


def _shown(known: Text | None) -> dict[str, Any]:
    return {"text": known.text if known else None, "control": known.control if known else False}


def text_of(slots: Mapping[str, str], control: bool) -> Text:
    """The slots on one line, cut to `MAX_TEXT_CHARS`."""
    text = " · ".join(slots.values())
    return Text(text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…", control)
