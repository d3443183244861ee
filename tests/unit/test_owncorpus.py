"""A user's own texts: cleaned, without duplicates, made general; the unreadable is refused by file, row and column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import BadInput
from optimizer.learning.owncorpus import LEAST_TEXTS, LONGEST_TEXT, clean, read_own_corpus


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_text_file_is_one_headline_a_line(tmp_path: Path) -> None:
    texts = [f"Text number {at} to read" for at in range(LEAST_TEXTS)]
    extra = ["", "   ", texts[0].upper(), f"{texts[1]}\u200b", "x" * (LONGEST_TEXT + 1)]
    own = read_own_corpus(write(tmp_path / "mine.txt", "\ufeff" + "\r\n".join(texts + extra)))
    assert [slots["headline"] for _, slots in own.lines] == texts
    assert (own.read, own.empty, own.long, own.duplicates) == (LEAST_TEXTS + 5, 2, 1, 2)
    assert own.summary() == ("200 texts from 205 rows (2 duplicates, 2 empty, 1 longer than 1000 characters left out)")
    prompt, _ = own.lines[0]
    assert prompt.text.endswith("\n")
    assert [slot.name for slot in prompt.slots] == ["headline"]


def test_columns_of_a_table_are_prompt_fields_and_slots(tmp_path: Path) -> None:
    rows = ["content_type,product,brand,price,segment,headline,body"]
    rows += [f'email,Trail {at},Acme,$9,young,"TRAIL {at} by acme, now",Only $9 for {at}' for at in range(LEAST_TEXTS)]
    own = read_own_corpus(write(tmp_path / "mine.csv", "\n".join(rows)))
    prompt, slots = own.lines[7]
    assert slots == {"headline": "[product] by [brand], now", "body": "Only [price] for 7"}
    assert prompt.text.startswith("email")
    assert "young" in prompt.text
    assert [slot.name for slot in prompt.slots] == ["headline", "body"]


def test_json_lines_read_as_tables_do(tmp_path: Path) -> None:
    rows = [json.dumps({"product": f"P{at}", "headline": f"Take P{at} number{at}"}) for at in range(LEAST_TEXTS)]
    own = read_own_corpus(write(tmp_path / "mine.jsonl", "\n".join([*rows[:3], "", *rows[3:]])))
    assert len(own.lines) == LEAST_TEXTS
    assert own.lines[3][1] == {"headline": "Take [product] number3"}


GOOD = "\n".join(f"Text number {at}" for at in range(LEAST_TEXTS))


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("a.txt", GOOD[:500], "a.txt, row "),
        ("a.txt", b"\xff\xfe\x00", "a.txt, row 1, encoding"),
        ("a.txt", "", "a.txt, row 0, rows"),
        ("a.pdf", GOOD, "a.pdf, row 0, suffix"),
        ("a.csv", "product,headline\nX,Hi\nY,Hi,there\n", "a.csv, row 3, columns"),
        ("a.csv", "product,headline\nX\n", "a.csv, row 2, columns"),
        ("a.csv", "content_type,headline\nposter,Hi\n", "a.csv, row 2, content_type"),
        ("a.jsonl", '{"headline": "Hi"}\n{"headline"', "a.jsonl, row 2, line"),
        ("a.jsonl", "[1]\n", "a.jsonl, row 1, line"),
        ("a.jsonl", '{"headline": 3}\n', "a.jsonl, row 1, line"),
    ],
)
def test_what_cant_be_read_is_refused_by_file_row_and_column(
    tmp_path: Path, name: str, content: str | bytes, where: str
) -> None:
    with pytest.raises(BadInput) as refused:
        read_own_corpus(write(tmp_path / name, content))
    (error,) = refused.value.errors
    assert error.field.startswith(where)
    assert error.expected
    assert error.fix


@given(st.text(max_size=50))
def test_clean_text_is_one_line_of_visible_characters_and_stays_clean(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert once == once.strip()
    assert len(once.splitlines()) <= 1
    assert not any(character in once for character in "\x00\u200b\u202e\ufeff")


def test_clean_folds_compatibility_forms() -> None:
    assert clean("\uff21\uff24  \tnow\x07!\u200b") == "AD now !"
