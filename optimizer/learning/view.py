"""The critic as serving sees it: an immutable snapshot in numpy, fast enough for every request."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import sparse
from scipy.special import expit

from optimizer.errors import StoreError
from optimizer.learning.features import (
    Family,
    FeatureSet,
    TextParts,
    campaign_name,
    context_features,
    context_names,
    encoded,
)
from optimizer.learning.heads import prior_draws
from optimizer.learning.reference import LureText
from optimizer.learning.traffic import campaign_of, place_name
from optimizer.learning.units import signed, unit_of
from optimizer.maths.guard import click_worth, trust_in_texts
from optimizer.types import Campaign, Candidate, RewardWeights, Scalar

Floats = NDArray[np.float32]
CONTEXTS_KEPT = 256
# Figures by name, and what they are called.
FIGURES = {
    "guard": "rates",
    "traffic": "shares",
    "lure_evidence": "nats",
    "text_evidence": "nats",
    "yardstick": "beside",
    "lure": "rates",
    "slope": "steepness",
    "unit_clicked": "units",
    "unit_unclicked": "units",
}
OUTPUTS = ("click", "clicked", "unclicked", "converts")


class OutputView(NamedTuple):
    """One output: `weights` float32[F, H] and the prior `scale` float32[families], both in the output's own units, the
    prior's `salt`, and the `offset` that is added to every prediction."""

    weights: Floats
    scale: Floats
    salt: int
    offset: float


class PoolFeatures:
    """A pool's texts, ready to be scored. `base` holds each output's predictions float32[n, H] without the context,
    `worth` float64[n] what a click counts; None: in full. `units`: of the value outputs, in reward (units.py); 1 where
    they are not named."""

    def __init__(
        self,
        reward: RewardWeights,
        parts: Sequence[TextParts],
        base: dict[str, Floats],
        worth: NDArray[np.float64] | None = None,
        units: Mapping[str, float] | None = None,
    ) -> None:
        self.reward = reward
        self.units = units or {}
        self.worth = worth
        self.parts = parts
        self.base = base
        self.by_context: OrderedDict[tuple[str, ...], NDArray[np.float64]] = OrderedDict()
        self.by_name: OrderedDict[str, dict[str, Floats]] = OrderedDict()


class CriticView:
    """Scores texts; two views with the same content have the same `version`."""

    def __init__(
        self,
        ids: NDArray[np.uint64],
        outputs: dict[str, OutputView],
        figures: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """`ids` uint64[F], ascending. `figures`, of FIGURES, each by name: `guard`, of the guarded places what one of
        their newest clicks converts at, in log-odds (reference.py), of a campaign what holds for its places without
        clicks; `traffic`, each place's share of the newest decisions (traffic.py); `lure_evidence` and `text_evidence`,
        of each campaign, nats that how likely a text is clicked matters for conversions, and besides what it says
        (maths/guard.py); `yardstick`, the middle of what a place's or campaign's clicked texts convert at, in log-odds
        beside its newest clicks; `lure`, the mean log-odds of a click on the texts of those, and `slope`, by
        campaign, by how much they move a click's log-odds to convert; `unit_clicked` and `unit_unclicked`, what the
        value outputs are measured in (units.py)."""
        told = figures or {}
        self._ids = ids
        self._outputs = outputs
        self._references, self._yardsticks = dict(told.get("guard", {})), dict(told.get("yardstick", {}))
        self._lures, self._slopes = dict(told.get("lure", {})), dict(told.get("slope", {}))
        self.traffic = dict(told.get("traffic", {}))
        self._units = {name: dict(told.get(f"unit_{name}", {})) for name in ("clicked", "unclicked")}
        self.evidence = LureText(dict(told.get("lure_evidence", {})), dict(told.get("text_evidence", {})))
        self.trust = LureText(*(trusts(nats, self._references) for nats in self.evidence))
        self.heads = outputs["click"].weights.shape[1]
        self._bytes = save(self._tensors())
        self.version = "c-" + hashlib.sha256(self._bytes).hexdigest()[:16]

    def _tensors(self) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {"ids": self._ids.view(np.int64)}
        for name, output in self._outputs.items():
            # Under a name that a reader who knows no units does not know either.
            kept = f"{name}_in_units" if self._units.get(name) else name
            tensors[f"{kept}.weights"] = np.ascontiguousarray(output.weights)
            tensors[f"{kept}.scale"] = np.ascontiguousarray(output.scale)
            tensors[f"{kept}.prior"] = np.array([output.salt, output.offset], np.float64)
        told = (self._references, self.traffic, *self.evidence, self._yardsticks, self._lures, self._slopes)
        for name, figures in zip(FIGURES, (*told, *self._units.values()), strict=True):
            if figures:
                names = b"\0".join(key.encode() for key in figures)
                tensors[f"{name}.names"] = np.frombuffer(names, np.uint8)
                tensors[f"{name}.{FIGURES[name]}"] = np.array(list(figures.values()), np.float64)
        return tensors

    def to_bytes(self) -> bytes:
        """safetensors."""
        return self._bytes

    @classmethod
    def from_bytes(cls, content: bytes, source: str | Path) -> CriticView:
        """Raises StoreError naming `source` for bytes that are no critic."""
        try:
            tensors = load(content)
        except SafetensorError as error:
            raise StoreError(f"{source}: not a safetensors file ({error}); publish the version again") from error
        try:
            return cls._checked(tensors, source)
        except KeyError as error:
            raise StoreError(f"{source}: no critic, tensor {error} is missing; publish the version again") from error

    @classmethod
    def _checked(cls, tensors: Mapping[str, np.ndarray], source: str | Path) -> CriticView:
        """A view from tensors whose shapes, dtypes and values are first checked. Raises KeyError, StoreError."""
        count = len(tensors["ids"])
        heads = tensors["click.weights"].shape[-1]
        outputs = {}
        held = {name: f"{name}_in_units" if f"{name}_in_units.weights" in tensors else name for name in OUTPUTS}
        names = [name for name in OUTPUTS if name == "click" or f"{held[name]}.weights" in tensors]
        wanted: dict[str, tuple[object, tuple[int, ...]]] = {"ids": (np.dtype(np.int64), (count,))}
        for name in (held[name] for name in names):
            wanted[f"{name}.weights"] = (np.dtype(np.float32), (count, heads))
            wanted[f"{name}.scale"] = (np.dtype(np.float32), (len(Family),))
            wanted[f"{name}.prior"] = (np.dtype(np.float64), (2,))
        for name, (dtype, shape) in wanted.items():
            tensor = tensors[name]
            if tensor.dtype != dtype or tensor.shape != shape:
                got = f"dtype {tensor.dtype} and shape {list(tensor.shape)}"
                raise StoreError(f"{source}: {name} has {got}, expected {dtype} {list(shape)}; the version is refused")
            if not np.isfinite(tensor).all():
                raise StoreError(f"{source}: {name} holds NaN or infinite values; the version is refused")
        ids = tensors["ids"].view(np.uint64)
        if not (ids[1:] > ids[:-1]).all():
            raise StoreError(f"{source}: ids are not ascending; the version is refused")
        for name in names:
            salt, offset = tensors[f"{held[name]}.prior"].tolist()
            weights, scale = (tensors[f"{held[name]}.{part}"] for part in ("weights", "scale"))
            outputs[name] = OutputView(weights, scale, int(salt), offset)
        return cls(ids, outputs, {name: _figures(tensors, name, source) for name in FIGURES})

    def encode(self, campaign: Campaign, segment: str, texts: Sequence[Candidate]) -> PoolFeatures:
        """Take a pool's texts apart and score them without a context; once a pool and critic."""
        taken = [encoded(campaign, segment, text.variant_id, text.slots) for text in texts]
        sets = [features for _, features in taken]
        base = {name: self._predict(name, sets) for name in self._asked(campaign.reward)}
        units = {name: unit_of(table, campaign) for name, table in self._units.items()}
        worth = self._worth(campaign, segment, base)
        return PoolFeatures(campaign.reward, [parts for parts, _ in taken], base, worth, units)

    def _asked(self, reward: RewardWeights) -> list[str]:
        """The outputs that count under this reward: what follows a click where that is paid for, else how often a click
        converts."""
        later = bool(reward.conversion or reward.value or reward.rating)
        wanted = {"click": True, "clicked": later, "unclicked": later, "converts": not later}
        return [name for name in self._outputs if wanted[name]]

    def _worth(self, campaign: Campaign, segment: str, base: Mapping[str, Floats]) -> NDArray[np.float64] | None:
        """What a click on each text counts beside the others, float64[n]; None where more than clicks is paid for, or
        no conversion has come back. In the middle of the heads' log-odds: that a text may convert better than it has is
        not tried out, and what little is known of a text does not raise it, as the mean of probabilities would."""
        place, name = place_name(campaign, segment), campaign_name(campaign)
        reference = self._references.get(place, self._references.get(name))
        if reference is None or "converts" not in base:
            return None
        lure = np.asarray(base["click"], np.float64).mean(axis=1) - self._lures.get(place, self._lures.get(name, 0.0))
        drawn = self._slopes.get(name, 0.0) * lure
        said = np.asarray(base["converts"], np.float64).mean(axis=1)
        converts = expit(reference + self.trust.lure[name] * drawn + self.trust.text[name] * said)
        beside = self._yardsticks.get(place, self._yardsticks.get(name, -math.inf))
        return click_worth(converts, float(expit(reference + beside)))

    def _probability(self, name: str, predicted: Floats) -> NDArray[np.float64]:
        return np.asarray(expit(np.asarray(predicted, np.float64) + self._outputs[name].offset), np.float64)

    def worth(self, features: PoolFeatures) -> NDArray[np.float64]:
        """What a click on each text counts, float64[n], 0 to 1."""
        return np.ones(len(features.parts)) if features.worth is None else features.worth

    def score(self, features: PoolFeatures, context: Mapping[str, Scalar]) -> NDArray[np.float64]:
        """Q of each text by each head in this context: float64[H, n], in units of reward."""
        names = context_names(context)
        known = features.by_context.get(names)
        if known is not None:
            return known
        outputs = features.base
        if names:
            effects = [self._effect(features, name) for name in names]
            outputs = {name: outputs[name] + sum(effect[name] for effect in effects) for name in effects[0]}
        q = self._q(outputs, features)
        # Concurrent requests may both compute it; either answer is the same.
        features.by_context[names] = q
        if len(features.by_context) > CONTEXTS_KEPT:
            features.by_context.popitem(last=False)
        return q

    def _effect(self, features: PoolFeatures, name: str) -> dict[str, Floats]:
        """What one fact of the context adds to each output's predictions, float32[n, H]: contexts share their facts."""
        known = features.by_name.get(name)
        if known is None:
            sets = [context_features((name,), part) for part in features.parts]
            some = [output for output in features.base if output != "converts"]
            known = features.by_name[name] = {output: self._predict(output, sets) for output in some}
            if len(features.by_name) > CONTEXTS_KEPT:
                features.by_name.popitem(last=False)
        return known

    def _q(self, outputs: Mapping[str, Floats], features: PoolFeatures) -> NDArray[np.float64]:
        def value(name: str) -> NDArray[np.float64] | float:
            if name not in outputs:
                return 0.0
            said = np.asarray(outputs[name], np.float64) + self._outputs[name].offset
            return signed(said * features.units.get(name, 1.0), features.reward)

        reward, worth = features.reward, features.worth
        p = self._probability("click", outputs["click"])
        click = reward.click if worth is None else reward.click * worth[:, None]
        q = p * (click + value("clicked")) + (1.0 - p) * value("unclicked")
        return np.ascontiguousarray(q.T)

    def _predict(self, name: str, sets: Sequence[FeatureSet]) -> Floats:
        """float32[n, H]: sums of the weights of each set's features; a feature nobody has met has its prior draw."""
        output = self._outputs[name]
        ids = np.concatenate([features.ids for features in sets])
        families = np.concatenate([features.families for features in sets])
        lengths = np.array([len(features.ids) for features in sets])
        if len(ids) == 0:
            return np.zeros((len(sets), self.heads), np.float32)
        at = np.searchsorted(self._ids, ids)
        at[at == len(self._ids)] = 0
        met = self._ids[at] == ids if len(self._ids) else np.zeros(len(ids), bool)
        sums = _summed(at[met], met, lengths, output.weights)
        if not met.all():
            unmet = ids[~met]
            # Each once: the texts of a pool share most of what nobody has met.
            names, first, which = np.unique(unmet, return_index=True, return_inverse=True)
            draws = prior_draws(names, self.heads, output.salt) * output.scale[families[~met][first]][:, None]
            sums += _summed(which, ~met, lengths, draws)
        return sums


def trusts(evidence: Mapping[str, float], references: Mapping[str, float]) -> dict[str, float]:
    """The trust (maths/guard.py) of each guarded campaign, by its own evidence in nats and its tenant's; `references`
    by place."""
    names = sorted({*evidence, *map(campaign_of, references)})
    if not names:
        return {}
    tenants = np.unique([name.split("/", 1)[0] for name in names], return_inverse=True)[1]
    own = np.array([evidence.get(name, 0.0) for name in names])
    return dict(zip(names, trust_in_texts(own, tenants).tolist(), strict=True))


def _summed(at: NDArray[np.intp], chosen: NDArray[np.bool_], lengths: NDArray[np.intp], weights: Floats) -> Floats:
    """float32[n, H]: of n sets, `lengths` of them in a row, the sum of the weights of each one's `chosen` features,
    which are the rows `at` of `weights`."""
    ends = np.concatenate([[0], np.cumsum(chosen)])[np.concatenate([[0], np.cumsum(lengths)])]
    ones = np.ones(len(at), np.float32)
    return np.asarray(sparse.csr_matrix((ones, at, ends), shape=(len(lengths), len(weights))) @ weights, np.float32)


def _figures(tensors: Mapping[str, np.ndarray], name: str, source: str | Path) -> dict[str, float]:
    """Figures by name; none in a critic from before there were any. Raises StoreError."""
    if f"{name}.names" not in tensors:
        return {}
    names = tensors[f"{name}.names"].astype(np.uint8).tobytes().decode("utf-8", "replace").split("\0")
    told = f"{name}.{FIGURES[name]}"
    figures = tensors[told]
    if figures.dtype != np.float64 or figures.shape != (len(names),) or not np.isfinite(figures).all():
        got = f"dtype {figures.dtype} and shape {list(figures.shape)}"
        raise StoreError(f"{source}: {told} has {got}, expected finite float64 {[len(names)]}; it is refused")
    return dict(zip(names, figures.tolist(), strict=True))
