"""The critic Q(x, a): what a text will earn when it is shown, by temporal difference over the life of an impression.

    shown --p--> clicked --> converted, rated, ...          Q = p (w_click + V_clicked) + (1 - p) V_unclicked

Three outputs of bootstrapped heads (heads.py): p is logistic, the two values are linear. A decision whose window is
still open is not a zero: its target bootstraps from the target network, a copy of the heads that follows at intervals
(DQN: Mnih et al. 2015): shown and not clicked at age t counts p (1 - F) / (1 - p F) of a click, clicked and not
converted at age t keeps what is still to come of V_clicked. F, the share that has arrived by age t, is learnt from what
has arrived (maths/delay.py). As windows close, the targets become what happened: late conversions and refunds revise
them.

A fourth output, c = P(a click converts), is learnt of campaigns whose conversions come back though they do not pay for
them. It earns nothing; it makes clicks count less that bring fewer conversions than those on other texts (reference.py,
maths/guard.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit, logit

from optimizer.learning.arrivals import Arrivals
from optimizer.learning.buffer import Entry, ReplayBuffer
from optimizer.learning.features import (
    PRIOR_SCALE,
    Family,
    FeatureSet,
    context_features,
    context_names,
    encoded,
)
from optimizer.learning.forecasts import Forecasts
from optimizer.learning.guard import Clicks, Guard
from optimizer.learning.heads import Heads
from optimizer.learning.reference import LureText, watched
from optimizer.learning.traffic import Traffic, place_name
from optimizer.learning.view import OUTPUTS, CriticView, OutputView
from optimizer.maths.delay import still_to_come
from optimizer.maths.drift import DriftWatch
from optimizer.types import Campaign, Outcome, Scalar

Floats = NDArray[np.float32]
logger = logging.getLogger(__name__)
FORESEEN_AT_ONCE = 100_000  # new decisions of an increment whose predictions are noted
CONVERTS_PASSES = 3  # clicked rows are few, and bait is to be known before it is everywhere
BESIDE_TEXT, BESIDE_PLACE = 2.0, 0.3  # the first prior scales of what converts, in units of PRIOR_SCALE


@dataclass(frozen=True)
class CriticConfig:
    """`steps`: passes per increment. `rows_per_pass`: rows sampled for a pass where there are more. `target_every`:
    increments between copies of the heads into the target network. `first_rate`: click rate expected before any
    data. `prior`: width of the text features' first prior scales, in units of PRIOR_SCALE. `spread`: by how much
    serving's heads differ from their mean, as a share of what they were trained to; below 1 it explores less than
    Thompson sampling would (posterior reshaping: Chapelle, Li 2011, section 2). `kept_at_drift`: what evidence from
    before an abrupt change weighs beside what comes after it. `shared_evidence`: the prior scales are learnt with
    features that always come together sharing what a text says (heads.py:learn_scales). `guard`: conversions that are
    not paid for are learnt all the same, and clicks without them count less."""

    heads: int = 24
    steps: int = 12
    learning_rate: float = 0.08
    rows_per_pass: int = 6_000
    target_every: int = 4
    first_rate: float = 0.02
    prior: float = 1.0
    spread: float = 0.5
    shared_evidence: bool = False
    kept_at_drift: float = 0.05
    guard: bool = True
    age_classes: int = 12
    delays_kept: int = 4_000
    seed: int = 0


class Critic:
    """Replay buffer, heads and target network; `fit` is one increment. `replaying`: what is read now has been decided
    long ago, by other heads. Not thread-safe; deterministic."""

    def __init__(self, config: CriticConfig) -> None:
        self.config = config
        self.buffer = ReplayBuffer(config.heads, salt=config.seed)
        learnt = np.ones(len(PRIOR_SCALE), bool)
        learnt[Family.INTERCEPT] = False
        scale = np.where(learnt, config.prior * PRIOR_SCALE, PRIOR_SCALE)
        # What a text does to conversions is asked beside its campaign's other texts: where clicks stop converting, that
        # is put down to the text before it is put down to the place, which all its texts share.
        beside = np.where(learnt, BESIDE_TEXT * PRIOR_SCALE, BESIDE_PLACE * PRIOR_SCALE)
        self._outputs = {
            name: Heads(
                config.heads,
                beside if name == "converts" else scale,
                learnt,
                salt=config.seed * 8 + at,
                learning_rate=config.learning_rate,
            )
            for at, name in enumerate(OUTPUTS)
        }
        self._columns: dict[int, int] = {}
        self._new_ids: list[int] = []
        self._new_families: list[int] = []
        self._of_context: list[bool] = []
        self._indices = np.zeros(1024, np.int64)
        self._indptr: list[int] = [0]
        self._target: dict[str, Floats] = {}
        self._increments = 0
        self._now_ms = 0
        self._arrivals = Arrivals(config.age_classes, config.delays_kept)
        self._unit = 1.0
        self._value_mean = 0.0
        self._converting = 0.5
        self._guard = Guard(CONVERTS_PASSES * config.steps)
        self._place_of_row: list[str] = []
        self._offset = float(logit(config.first_rate))
        self._rng = np.random.default_rng([config.seed, 7])
        self.replaying = False
        self._unforeseen: deque[str] = deque(maxlen=FORESEEN_AT_ONCE)
        self.forecasts = Forecasts()
        self._traffic = Traffic()
        self.drift = DriftWatch()
        self.drifts = 0

    # -- what is known -------------------------------------------------------------------------------------------------

    def add(self, outcome: Outcome, campaign: Campaign, slots: Mapping[str, str]) -> bool:
        """Take in an outcome's revision; False where it was known. `slots` is the text that was shown."""
        decision = outcome.decision
        row = self._row(campaign, decision.context, decision.variant_id, slots)
        before = self.buffer.entries.get(outcome.decision_id)
        if not self.buffer.add(row, outcome):
            return False
        self._now_ms = max(self._now_ms, outcome.as_of)
        after = self.buffer.entries.get(outcome.decision_id)
        if after is not None:
            if before is None:
                self._unforeseen.append(outcome.decision_id)
                self._traffic.note(self._place_of_row[row])
            self.forecasts.revise(outcome.decision_id, after)
            self._arrivals.note(before, after, outcome)
            self._guard.note(self._place_of_row[row], outcome.decision_id, before, after)
        return True

    def add_counts(
        self,
        campaign: Campaign,
        context: Mapping[str, Scalar],
        variant_id: str,
        slots: Mapping[str, str],
        shown: int,
        clicked: int,
    ) -> None:
        """Take in a past test of which only the counts are left: `shown` impressions, `clicked` of them with a click,
        all windows over. Calls add up. Raises ValueError for counts that can't be."""
        if not 0 <= clicked <= shown:
            raise ValueError(
                f"counts: got {clicked} clicks of {shown} impressions, expected 0 <= clicks <= impressions"
            )
        self.buffer.add_counts(self._row(campaign, context, variant_id, slots), shown, clicked, self._rng)

    def _row(self, campaign: Campaign, context: Mapping[str, Scalar], variant_id: str, slots: Mapping[str, str]) -> int:
        """The buffer's row of this text in this place, made where it is new."""
        segment = _segment(campaign, context)
        names = context_names(context)
        key = (campaign.tenant, campaign.campaign_id, segment, variant_id, names)
        row = self.buffer.row_of(key)
        if row is None:
            row = self.buffer.new_row(key)
            self._place_of_row.append(place_name(campaign, segment))
            parts, features = encoded(campaign, segment, variant_id, slots)
            self._write_row(features, context_features(names, parts))
        return row

    def _write_row(self, *sets: FeatureSet) -> None:
        """The text's features, then the context's."""
        of_context = np.repeat([False, True], [len(features.ids) for features in sets])
        ids = np.concatenate([features.ids for features in sets])
        families = np.concatenate([features.families for features in sets])
        columns = np.empty(len(ids), np.int64)
        each = zip(ids.tolist(), families.tolist(), of_context.tolist(), strict=True)
        for at, (name, family, context) in enumerate(each):
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = len(self._columns)
                self._new_ids.append(name)
                self._new_families.append(family)
                self._of_context.append(context)
            columns[at] = column
        start, end = self._indptr[-1], self._indptr[-1] + len(columns)
        while end > len(self._indices):
            self._indices = np.concatenate([self._indices, np.zeros_like(self._indices)])
        self._indices[start:end] = columns
        self._indptr.append(end)

    def _meet(self) -> None:
        """Let the heads meet the features that have come since: together, since every time all of them are copied."""
        if self._new_ids:
            ids, families = np.array(self._new_ids, np.uint64), np.array(self._new_families, np.uint8)
            for heads in self._outputs.values():
                heads.grow(ids, families)
            self._new_ids, self._new_families = [], []

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(self) -> float:
        """One increment: `steps` passes over the replay buffer. Returns the click heads' last gradient norm."""
        count = self.buffer.rows
        if count == 0:
            return 0.0
        self._meet()
        if self._increments % self.config.target_every == 0:
            self._target = {name: heads.weights() for name, heads in self._outputs.items()}
        self._increments += 1
        x = self._matrix(np.arange(count))
        open_ = self.buffer.settle(self._now_ms)
        self._watch_drift()
        self._foresee(x)
        totals = self.buffer.totals()
        mass, total = totals.clicked + totals.settled, totals.clicked.copy()
        if len(open_.row):
            target = expit(self._predict_target("click", x) + self._offset)
            arrived = np.zeros(len(open_.row))
            for window in np.unique(open_.window_ms):
                at = open_.window_ms == window
                arrived[at] = self._arrivals.share("click", int(window), open_.age_ms[at], self._now_ms)
            later = still_to_come(target[open_.row], arrived[:, None]).astype(np.float32)
            np.add.at(mass, open_.row, open_.weight)
            np.add.at(total, open_.row, open_.weight * later)
        chosen, each = self._rows_of_pass(count)
        click = self._outputs["click"]
        part = x[chosen] if len(chosen) < count else x
        norm = click.fit(part, mass[chosen] * each, total[chosen] * each, "logistic", self.config.steps, self._offset)
        rate = expit(x @ click.weights() + self._offset)
        information = np.asarray((mass * rate * (1 - rate)).mean(axis=1), np.float64)
        click.learn_scales(x, information, shared=self.config.shared_evidence)
        self._fit_values(x, mass - totals.clicked, totals.unclicked_extra)
        return norm

    def _watch_drift(self) -> None:
        """Compare the clicks on decisions whose click window is over with what was expected of them before they were
        learnt from, and make the past light where the world has changed. Not sooner: clicks are told of at once and
        their absence when the window closes, so that where traffic falls the newest clicks would seem too few."""
        clicks, expected = self.forecasts.settle(self._now_ms)
        self.drift = self.drift.after(clicks, expected)
        if self.drift.alarm:
            logger.warning("clicks have fallen far below what was expected: what was learnt before counts less now")
            self.drifts += 1
            self.drift = self.drift.reset()
            self.forecasts.renew()
            self.buffer.discount(self.config.kept_at_drift)

    def _foresee(self, x: sparse.csr_matrix) -> None:
        """Note what the published heads say of the decisions that are new, before they are learnt from; nothing of what
        is read again after a restart (`replaying`), since it was decided by other heads."""
        entries = self.buffer.entries
        names = [name for name in self._unforeseen if name in entries]
        self._unforeseen.clear()
        if names and self._outputs["click"].trained and not self.replaying:
            rows = x[[entries[name].row for name in names]]
            weights = _narrowed(self._outputs["click"].weights(), self.config.spread)
            said = expit(rows @ weights + self._offset).mean(axis=1, dtype=np.float64)
            for name, p in zip(names, said.tolist(), strict=True):
                self.forecasts.note(name, p, entries[name])

    def feedback(
        self, decision_ids: list[str], q: NDArray[np.float64], worth: NDArray[np.float64], campaign: Campaign
    ) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
        """(shown int[D], rewards float64[D], selection float64[D]) of a pool's decisions that are held.

        A reward is what has been seen plus what is still expected while a window is open: of a decision without a click
        q (1 - F) / (1 - p F), by the click's arrival distribution; of a click the part of V_clicked still to come.
        `q`, `worth`: float64[n], the pool's values, and what a click of each text counts (`CriticView.worth`)."""
        self._meet()
        entries = [entry for name in decision_ids if (entry := self.buffer.entries.get(name)) is not None]
        shown = np.array([entry.candidate for entry in entries], np.intp)
        selection = np.array([entry.propensity for entry in entries])
        clicks = np.array([entry.click for entry in entries], np.float64)
        rewards = campaign.reward.click * clicks * worth[shown] + np.array([entry.extra for entry in entries])
        window = campaign.attribution.click_window_ms
        ages = np.array([self._now_ms - entry.impression_ts for entry in entries], np.int64)
        waiting = np.array([not entry.click and not entry.closed for entry in entries], bool) & (ages <= window)
        if waiting.any():
            arrived = self._arrivals.share("click", window, np.maximum(ages[waiting], 0), self._now_ms)
            x = self._matrix(np.array([entry.row for entry in entries], np.intp)[waiting])
            p = expit(x @ self._outputs["click"].weights() + self._offset).mean(axis=1, dtype=np.float64)
            rewards[waiting] += q[shown[waiting]] * still_to_come(p, arrived) / np.maximum(p, 1e-12)
        clicked = [at for at, entry in enumerate(entries) if entry.click and entry.pays_later]
        if clicked and self._outputs["clicked"].trained:
            known = [entries[at] for at in clicked]
            x = self._matrix(np.array([entry.row for entry in known], np.intp))
            worth = x @ self._outputs["clicked"].weights() * self._unit + self._value_mean
            done, arrived = self._conversions_arrived(known)
            rewards[clicked] += self._kept(done, arrived) * np.maximum(worth, 0.0).mean(axis=1, dtype=np.float64)
        return shown, rewards, selection

    def _rows_of_pass(self, count: int) -> tuple[NDArray[np.intp], Floats]:
        """(rows int[r], float32[r, 1] how many rows each stands for)."""
        limit = self.config.rows_per_pass
        if count <= limit:
            return np.arange(count), np.ones((count, 1), np.float32)
        # The newest rows are always there; the others take turns, and stand for those that are not there.
        old, drawn = count - limit // 4, limit - limit // 4
        rows = np.concatenate([np.sort(self._rng.choice(old, drawn, replace=False)), np.arange(old, count)])
        return rows, np.where(rows < old, old / drawn, 1.0)[:, None].astype(np.float32)

    def _predict_target(self, name: str, x: sparse.csr_matrix) -> Floats:
        """The target network's predictions, [R, H]; features that it has not met count 0."""
        weights = self._target[name]
        missing = len(self._columns) - len(weights)
        if missing:
            weights = np.concatenate([weights, np.zeros((missing, weights.shape[1]), np.float32)])
        return np.asarray(x @ weights, np.float32)

    def _fit_values(self, x: sparse.csr_matrix, unclicked: Floats, unclicked_extra: Floats) -> None:
        """`unclicked` float32[R, H]: bootstrap weight of what was not clicked, `unclicked_extra` what that earned."""
        entries = self.buffer.entries
        paid = [(name, entry) for name, entry in entries.items() if entry.click and entry.pays_later]
        if paid:
            self._fit_clicked(x, paid)
        if self.config.guard:
            self._fit_converts(x)
        if np.any(unclicked_extra):
            unit = self._unit
            self._outputs["unclicked"].fit(
                x, unclicked, unclicked_extra / np.float32(unit), "identity", self.config.steps, 0.0
            )

    def _fit_clicked(self, x: sparse.csr_matrix, clicked: list[tuple[str, Entry]]) -> None:
        rows = np.array([entry.row for _, entry in clicked], np.intp)
        extra = np.array([entry.extra for _, entry in clicked])
        done, arrived = self._conversions_arrived([entry for _, entry in clicked])
        converted = np.array([entry.converted for _, entry in clicked])
        self._converting = min(0.95, float((converted.sum() + 0.5) / (np.sum(np.where(done, 1.0, arrived)) + 5.0)))
        self._unit = max(1e-6, float(np.sqrt(np.mean(np.square(extra)))) or 1.0)
        expected = self._predict_target("clicked", x)[rows] * self._unit + self._value_mean
        target = extra[:, None] + self._kept(done, arrived)[:, None] * np.maximum(expected, 0.0)
        weight = np.array([self.buffer.weight(name) for name, _ in clicked])
        self._value_mean = float(target.mean())
        those, at = np.unique(rows, return_inverse=True)
        x = x[those]
        mass = np.zeros((len(those), self.config.heads), np.float32)
        total = np.zeros_like(mass)
        np.add.at(mass, at, weight)
        np.add.at(total, at, weight * ((target - self._value_mean) / self._unit).astype(np.float32))
        heads = self._outputs["clicked"]
        heads.fit(x, mass, total, "identity", self.config.steps, 0.0, among=np.unique(x.indices).astype(np.intp))
        heads.learn_scales(x, np.asarray(mass.mean(axis=1), np.float64))

    def _fit_converts(self, x: sparse.csr_matrix) -> None:
        """What clicks convert at that nobody pays for (guard.py)."""
        entries = self.buffer.entries
        clicked = [(name, entry) for name, entry in entries.items() if entry.click and watched(entry)]
        # Without the context: a device on which more is clicked and less is bought makes no text bait.
        by_text = np.where(self._of_context, 0.0, self._outputs["click"].weights().mean(axis=1, dtype=np.float64))
        lures = x @ by_text
        self._guard.fit(
            self._outputs["converts"],
            Clicks(x, self._place_of_row, lures, clicked, self.buffer.weight, entries, self.replaying),
            self._conversions_arrived,
            lambda some: self._predict_target("converts", some),
            self._rows_of_pass,
        )

    def resume(self, evidence: LureText) -> None:
        """Go on from what an earlier process had found about texts and conversions (`CriticView.evidence`)."""
        self._guard.resume(evidence)

    def _conversions_arrived(self, clicked: list[Entry]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        return self._arrivals.conversions(clicked, self._now_ms)

    def _kept(self, done: NDArray[np.bool_], arrived: NDArray[np.float64]) -> NDArray[np.float64]:
        """The part of V_clicked that is still to come: E[value | not yet] / E[value] is the same ratio as for the
        probability of converting at all."""
        share = self._converting
        return np.where(done, 0.0, still_to_come(np.full(len(arrived), share), arrived) / share)

    def _matrix(self, rows: NDArray[np.intp]) -> sparse.csr_matrix:
        """csr[len(rows), F] of 0 and 1: the features of these rows."""
        ends = np.array(self._indptr, np.int64)
        starts, lengths = ends[rows], ends[rows + 1] - ends[rows]
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        # The places of each row's features, one row after the other.
        places = np.arange(indptr[-1]) + np.repeat(starts - indptr[:-1], lengths)
        data = np.ones(len(places), np.float32)
        return sparse.csr_matrix((data, self._indices[places], indptr), shape=(len(rows), len(self._columns)))

    # -- what others see -----------------------------------------------------------------------------------------------

    def view(self) -> CriticView:
        """An immutable snapshot for serving."""
        self._meet()
        ids = np.fromiter(self._columns, np.uint64, len(self._columns))
        order = np.argsort(ids)
        offsets = dict(zip(OUTPUTS, (self._offset, self._value_mean, 0.0, 0.0), strict=True))
        outputs = {}
        for name, heads in self._outputs.items():
            # An output that was never trained would only add its prior's noise.
            if name == "click" or heads.trained:
                unit = np.float32(self._unit if name in ("clicked", "unclicked") else 1.0)
                offset = offsets[name]
                weights = _narrowed(heads.weights()[order], self.config.spread)
                scale = heads.scale * np.float32(self.config.spread)
                outputs[name] = OutputView(weights * unit, scale * unit, heads.salt, offset)
        figures = {"traffic": self._traffic.shares(), **self._guard.figures("converts" in outputs)}
        return CriticView(ids[order], outputs, figures)


def _segment(campaign: Campaign, context: Mapping[str, Scalar]) -> str:
    return str(context.get("segment", campaign.segments[0]))


def _narrowed(weights: Floats, spread: float) -> Floats:
    """float32[F, H]: each feature's weights drawn towards their mean over the heads."""
    if spread == 1.0:
        return weights
    mean = weights.mean(axis=1, keepdims=True)
    return np.asarray(mean + np.float32(spread) * (weights - mean), np.float32)
