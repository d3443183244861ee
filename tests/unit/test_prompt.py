"""Prompts: one line of campaign text, whatever its fields hold, and placeholders that become the campaign's words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.learning.prompt import build_prompt, describe, fill, summarise
from optimizer.types import Product, Slot
from tests.learning_rig import campaign

FULL = Product(name="Trail Runner 3", brand="Acme", category="shoes", price="$90", facts=("light", "waterproof"))


def test_the_first_line_says_what_the_campaign_is() -> None:
    made = campaign(product=FULL, audience="hikers", content_type="social_post", slots=(Slot("headline"), Slot("body")))
    prompt = build_prompt(made, "young")
    assert prompt.text == (
        "social post | shoes | Trail Runner 3 | by Acme | at $90 | for hikers | facts light, waterproof "
        "| segment young\n"
    )
    assert [slot.name for slot in prompt.slots] == ["headline", "body"]


def test_the_brief_line_names_no_names() -> None:
    prompt = build_prompt(campaign(product=FULL), "young")
    assert prompt.brief == "ad | shoes | brand | price | fact | young\n"
    assert build_prompt(campaign(), "all").brief == "ad | all\n"


def test_empty_fields_leave_no_mark() -> None:
    assert describe("ad", "X") == "ad | X | segment all\n"
    assert summarise("ad") == "ad | all\n"


@given(st.lists(st.text(alphabet=st.characters(), max_size=20), min_size=5, max_size=5))
def test_no_field_opens_a_line_of_its_own(fields: list[str]) -> None:
    name, brand, category, audience, fact = fields
    product = Product(name=name, brand=brand, category=category, facts=(fact,))
    prompt = build_prompt(campaign(product=product, audience=audience), "all")
    for text in (prompt.text, prompt.brief):
        assert text.endswith("\n")
        assert len(text.splitlines()) == 1


def test_placeholders_become_the_campaigns_words() -> None:
    made = campaign(product=FULL)
    assert fill(made, "[product] by [brand] at [price]: [fact], [fact]") == (
        "Trail Runner 3 by Acme at $90: light, waterproof"
    )


@pytest.mark.parametrize(
    ("fact", "inside"),
    [
        ("Waterproof.", "Waterproof"),
        ("Drop of 4.5 mm.", "Drop of 4.5 mm"),
        ("Made in the U.S.A.", "Made in the U.S.A."),
        ("And then...", "And then..."),
        ("Why wait?", "Why wait?"),
        (".", "."),
    ],
)
def test_a_fact_loses_its_full_stop_inside_a_sentence(fact: str, inside: str) -> None:
    assert fill(campaign(product=Product(name="X", facts=(fact,))), "[fact], and more") == f"{inside}, and more"


def test_a_placeholder_without_words_stays_for_the_gate_to_refuse() -> None:
    assert fill(campaign(), "[brand] [product] [fact]") == "[brand] Trail Runner 3 [fact]"
    assert fill(campaign(product=Product(name="X", facts=("one",))), "[fact] and [fact]") == "one and [fact]"


def test_words_that_look_like_placeholders_are_not_filled_again() -> None:
    sly = campaign(product=Product(name="[brand]", brand="[price]", price="[product]", facts=("[fact] a", "b")))
    assert (
        fill(sly, "[product] | [brand] | [price] | [fact] | [fact]") == "[brand] | [price] | [product] | [fact] a | b"
    )
