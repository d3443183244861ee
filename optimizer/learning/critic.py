"""The critic Q(x, a): what a text will earn when it is shown, by temporal difference over the life of an impression.

    shown --p--> clicked --> converted, rated, ...          Q = p (w_click + V_clicked) + (1 - p) V_unclicked

Three outputs of bootstrapped heads (heads.py): p is logistic, the two values are linear (values.py). A decision whose
window is still open is not a zero: its target bootstraps from the target network, a copy of the heads that follows at
intervals (DQN: Mnih et al. 2015): shown and not clicked at age t counts p (1 - F) / (1 - p F) of a click; what has not
converted yet, clicked or only seen, keeps what is still to come of its value. F, the share that has arrived by age t,
is learnt from what has arrived (maths/delay.py). As windows close, the targets become what happened: late conversions
and refunds revise them. No target takes a maximum over actions, so there is none for a second network to choose
(docs/decisions.md, double Q-learning).

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
from optimizer.learning.features import PRIOR_SCALE, Family, context_features, context_names, encoded
from optimizer.learning.forecasts import Forecasts
from optimizer.learning.guard import Clicks, Guard
from optimizer.learning.heads import Heads
from optimizer.learning.reference import LureText, watched
from optimizer.learning.rows import Rows
from optimizer.learning.traffic import Traffic, place_name
from optimizer.learning.units import signed
from optimizer.learning.values import VALUES, Values
from optimizer.learning.view import OUTPUTS, CriticView, OutputView
from optimizer.maths.delay import still_to_come
from optimizer.maths.drift import DriftWatch
from optimizer.ranges import NOT_NEGATIVE, POSITIVE, SHARE_BETWEEN, SHARE_OVER_0, check_ranges, whole
from optimizer.types import Campaign, Outcome, RewardWeights, Scalar

Floats = NDArray[np.float32]
Floats64 = NDArray[np.float64]
logger = logging.getLogger(__name__)
FORESEEN_AT_ONCE = 100_000  # new decisions of an increment whose predictions are noted
CONVERTS_PASSES = 3  # clicked rows are few, and bait is to be known before it is everywhere
DAY_MS = 86_400_000
STALE_PART = 0.1  # of the rows, that must be stale before they are let go: it moves everything
VALUE = 0.3  # the same of the values: what texts and places do to them is less than what single decisions differ by
BESIDE_TEXT, BESIDE_PLACE = 2.0, 0.3  # the first prior scales of what converts, in units of PRIOR_SCALE


@dataclass(frozen=True)
class CriticConfig:
    """`heads`: bootstrapped heads of each output. `steps`: passes per increment. `learning_rate`: Adam's, in prior
    standard deviations a step. `rows_per_pass`: rows sampled for a pass where there are more. `target_every`:
    increments between copies of the heads into the target network. `first_rate`: click rate expected before any data.
    `prior`: width of the text features' first prior scales, in units of PRIOR_SCALE. `spread`: by how much serving's
    heads differ from their mean, as a share of what they were trained to; below 1 it explores less than Thompson
    sampling would (posterior reshaping: Chapelle, Li 2011, section 2). `kept_at_drift`: what evidence from before an
    abrupt change weighs beside what comes after it. `shared_evidence`: the prior scales are learnt with features that
    always come together sharing what a text says (heads.py:learn_scales). `guard`: conversions that are not paid for
    are learnt all the same, and clicks without them count less. `staleness_days`: what was last shown so long ago, in
    the log's time, is forgotten, and so is the oldest where there are more than `most_rows` rows. `age_classes`:
    classes of age in which it is learnt how late clicks and conversions come, from the `delays_kept` newest of each
    kind and window. `seed`: of bootstrap weights and priors. Raises ConfigError for what is out of its range."""

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
    staleness_days: float = 90.0
    most_rows: int = 200_000
    age_classes: int = 12
    delays_kept: int = 4_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(
            self,
            heads=whole(1),
            steps=whole(1),
            learning_rate=POSITIVE,
            rows_per_pass=whole(1),
            target_every=whole(1),
            first_rate=SHARE_BETWEEN,
            prior=POSITIVE,
            spread=NOT_NEGATIVE,
            kept_at_drift=SHARE_OVER_0,
            staleness_days=POSITIVE,
            most_rows=whole(1),
            age_classes=whole(2),
            delays_kept=whole(1),
            seed=whole(0),
        )


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
        scales = {"click": scale, "clicked": VALUE * PRIOR_SCALE, "unclicked": VALUE * PRIOR_SCALE, "converts": beside}
        self._outputs = {
            name: Heads(
                config.heads,
                scales[name],
                learnt,
                salt=config.seed * 8 + at,
                learning_rate=config.learning_rate,
            )
            for at, name in enumerate(OUTPUTS)
        }
        self._rows = Rows()
        self._target: dict[str, Floats] = {}
        self._increments = 0
        self._now_ms = 0
        self._arrivals = Arrivals(config.age_classes, config.delays_kept)
        self._values = Values(self._outputs, self._rows, self.buffer, self._arrivals, config.steps)
        self._guard = Guard(CONVERTS_PASSES * config.steps)
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
        if not self.buffer.news(outcome):
            return False
        decision = outcome.decision
        row = self._row(campaign, decision.context, decision.variant_id, slots)
        before = self.buffer.entries.get(outcome.decision_id)
        self.buffer.put(row, outcome)
        self._now_ms = max(self._now_ms, outcome.as_of)
        after = self.buffer.entries.get(outcome.decision_id)
        if after is not None:
            place = self._rows.places[row]
            self._rows.pays_later[row] = after.pays_later
            self._values.units.note(campaign, before, after)
            if before is None:
                self._unforeseen.append(outcome.decision_id)
                self._traffic.note(place)
            self.forecasts.revise(outcome.decision_id, after)
            self._arrivals.note(before, after, outcome)
            self._guard.note(place, outcome.decision_id, before, after)
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
        row = self._row(campaign, context, variant_id, slots)
        self.buffer.add_counts(row, shown, clicked, self._rng, self._now_ms)

    def _row(self, campaign: Campaign, context: Mapping[str, Scalar], variant_id: str, slots: Mapping[str, str]) -> int:
        """The buffer's row of this text in this place, made where it is new."""
        segment = _segment(campaign, context)
        names = context_names(context)
        key = (campaign.tenant, campaign.campaign_id, segment, variant_id, names)
        row = self.buffer.row_of(key)
        if row is None:
            row = self.buffer.new_row(key)
            parts, features = encoded(campaign, segment, variant_id, slots)
            self._rows.append(place_name(campaign, segment), features, context_features(names, parts))
        return row

    def _meet(self) -> None:
        """Let the heads meet the features that have come since: together, since every time all of them are copied."""
        ids, families = self._rows.met()
        if len(ids):
            for heads in self._outputs.values():
                heads.grow(ids, families)

    def _forget(self) -> None:
        """Let go what nobody has been shown for so long, and the features that nothing else has."""
        before = self._now_ms - round(self.config.staleness_days * DAY_MS)
        stale = self.buffer.stale(before, self.config.most_rows)
        if not len(stale) or stale.mean() < STALE_PART:
            return
        columns = self._rows.keep(~stale)
        self._guard.keep(self.buffer.keep(~stale))
        self._values.units.keep(set(self._rows.owners()))
        for heads in self._outputs.values():
            heads.keep(columns)
        self._target = {name: weights[columns[columns < len(weights)]] for name, weights in self._target.items()}

    # -- learning ------------------------------------------------------------------------------------------------------

    def fit(self) -> float:
        """One increment: `steps` passes over the replay buffer. Returns the click heads' last gradient norm."""
        if self.buffer.rows == 0:
            return 0.0
        self._meet()
        self._forget()
        count = self.buffer.rows
        if self._increments % self.config.target_every == 0:
            self._target = {name: heads.weights() for name, heads in self._outputs.items()}
            self._values.frozen()
        self._increments += 1
        x = self._rows.matrix(np.arange(count))
        open_ = self.buffer.settle(self._now_ms)
        self._watch_drift()
        self._foresee(x)
        totals = self.buffer.totals()
        mass, total = totals.clicked + totals.settled, totals.clicked.copy()
        later = np.zeros((0, self.config.heads), np.float32)
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
        self._values.fit(x, totals, open_, later, self._now_ms, self._predict_target)
        if self.config.guard:
            self._fit_converts(x)
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
        the click's part (1 - F) / (1 - p F), by its arrival distribution, and where more than clicks is paid for the
        parts of V_clicked and V_unclicked still to come (values.py). `q`, `worth`: float64[n], the pool's values, and
        what a click of each text counts (`CriticView.worth`)."""
        self._meet()
        entries = [entry for name in decision_ids if (entry := self.buffer.entries.get(name)) is not None]
        shown = np.array([entry.candidate for entry in entries], np.intp)
        selection = np.array([entry.propensity for entry in entries])
        clicks = np.array([entry.click for entry in entries], np.float64)
        rewards = campaign.reward.click * clicks * worth[shown] + np.array([entry.extra for entry in entries])
        window = campaign.attribution.click_window_ms
        ages = np.array([self._now_ms - entry.impression_ts for entry in entries], np.int64)
        waiting = np.array([not entry.click and not entry.closed for entry in entries], bool) & (ages <= window)
        missing = np.zeros(len(entries))  # the probability that the click has yet to come
        if waiting.any():
            arrived = self._arrivals.share("click", window, np.maximum(ages[waiting], 0), self._now_ms)
            x = self._rows.matrix(np.array([entry.row for entry in entries], np.intp)[waiting])
            p = expit(x @ self._outputs["click"].weights() + self._offset).mean(axis=1, dtype=np.float64)
            missing[waiting] = still_to_come(p, arrived)
            alone = waiting & np.array([not entry.pays_later for entry in entries], bool)
            rewards[alone] += (q[shown[waiting]] * missing[waiting] / np.maximum(p, 1e-12))[alone[waiting]]
        self._add_expected(rewards, entries, missing, campaign.reward.click * worth[shown], campaign.reward)
        return shown, rewards, selection

    def _add_expected(
        self,
        rewards: Floats64,
        entries: list[Entry],
        missing: Floats64,
        click: Floats64,
        weights: RewardWeights,
    ) -> None:
        """Add what decisions that may earn more than the click are expected to bring yet; `click`: what one counts."""
        later = [at for at, entry in enumerate(entries) if entry.pays_later]
        clicked = [at for at in later if entries[at].click]
        plain = [at for at in later if not entries[at].click]
        if clicked:
            rewards[clicked] += signed(self._values.after_click([entries[at] for at in clicked], self._now_ms), weights)
        if plain:
            some, coming = [entries[at] for at in plain], missing[plain]
            # Where one conversion is all that counts, a view that has converted leaves the click nothing but itself.
            open_ = [entry.pays_conversions and not (entry.converted and entry.counts_once) for entry in some]
            after = np.where(np.array(open_, bool), signed(self._values.said("clicked", some), weights), 0.0)
            rewards[plain] += coming * (click[plain] + after)
            rewards[plain] += (1.0 - coming) * signed(self._values.without_click(some, self._now_ms), weights)

    def price(self, campaign: Campaign) -> float:
        """A reward of this campaign that is not nothing, about (units.py)."""
        return self._values.units.price(campaign)

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
        missing = len(self._rows.columns) - len(weights)
        if missing:
            weights = np.concatenate([weights, np.zeros((missing, weights.shape[1]), np.float32)])
        return np.asarray(x @ weights, np.float32)

    def _fit_converts(self, x: sparse.csr_matrix) -> None:
        """What clicks convert at that nobody pays for (guard.py)."""
        entries = self.buffer.entries
        clicked = [(name, entry) for name, entry in entries.items() if entry.click and watched(entry)]
        # Without the context: a device on which more is clicked and less is bought makes no text bait.
        by_text = np.where(
            self._rows.of_context(), 0.0, self._outputs["click"].weights().mean(axis=1, dtype=np.float64)
        )
        lures = x @ by_text
        self._guard.fit(
            self._outputs["converts"],
            Clicks(x, self._rows.places, lures, clicked, self.buffer.weight, entries, self.replaying),
            self._conversions_arrived,
            lambda some: self._predict_target("converts", some),
            self._rows_of_pass,
        )

    def resume(self, evidence: LureText) -> None:
        """Go on from what an earlier process had found about texts and conversions (`CriticView.evidence`)."""
        self._guard.resume(evidence)

    def _conversions_arrived(self, clicked: list[Entry]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        return self._arrivals.conversions(clicked, self._now_ms)

    # -- what others see -----------------------------------------------------------------------------------------------

    def view(self) -> CriticView:
        """An immutable snapshot for serving."""
        self._meet()
        columns = self._rows.columns
        ids = np.fromiter(columns, np.uint64, len(columns))
        order = np.argsort(ids)
        offsets = {"click": self._offset, "converts": 0.0, **self._values.means}
        outputs = {}
        for name, heads in self._outputs.items():
            # An output that was never trained would only add its prior's noise.
            if name == "click" or heads.trained:
                weights = _narrowed(heads.weights()[order], self.config.spread)
                scale = heads.scale * np.float32(self.config.spread)
                outputs[name] = OutputView(weights, scale, heads.salt, offsets[name])
        figures = {"traffic": self._traffic.shares(), **self._guard.figures("converts" in outputs)}
        figures |= {f"unit_{name}": self._values.table(name) for name in VALUES}
        return CriticView(ids[order], outputs, figures)


def _segment(campaign: Campaign, context: Mapping[str, Scalar]) -> str:
    return str(context.get("segment", campaign.segments[0]))


def _narrowed(weights: Floats, spread: float) -> Floats:
    """float32[F, H]: each feature's weights drawn towards their mean over the heads."""
    if spread == 1.0:
        return weights
    mean = weights.mean(axis=1, keepdims=True)
    return np.asarray(mean + np.float32(spread) * (weights - mean), np.float32)
