"""Tokenizers: plain text in and out, special tokens spelled out, which tokens end a line or are never sampled."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import ConfigError
from optimizer.learning.tokenizer import END, TextCodec, train_tokenizer

TEXTS = ["Run light and dry.\n", "Walk warm!\n\n", "ad | all\n", "headline: Run\n"] * 30
CODEC = TextCodec(train_tokenizer(iter(TEXTS), 320))


@given(st.text(max_size=60))
def test_any_text_survives_the_way_there_and_back(text: str) -> None:
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        return
    assert CODEC.decode(CODEC.encode(text)) == text


@given(st.text(alphabet="<|end>a ", max_size=30))
def test_special_tokens_in_a_text_are_spelled_out(text: str) -> None:
    ids = CODEC.encode(text + END)
    assert CODEC.end_id not in ids
    assert CODEC.decode(ids) == text + END


def test_the_end_token_itself_vanishes_from_text() -> None:
    assert CODEC.decode([*CODEC.encode("Run"), CODEC.end_id]) == "Run"


def test_line_enders_are_the_end_and_every_token_with_a_line_break() -> None:
    size = 330
    ends = CODEC.line_enders(size)
    assert ends.shape == (size,)
    assert bool(ends[CODEC.end_id])
    for index in range(size):
        if index != CODEC.end_id:
            spelled = CODEC.decode([index]) if index < len(CODEC.tokenizer) else ""
            assert bool(ends[index]) == ("\n" in spelled)
    assert int(ends.sum()) >= 2


def test_special_tokens_but_the_end_and_rows_without_a_token_are_never_sampled() -> None:
    tokenizer = train_tokenizer(iter(TEXTS), 320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    codec = TextCodec(tokenizer)
    count = len(tokenizer)
    barred = codec.forbidden(count + 7)
    tool = tokenizer.convert_tokens_to_ids("<|tool|>")
    assert barred[tool]
    assert not barred[codec.end_id]
    assert barred[count:].all()
    assert int(barred.sum()) == 8
    assert tool not in codec.encode("a <|tool|> b")


def test_the_tokenizer_comes_back_from_a_model_folder(tiny_model_folder: Path) -> None:
    codec = TextCodec.load(tiny_model_folder)
    assert codec.decode(codec.encode("Run light\n")) == "Run light\n"
    assert codec.end_id == codec.tokenizer.eos_token_id


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = train_tokenizer(iter(TEXTS), 320)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="end-of-text"):
        TextCodec(tokenizer)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="tokenizer"):
        TextCodec.load(tmp_path / "empty")
