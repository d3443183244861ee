"""What the critic sees: a text, its campaign, its segment and the request's context as a set of named binary features.

Features are hashed to 64 bits (Weinberger et al. 2009, arXiv 0902.2206, without the folding: the critic keeps a table
of those it has met). Each belongs to a family, and each family has its own prior scale, which the critic learns.
Product and brand names become placeholders again, so that what one campaign teaches about a phrase holds for the next
campaign."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.types import Campaign, Scalar

Ids = NDArray[np.uint64]
WORD = re.compile(r"\[[a-z]+\]|[^\W_]+(?:['\u2019-][^\W_]+)*|[^\w\s]", re.UNICODE)


class Family(IntEnum):
    """Groups of features that share a prior scale."""

    INTERCEPT = 0
    VARIANT = 1
    VARIANT_SEGMENT = 2
    WORD = 3
    PAIR = 4
    WORD_SEGMENT = 5
    WORD_CAMPAIGN = 6
    FORM = 7
    FORM_SEGMENT = 8
    WORD_CONTEXT = 9


# Standard deviations in log-odds before any data. INTERCEPT stays; the others are learnt (see critic.py).
PRIOR_SCALE = np.array([1.0, 0.2, 0.2, 0.3, 0.2, 0.3, 0.15, 0.2, 0.2, 0.1])


class TextParts(NamedTuple):
    """A text taken apart once: `words` and `forms` are the names that crosses are built from."""

    variant_id: str
    words: tuple[str, ...]
    pairs: tuple[str, ...]
    forms: tuple[str, ...]


class FeatureSet(NamedTuple):
    """Parallel arrays: `ids` uint64[f], `families` uint8[f]."""

    ids: Ids
    families: NDArray[np.uint8]


@lru_cache(maxsize=1 << 18)
def feature_id(family: Family, name: str) -> int:
    """The 64-bit identity of a feature."""
    return int.from_bytes(hashlib.blake2b(f"{int(family)}|{name}".encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 16)
def _parts(own: tuple[str, ...], variant_id: str, slots: tuple[tuple[str, str], ...]) -> TextParts:
    """Words, neighbouring pairs and form of a text; a slot's name marks its words where there are several slots.
    `own`: the product's name, brand and price."""
    words: list[str] = []
    pairs: list[str] = []
    forms: list[str] = []
    several = len(slots) > 1
    for name, text in slots:
        # Names differ between campaigns, what is said around them need not.
        for called, placeholder in zip(own, ("[product]", "[brand]", "[price]"), strict=True):
            if called:
                text = re.sub(re.escape(called), placeholder, text, flags=re.IGNORECASE)
        tokens = [token.lower() for token in WORD.findall(text)]
        mark = f"{name}:" if several else ""
        words += [mark + token for token in tokens]
        edged = ["^", *tokens, "$"]
        pairs += [f"{mark}{first} {second}" for first, second in pairwise(edged)]
        length = sum(token[0].isalnum() for token in tokens)
        forms += [
            f"{mark}words={min(12, int(math.log2(length + 1) * 3))}",
            f"{mark}chars={len(text) // 12}",
            f"{mark}ends={tokens[-1] if tokens and not tokens[-1][0].isalnum() else 'word'}",
            f"{mark}starts={'[product]' if tokens[:1] == ['[product]'] else 'other'}",
            f"{mark}commas={min(3, tokens.count(','))}",
            f"{mark}sentences={min(3, sum(token in '.!?' for token in tokens))}",
        ]
    return TextParts(variant_id, tuple(dict.fromkeys(words)), tuple(dict.fromkeys(pairs)), tuple(forms))


def text_features(place: str, several: bool, segment: str, parts: TextParts) -> FeatureSet:
    """Everything about (campaign, segment, text); the request's context is not in it. `place` names the campaign,
    `several` says whether it has more than one segment."""
    named: list[tuple[Family, str]] = [
        (Family.INTERCEPT, "bias"),
        (Family.INTERCEPT, f"campaign={place}"),
        (Family.INTERCEPT, f"segment={segment}"),
        (Family.INTERCEPT, f"campaign={place};segment={segment}"),
        (Family.VARIANT, f"{place};{parts.variant_id}"),
        (Family.VARIANT_SEGMENT, f"{place};{parts.variant_id};{segment}"),
    ]
    named += [(Family.WORD, word) for word in parts.words]
    named += [(Family.PAIR, pair) for pair in parts.pairs]
    named += [(Family.WORD_CAMPAIGN, f"{place};{word}") for word in parts.words]
    named += [(Family.FORM, form) for form in parts.forms]
    if several:
        named += [(Family.WORD_SEGMENT, f"{segment};{word}") for word in parts.words]
        named += [(Family.FORM_SEGMENT, f"{segment};{form}") for form in parts.forms]
    return _set(named)


def campaign_name(campaign: Campaign) -> str:
    """What names a campaign among all tenants'."""
    return f"{campaign.tenant}/{campaign.campaign_id}"


def encoded(
    campaign: Campaign, segment: str, variant_id: str, slots: Mapping[str, str]
) -> tuple[TextParts, FeatureSet]:
    """A text taken apart, and everything about (campaign, segment, text). Remembered: each critic reads the same texts
    again."""
    product = campaign.product
    place = campaign_name(campaign)
    own = (product.name, product.brand, product.price)
    return _encoded(place, len(campaign.segments) > 1, own, segment, variant_id, tuple(slots.items()))


@lru_cache(maxsize=1 << 16)
def _encoded(
    place: str,
    several: bool,
    own: tuple[str, str, str],
    segment: str,
    variant_id: str,
    slots: tuple[tuple[str, str], ...],
) -> tuple[TextParts, FeatureSet]:
    parts = _parts(own, variant_id, slots)
    return parts, text_features(place, several, segment, parts)


def context_names(context: Mapping[str, Scalar]) -> tuple[str, ...]:
    """The request's context as names, sorted; numbers by sign and power of two, `segment` left out."""
    return tuple(sorted(f"{key}={_coarse(value)}" for key, value in context.items() if key != "segment"))


def _coarse(value: Scalar) -> str:
    if isinstance(value, bool | str):
        return str(value)[:64]
    if value == 0 or not math.isfinite(value):
        return "0"
    return f"{'-' if value < 0 else ''}2^{int(math.log2(abs(value)))}"


@lru_cache(maxsize=1 << 17)
def context_features(names: tuple[str, ...], parts: TextParts) -> FeatureSet:
    """The context's own effect and its crosses with the text's words."""
    named: list[tuple[Family, str]] = [(Family.INTERCEPT, f"context:{name}") for name in names]
    named += [(Family.WORD_CONTEXT, f"{name};{word}") for name in names for word in parts.words]
    return _set(named)


def _set(named: list[tuple[Family, str]]) -> FeatureSet:
    # Through lists: numpy reads those faster than it draws from a generator.
    ids = np.array([feature_id(family, name) for family, name in named], np.uint64)
    return FeatureSet(ids, np.array([family for family, _ in named], np.uint8))
