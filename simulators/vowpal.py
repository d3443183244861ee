"""Vowpal Wabbit over fixed pools of texts: contextual bandits with features of context and text (`--cb_explore_adf`).

Bietti, Agarwal, Langford 2021, "A Contextual Bandit Bake-off" (epsilon, bag, softmax); Foster, Rakhlin 2020, arXiv
2002.04926 (squarecb). One learner for all campaigns and segments, so that it may carry over what it learns from one
text and place to another. The settings are in settings.py; what was tried, in docs/decisions.md.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from optimizer.types import Scalar
from simulators.loop import Reaction
from simulators.payout import Payout
from simulators.places import Places, Slots, Texts
from simulators.settings import VowpalConfig
from simulators.streams import VOWPAL_STREAM

_TOKEN = re.compile(r"[^\W_]+", re.UNICODE)
_RESERVED = str.maketrans({" ": "_", ":": "_", "|": "_", "\n": "_", "\t": "_", "\r": "_"})


class VowpalContender:
    """Vowpal Wabbit as a contender (simulators/contenders.py). Needs the `peers` extra."""

    halted = ""

    def __init__(self, config: VowpalConfig, places: Places, texts: Texts, payout: Payout, seed: int) -> None:
        # Imported here: an extra, which need not be installed.
        from vowpalwabbit import Workspace

        self._vw: Any = Workspace(config.arguments(seed))
        self._places, self._payout, self._described_by = places, payout, config.texts
        self.offer(texts)
        self._rng = np.random.default_rng([VOWPAL_STREAM, seed])
        self._campaign_id, self._chosen, self._probability = "", 0, 1.0
        self._examples: list[Any] = []

    def offer(self, texts: Texts) -> None:
        """Take these pools from now on."""
        self._texts = texts
        self._lines = {
            place: [action_line(slots, self._described_by) for slots in some] for place, some in texts.items()
        }

    def serve(self, campaign_id: str, context: Mapping[str, Scalar]) -> Slots:
        place = self._places.of(campaign_id, context)
        self._examples = self._vw.parse([shared_line(place, context), *self._lines[place]])
        probabilities = np.asarray(self._vw.predict(self._examples))
        # They are float32, and need not add up to 1 by more than their rounding.
        ends = probabilities.cumsum()
        self._chosen = min(int(np.searchsorted(ends, self._rng.random() * ends[-1], side="right")), len(ends) - 1)
        self._campaign_id, self._probability = campaign_id, float(probabilities[self._chosen])
        return self._texts[place][self._chosen]

    def feed(self, reactions: Sequence[Reaction]) -> None:
        cost = -self._payout.scaled(self._campaign_id, reactions)
        self._examples[self._chosen + 1].set_label_string(f"0:{cost!r}:{self._probability!r}")
        self._vw.learn(self._examples)
        self._vw.finish_example(self._examples)

    def advance(self, elapsed_ms: int) -> None:
        """Time means nothing to it."""

    def increment(self) -> None:
        """It learns from every impression already."""

    def kl(self) -> float:
        return 0.0

    def close(self) -> None:
        self._vw.finish()


def shared_line(place: tuple[str, str], context: Mapping[str, Scalar]) -> str:
    """The request: its place (S) and whatever else its context holds (C)."""
    campaign, segment = (name.translate(_RESERVED) for name in place)
    others = " ".join(_feature(key, value) for key, value in sorted(context.items()) if key != "segment")
    return f"shared |S c={campaign} s={segment} c={campaign}_s={segment} |C any {others}"


def _feature(key: str, value: Scalar) -> str:
    name = key.translate(_RESERVED)
    if isinstance(value, float) and not value.is_integer():
        return f"{name}:{value:.6g}"
    return f"{name}={str(value).translate(_RESERVED)}"


def action_line(slots: Slots, kinds: str) -> str:
    """A text as a line of features: itself, its words, its pairs of neighbouring words."""
    words: dict[str, None] = {}
    pairs: dict[str, None] = {}
    for name, text in slots.items():
        tokens = [token.lower() for token in _TOKEN.findall(text)]
        prefix = "" if len(slots) == 1 else f"{name.translate(_RESERVED)}."
        words.update(dict.fromkeys(prefix + token for token in tokens))
        pairs.update(dict.fromkeys(f"{prefix}{one}_{two}" for one, two in pairwise(["<", *tokens, ">"])))
    itself = hashlib.sha256("\n".join(slots.values()).encode()).hexdigest()[:12]
    described = {"I": f"|I {itself}", "W": f"|W {' '.join(words)}", "N": f"|N {' '.join(pairs)}"}
    return " ".join(described[kind] for kind in kinds)
