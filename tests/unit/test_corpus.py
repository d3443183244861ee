"""The generated corpus: varied, deterministic, grammatical in what can be checked, and claiming nothing."""

from __future__ import annotations

import re

import pytest

from optimizer.learning import phrases
from optimizer.learning.corpus import SHAPES, TONES, CorpusRow, generate_corpus, gerund, in_person

ROWS = list(generate_corpus(7, 6_000))
TEXTS = [(row, name, text) for row in ROWS for name, text in row.slots.items()]
HEADLINES = [row.slots["headline"] for row in ROWS if "headline" in row.slots]


def test_the_same_seed_gives_the_same_rows_and_fewer_rows_are_a_prefix() -> None:
    assert list(generate_corpus(7, 500)) == ROWS[:500]
    assert list(generate_corpus(8, 500)) != ROWS[:500]


def test_banks_are_wide_enough() -> None:
    assert len(phrases.categories()) >= 40
    assert len(phrases.topics()) >= 16
    assert set(TONES) <= set(phrases.patterns())
    assert all(len(phrases.patterns()[tone]) >= 20 for tone in TONES)
    banks = (*phrases.categories(), *phrases.topics())
    distinct = {phrase for bank in banks for kind in bank.phrases.values() for phrase in kind}
    assert len(distinct) >= 1_700


def test_no_phrase_stands_twice_in_one_bank() -> None:
    for bank in (*phrases.categories(), *phrases.topics()):
        for kind, listed in bank.phrases.items():
            assert len(set(listed)) == len(listed), (bank.names, kind)


def test_headlines_are_varied_and_short() -> None:
    assert len(set(HEADLINES)) >= 0.9 * len(HEADLINES)
    assert max(map(len, HEADLINES)) <= 80
    assert sum(20 <= len(text) <= 60 for text in HEADLINES) >= 0.85 * len(HEADLINES)
    share = sum("[product]" in text for text in HEADLINES) / len(HEADLINES)
    assert 0.35 <= share <= 0.6


def test_every_content_type_every_category_and_every_bank_comes_up() -> None:
    assert {row.content_type for row in ROWS} == set(SHAPES)
    names = {name for bank in phrases.categories() for name in bank.names}
    assert names <= {row.category for row in ROWS}
    assert 0.25 <= sum(row.category == "" for row in ROWS) / len(ROWS) <= 0.35


def test_placeholders_stand_only_where_the_row_has_the_word() -> None:
    def allowed(row: CorpusRow) -> set[str]:
        words = (("[product]", row.product), ("[brand]", row.brand), ("[price]", row.price), ("[fact]", row.facts))
        return {placeholder for placeholder, word in words if word}

    for row, _, text in TEXTS:
        assert set(re.findall(r"\[\w*\]", text)) <= allowed(row), text
        assert text.count("[") == len(re.findall(r"\[(?:product|brand|price|fact)\]", text)), text
        assert "{" not in text
        assert "}" not in text


def test_texts_start_with_a_capital_and_are_clean() -> None:
    for _, name, text in TEXTS:
        assert re.match(r"[A-Z\[]", text), text
        assert not re.search(r"\.\.|,,|  |\s[.,!?]|[.!?] [a-z]|^\s|\s$|\n", text), text
        without_tags = re.sub(r"#\w+", "", text).lower()
        assert not re.search(r"\b(\w+) \1\b", without_tags), (name, text)


CLAIMS = re.compile(
    r"\d|%|\$|\b(?:free|guaranteed?|best|cheap\w*|discount\w*|sale|award\w*|cures?|heals?|proven|clinical\w*"
    r"|organic|waterproof|shipping|delivery|refund|number one|fastest|lowest|warranty|doctor\w*|profit)\b",
    re.IGNORECASE,
)


def test_texts_claim_nothing_that_a_product_may_not_keep() -> None:
    said = [text for _, _, text in TEXTS if CLAIMS.search(text)]
    assert said == []


def test_a_segment_and_an_audience_say_nothing_about_the_words() -> None:
    """The share of texts with a question mark is the same with and without a named segment (difference of two
    binomial shares, about 3,000 rows each; a chance deviation of 5 standard errors: below 1e-6)."""

    def share(rows: list[CorpusRow]) -> float:
        return sum("?" in "".join(row.slots.values()) for row in rows) / len(rows)

    named, unnamed = [r for r in ROWS if r.segment != "all"], [r for r in ROWS if r.segment == "all"]
    error = (0.25 / len(named) + 0.25 / len(unnamed)) ** 0.5
    assert abs(share(named) - share(unnamed)) < 5 * error


@pytest.mark.parametrize(
    ("base", "wanted"),
    [
        ("run the river path", "running the river path"),
        ("take a breath", "taking a breath"),
        ("lie down", "lying down"),
        ("open the box", "opening the box"),
        ("see for yourself", "seeing for yourself"),
        ("wander off", "wandering off"),
        ("show up", "showing up"),
        ("be silly", "being silly"),
    ],
)
def test_gerund(base: str, wanted: str) -> None:
    assert gerund(base) == wanted


def test_persons() -> None:
    assert in_person("do yourself proud", "my") == "do myself proud"
    assert in_person("trust your hands", "their") == "trust their hands"
    assert in_person("clear your desk", "our") == "clear our desk"
