"""What a run found, as frozen records: the input of the reports (simulators/report.py).

Producers: `simulators.demo` (DemoResult) and `simulators.compare` (rows and curves). Rates are clicks per impression
in [0, 1]; `impression` counts impressions from the start of the run; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CurvePoint:
    """One bin of the learning curve, ending at impression number `impression`.

    `learned_ctr` is the click rate of learned texts in the bin, `low` to `high` its 95 % interval, `control_ctr` the
    click rate of the control texts in the same bin; None where nothing of that kind was shown in the bin."""

    impression: int
    learned_ctr: float | None
    low: float | None
    high: float | None
    control_ctr: float | None


@dataclass(frozen=True)
class KLPoint:
    """KL divergence from the reference model, in nats per sequence, of the version live at impression `impression`."""

    impression: int
    kl: float


@dataclass(frozen=True)
class TrafficBin:
    """Impressions in the bin that ends at impression number `impression`, by policy version or "control"."""

    impression: int
    shares: Mapping[str, int]


@dataclass(frozen=True)
class TextPair:
    """A control text and the text that learning put in its place, with true click rates where the world tells them."""

    campaign_id: str
    segment: str
    before: str
    after: str
    before_ctr: float | None = None
    after_ctr: float | None = None


@dataclass(frozen=True)
class SegmentRow:
    """One segment of one campaign: impressions in the last fifth and the click rates there; None where unknown."""

    campaign_id: str
    segment: str
    impressions: int
    control_ctr: float | None
    learned_ctr: float | None
    oracle_ctr: float | None = None


@dataclass(frozen=True)
class DemoResult:
    """Everything that `make demo` measured. Producer: `simulators.demo`. Consumer: `write_report`.

    `learned_ctr` is over the last fifth of the run. `lift` is learned over control minus one and `lift_interval` its
    95 % interval; both None where it cannot be told. `method` holds sentences on how the numbers were measured."""

    seed: int
    impressions: int
    control_ctr: float
    learned_ctr: float
    oracle_ctr: float
    lift: float | None
    lift_interval: tuple[float, float] | None
    valid_share: float
    kl: float
    kl_budget: float
    seconds: float
    curve: tuple[CurvePoint, ...] = ()
    kl_curve: tuple[KLPoint, ...] = ()
    traffic: tuple[TrafficBin, ...] = ()
    texts: tuple[TextPair, ...] = ()
    segments: tuple[SegmentRow, ...] = ()
    method: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompareRow:
    """One policy's run under one seed: the row of `python -m simulators compare` (docs/api.md, Commands).

    `kl` is 0 for a policy that writes no texts of its own. `oracle_ctr` is None where the world fails to tell it, for
    which `oracle_why` is the reason; `share_of_oracle` is mean over oracle click rate, None where that is 0 or not
    told; `oracle_reward` and `share_of_reward` likewise of the expected reward. `halted` says why Adloop's sentinel
    ended learning, None where it did not.

    `reward_is` says what `mean_reward` averages: the world's expected rewards ("true"); where it does not tell them and
    its campaigns pay for more than clicks, what the reactions were worth ("realised"); click rates ("clicks").
    `untold` counts reactions that a policy that waits for events had not been told when the run ended; `keys_cut` the
    most keys of a context that no policy was given."""

    name: str
    seed: int
    mean_ctr: float
    last_tenth_ctr: float
    oracle_ctr: float | None
    mean_reward: float
    kl: float
    valid_share: float
    distinct_texts: int
    seconds: float
    share_of_oracle: float | None = None
    last_tenth_reward: float | None = None
    oracle_reward: float | None = None
    share_of_reward: float | None = None
    halted: str | None = None
    oracle_why: str | None = None
    reward_is: Literal["true", "realised", "clicks"] = "clicks"
    untold: int = 0
    keys_cut: int = 0


@dataclass(frozen=True)
class CompareCurve:
    """Click rate over one policy's run: `points` are (impressions so far, click rate in the bin that ends there),
    `rewards` the like of the reward."""

    name: str
    seed: int
    points: tuple[tuple[int, float], ...]
    rewards: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Failed:
    """A run that gave no row, and why."""

    name: str
    seed: int
    why: str


@dataclass(frozen=True)
class Apart:
    """A policy that met other arrivals than `than` on the same seed, from arrival number `start` (the first is 1)
    on."""

    seed: int
    name: str
    start: int
    than: str


@dataclass(frozen=True)
class Setup:
    """What was compared, for the report. `model` None: the tiny one. `ranked_by`: the measure that counts, reward where
    the campaigns pay for more than clicks."""

    world: str
    impressions: int
    increment: int
    model: str | None = None
    ranked_by: Literal["mean_ctr", "mean_reward"] = "mean_ctr"
    failed: tuple[Failed, ...] = ()
    apart: tuple[Apart, ...] = ()
