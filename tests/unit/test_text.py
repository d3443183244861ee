"""Banned terms and invisible characters, as campaigns and the gate ask about them."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest

from optimizer.errors import BadInput
from serving.campaigns import campaign_from
from serving.schemas import CampaignIn
from serving.text import bad_character, banned_term, folded
from serving.wire import convert
from tests.serving_rig import MINIMAL

UNSEEN = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u180f\u200b\u2800\u3164\uffa0\u00ad\U000e0041"


@pytest.mark.parametrize("character", UNSEEN)
def test_what_nobody_sees_is_refused_wherever_it_stands(character: str) -> None:
    for text in (character, f"a{character}b", f"{character}a", f"a{character}"):
        assert (bad_character(text) or "").startswith(f"U+{ord(character):04X} ")
    with pytest.raises(BadInput, match=r"product\.name"):
        campaign_from("default", "c1", convert({**MINIMAL, "product": {"name": f"x{character}"}}, CampaignIn))


@pytest.mark.parametrize(
    "text",
    ["\u2764\ufe0f love", "1\ufe0f\u20e3 first", "\u845b\U000e0100\u98fe", "caf\u00e9", "cafe\u0301", "\u2601\ufe0e"],
)
def test_what_emoji_and_names_need_passes(text: str) -> None:
    assert bad_character(text) is None


@pytest.mark.parametrize("text", ["\ufe0f", "a\ufe0f\ufe0f", "a \ufe0f", "\U000e0100a", "\ufe00"])
def test_a_variation_selector_belongs_to_a_character(text: str) -> None:
    assert "VARIATION SELECTOR" in (bad_character(text) or "")


def test_a_variation_selector_hides_no_banned_term() -> None:
    assert banned_term(("cheap",), "a che\ufe0fap\ufe0e trip") == "cheap"


def one_by_one(banned: tuple[str, ...], text: str) -> set[str]:
    """The terms that stand in the text, each looked for by itself."""
    inside = folded(text)
    return {term for term in banned if folded(term) and re.search(rf"(?<!\w){re.escape(folded(term))}(?!\w)", inside)}


def test_all_terms_at_once_find_what_each_by_itself_finds() -> None:
    """Short words of few letters, so that terms begin, end and hold one another."""
    draw = random.Random(0)
    found = 0
    for _ in range(3_000):
        words = ["".join(draw.choices("abÄ$.*", k=draw.randint(1, 3))) for _ in range(8)]
        banned = tuple(" ".join(draw.choices(words, k=draw.randint(1, 2))) for _ in range(draw.randint(0, 6)))
        text = " ".join(draw.choices(words, k=4))
        expected = one_by_one(banned, text)
        term = banned_term(banned, text)
        assert (term is None) == (not expected), (banned, text)
        assert term is None or term in expected, (banned, text)
        found += term is not None
    assert 1_000 < found < 2_900


@pytest.mark.parametrize(
    ("banned", "text", "term"),
    [
        (("cheap", "Sports  Car"), "A SPORTS car, not cheap", "Sports  Car"),
        (("Ölwechsel", "olwechsel"), "an olwechsel", "Ölwechsel"),
        (("a", "a b c"), "x a b c", "a"),
        (("ab", "abc"), "x abc", "abc"),
        ((" ", "\u0301"), "x  y", None),
        ((), "x", None),
    ],
)
def test_a_term_is_told_as_the_campaign_wrote_it(banned: tuple[str, ...], text: str, term: str | None) -> None:
    assert banned_term(banned, text) == term


def test_a_thousand_terms_take_no_minute() -> None:
    """A pattern a term and text took more than a minute; one for all of them takes 0.3 s."""
    slots = [{"name": f"s{index}", "max_chars": 200} for index in range(16)]
    controls = [{slot["name"]: f"{slot['name']} number {at} " + "word " * 12 for slot in slots} for at in range(100)]
    banned = [f"term {index} of many" for index in range(1000)]
    body: dict[str, Any] = {"product": {"name": "x"}, "slots": slots, "controls": controls}
    began = time.monotonic()
    campaign_from("default", "c1", convert({**body, "rules": {"banned": banned}}, CampaignIn))
    assert time.monotonic() - began < 15
