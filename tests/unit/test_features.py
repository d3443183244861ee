"""The critic's features: names become placeholders, slots are told apart, hostile text takes no special path."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.learning.features import (
    PRIOR_SCALE,
    Family,
    FeatureSet,
    TextParts,
    context_features,
    context_names,
    encoded,
    feature_id,
)
from optimizer.types import Campaign, Product
from tests.learning_rig import campaign


def parts_of(made: Campaign, slots: dict[str, str]) -> TextParts:
    return encoded(made, "all", "v", slots)[0]


def features_of(made: Campaign, segment: str, slots: dict[str, str]) -> FeatureSet:
    return encoded(made, segment, "v", slots)[1]


def test_every_family_has_a_prior_scale() -> None:
    assert len(PRIOR_SCALE) == len(Family)
    assert (PRIOR_SCALE > 0).all()


def test_names_become_placeholders_whatever_their_case() -> None:
    made = campaign(product=Product(name="Trail (X+)", brand="Acme", price="$9"))
    parts = parts_of(made, {"headline": "TRAIL (x+) by acme, now $9!"})
    assert parts.words == ("[product]", "by", "[brand]", ",", "now", "[price]", "!")
    assert "[product] by" in parts.pairs
    assert "^ [product]" in parts.pairs
    assert "! $" in parts.pairs


def test_a_slots_name_marks_its_words_only_among_several() -> None:
    assert parts_of(campaign(), {"headline": "Go"}).words == ("go",)
    assert parts_of(campaign(), {"headline": "Go", "body": "go"}).words == ("headline:go", "body:go")


def test_the_same_text_has_the_same_features_and_another_segment_shares_its_words() -> None:
    made = campaign(segments=("all", "young"))
    slots = {"headline": "Run light"}
    one, same = features_of(made, "all", slots), features_of(made, "all", dict(slots))
    np.testing.assert_array_equal(one.ids, same.ids)
    other = features_of(made, "young", slots)
    shared = {Family.WORD, Family.PAIR, Family.FORM, Family.VARIANT, Family.WORD_CAMPAIGN}
    for family in Family:
        mine, theirs = one.ids[one.families == family], other.ids[other.families == family]
        if family in shared:
            np.testing.assert_array_equal(mine, theirs)
    assert feature_id(Family.WORD, "run") in one.ids
    assert not set(one.ids[one.families == Family.WORD_SEGMENT]) & set(other.ids[other.families == Family.WORD_SEGMENT])


def test_another_tenants_campaign_of_the_same_name_shares_no_campaign_features() -> None:
    mine, theirs = campaign(), campaign(tenant="other")
    slots = {"headline": "Run light"}
    a, b = features_of(mine, "all", slots), features_of(theirs, "all", slots)
    for family in (Family.VARIANT, Family.VARIANT_SEGMENT, Family.WORD_CAMPAIGN):
        assert not set(a.ids[a.families == family]) & set(b.ids[b.families == family])


def test_the_context_is_sorted_coarse_and_without_its_segment() -> None:
    names = context_names({"segment": "x", "hour": 13, "device": "mobile", "new": True, "age": -0.3, "none": 0})
    assert names == ("age=-2^-1", "device=mobile", "hour=2^3", "new=True", "none=0")
    parts = parts_of(campaign(), {"headline": "Run light"})
    made = context_features(names, parts)
    assert len(made.ids) == len(names) * (1 + len(parts.words))
    assert len(context_features((), parts).ids) == 0


@given(st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(10**30), 10**30) | st.text(max_size=80))
def test_any_value_of_a_context_has_a_short_name(value: float | int | str) -> None:
    (name,) = context_names({"key": value})
    assert name.startswith("key=")
    assert len(name) <= 4 + 64
    assert not (isinstance(value, float) and math.isnan(value)) or name == "key=0"


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=20))
def test_any_text_is_taken_apart(text: str, name: str, brand: str) -> None:
    made = campaign(product=Product(name=name or "x", brand=brand))
    made_of = features_of(made, "all", {"headline": text})
    assert made_of.ids.dtype == np.uint64
    assert len(made_of.ids) == len(made_of.families)
    words = parts_of(made, {"headline": text}).words
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("text", ["", "   ", "!!!", "\u200b"])
def test_a_text_without_words_still_has_a_form(text: str) -> None:
    parts = parts_of(campaign(), {"headline": text})
    assert parts.forms
    assert len(features_of(campaign(), "all", {"headline": text}).ids) > 0
