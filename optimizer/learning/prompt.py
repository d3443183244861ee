"""What the language model is told, and how its placeholders become the campaign's own words.

A first line describes the campaign, then comes one line a slot, `name: text`. The model writes each text up to the end
of its line; names and the line's head are forced. A Hugging Face model gets the whole description, the tiny model the
brief one: names and facts stand in its texts as placeholders, so it only has to know which of them there are.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from optimizer.types import Campaign, ContentType, Slot

PLACEHOLDERS = ("[product]", "[brand]", "[price]", "[fact]")
PLACEHOLDER = re.compile("|".join(re.escape(name) for name in PLACEHOLDERS))


class Prompt(NamedTuple):
    """`text` is the first line with its newline; `slots` are written in this order. `brief` is the tiny model's first
    line; "" where it is the same."""

    text: str
    slots: tuple[Slot, ...]
    brief: str = ""


def describe(
    content_type: ContentType,
    product: str,
    brand: str = "",
    category: str = "",
    audience: str = "",
    segment: str = "all",
    price: str = "",
    facts: tuple[str, ...] = (),
) -> str:
    """The prompt's first line. Line breaks inside a field become spaces: no field can open a line of its own."""
    fields = [content_type.replace("_", " "), category, product]
    labelled = (("by", brand), ("at", price), ("for", audience), ("facts", ", ".join(facts)), ("segment", segment))
    fields += [f"{label} {value}" for label, value in labelled if value]
    return " | ".join(" ".join(field.split()) for field in fields if field.strip()) + "\n"


def summarise(
    content_type: ContentType,
    brand: str = "",
    category: str = "",
    segment: str = "all",
    price: str = "",
    facts: tuple[str, ...] = (),
) -> str:
    """The brief first line: type, category, which placeholders there are words for, segment."""
    fields = [content_type.replace("_", " "), category]
    fields += [name for name, there in (("brand", brand), ("price", price), ("fact", facts)) if there]
    return " | ".join(" ".join(field.split()) for field in (*fields, segment) if field.strip()) + "\n"


def build_prompt(campaign: Campaign, segment: str) -> Prompt:
    """The prompt of one campaign and segment."""
    product = campaign.product
    text = describe(
        campaign.content_type,
        product.name,
        product.brand,
        product.category,
        campaign.audience,
        segment,
        product.price,
        product.facts,
    )
    brief = summarise(campaign.content_type, product.brand, product.category, segment, product.price, product.facts)
    return Prompt(text, campaign.slots, brief)


def plain_fact(fact: str) -> str:
    """A fact as it stands inside a sentence, which has marks of its own: without its full stop. That of an abbreviation
    ("made in the U.S.A.") stays, and so does an ellipsis."""
    bare = fact.rstrip().removesuffix(".")
    return fact if "." in bare.rpartition(" ")[2] else bare or fact


def fill(campaign: Campaign, template: str) -> str:
    """Put the campaign's words in the place of `[product]`, `[brand]`, `[price]` and `[fact]`.

    A placeholder for which the campaign has no words stays: the text gate refuses it. The first `[fact]` takes the
    first fact, the second the second, each without the full stop that it may end with."""
    product = campaign.product
    words = {"[product]": product.name, "[brand]": product.brand, "[price]": product.price}
    facts = map(plain_fact, product.facts)

    def word(placeholder: re.Match[str]) -> str:
        name = placeholder[0]
        return next(facts, name) if name == "[fact]" else words[name] or name

    # In one pass: words of the campaign that look like a placeholder are not filled in turn.
    return PLACEHOLDER.sub(word, template)
