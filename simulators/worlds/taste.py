"""What the market's people see in a text: a vector of features, by the world's own lexicon (`market_data/lexicon.txt`).

Topics say what it is about and saturate: one word of a topic gives 0.6, a second 0.84; naming the same thing ever more
often gains nothing. Tones and forms are there or not. Texts are read with the campaign's own words masked as
`[product]` and the like, so that a name pleases nobody by its letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "market_data"
Vector = NDArray[np.float64]

_FIRST_HIT = 0.6
_MANY_TOPICS = 3
"""From the fourth topic on a text has no point: each topic then counts for less."""


class Lexicon(NamedTuple):
    """Name -> pattern, of the lexicon's four kinds."""

    topics: dict[str, re.Pattern[str]]
    tones: dict[str, re.Pattern[str]]
    imperative: re.Pattern[str]
    goods: dict[str, re.Pattern[str]]


def _pattern(words: str) -> str:
    choices = [re.escape(word.strip().lower()).replace(r"\*", r"\w*") for word in words.split("|")]
    return "(?:" + "|".join(sorted(choices, key=len, reverse=True)) + ")"


@cache
def lexicon() -> Lexicon:
    """The shipped lexicon."""
    found: dict[str, dict[str, re.Pattern[str]]] = {"topic": {}, "tone": {}, "form": {}, "goods": {}}
    for line in (DATA / "lexicon.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        head, _, words = line.partition(":")
        kind, _, name = head.partition(" ")
        before, after = (r"(?:^|[.!?:] )", r"(?!\w)") if kind == "form" else (r"(?<![\w-])", r"(?!\w)")
        found[kind][name] = re.compile(before + _pattern(words) + after)
    return Lexicon(found["topic"], found["tone"], found["form"]["imperative"], found["goods"])


def _first_person(text: str) -> bool:
    return re.search(r"\b(?:i|my|we|our|us|me|i'm|we're|let's)\b", text) is not None


def _contrast(text: str) -> bool:
    return re.search(r"\b(?:not|instead of|goodbye|so long|without|we prefer|no to|over|forget)\b", text) is not None


FORMS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("question", lambda text: "?" in text),
    ("exclamation", lambda text: "!" in text),
    ("imperative", lambda text: lexicon().imperative.search(text) is not None),
    ("second person", lambda text: re.search(r"\byou(?:r|rs|rself|'\w+)?\b", text) is not None),
    ("first person", _first_person),
    ("short", lambda text: len(text) <= 30),
    ("long", lambda text: len(text) > 52),
    ("list of three", lambda text: re.search(r"\w, [\w' ]+(?:, | and )\w", text) is not None),
    ("contrast", _contrast),
    ("two sentences", lambda text: re.search(r"[.!?] \S", text) is not None),
    ("colon", lambda text: ": " in text),
    ("names product", lambda text: "[product]" in text),
    ("names brand", lambda text: "[brand]" in text),
    ("tells price", lambda text: "[price]" in text),
)


@cache
def names() -> tuple[str, ...]:
    """The features' names, in the order of `features`."""
    kinds = lexicon()
    return (
        *(f"topic {name}" for name in kinds.topics),
        *(f"tone {name}" for name in kinds.tones),
        *(f"form {name}" for name, _ in FORMS),
    )


def features(masked: str) -> Vector:
    """float64[K] in [0, 1]: what the text says and how, in the order of `names`."""
    text = masked.lower().replace("\u2019", "'")
    kinds = lexicon()
    hits = np.array([len(set(pattern.findall(text))) for pattern in kinds.topics.values()], dtype=np.float64)
    topics = 1.0 - (1.0 - _FIRST_HIT) ** hits
    topics *= min(1.0, _MANY_TOPICS / max(1.0, float((hits > 0).sum())))
    tones = [float(pattern.search(text) is not None) for pattern in kinds.tones.values()]
    forms = [float(holds(text)) for _, holds in FORMS]
    return np.concatenate([topics, np.array(tones), np.array(forms)])


@cache
def _goods(name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(words of these goods, words of all others)."""
    patterns = dict(lexicon().goods)
    own = patterns.pop(name)
    return own, re.compile("|".join(pattern.pattern for pattern in patterns.values()))


def about(masked: str, goods: str) -> tuple[float, float]:
    """(how much it speaks of these goods, saturating; 1 where it speaks of others alone), both in [0, 1]."""
    text = masked.lower().replace("\u2019", "'")
    own, others = _goods(goods)
    hits = len(set(own.findall(text)))
    return 1.0 - (1.0 - _FIRST_HIT) ** hits, float(hits == 0 and others.search(text) is not None)


class Taste(NamedTuple):
    """What one kind of person likes, in logits: float64[K], a weight for each feature, and float64[K, K], one for two
    features together."""

    weights: Vector
    pairs: Vector

    def utility(self, matrix: Vector) -> Vector:
        """float64[N] for features float64[N, K]."""
        together: Vector = np.einsum("nk,nk->n", matrix @ self.pairs, matrix)
        return matrix @ self.weights + together


def mixed(tastes: Sequence[tuple[float, Taste]]) -> Taste:
    """The weighted sum of tastes."""
    size = len(names())
    weights = sum((share * taste.weights for share, taste in tastes), np.zeros(size))
    return Taste(weights, sum((share * taste.pairs for share, taste in tastes), np.zeros((size, size))))


def drawn(rng: np.random.Generator, couples: int) -> Taste:
    """A taste: Laplace weights (a few strong likes and dislikes), weaker ones for forms, and `couples` draws of a topic
    with a tone or form that go well together or badly."""
    kinds = lexicon()
    topics, tones = len(kinds.topics), len(kinds.tones)
    scale = np.concatenate([np.full(topics, 1.0), np.full(tones, 0.8), np.full(len(FORMS), 0.45)])
    weights = rng.laplace(0.0, 1.0, scale.size) * scale
    pairs = np.zeros((scale.size, scale.size))
    for _ in range(couples):
        left, right = int(rng.integers(topics)), int(rng.integers(topics, scale.size))
        pairs[left, right] += float(rng.normal(0.0, 1.2))
    return Taste(weights, pairs)
