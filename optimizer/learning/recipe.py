"""What the tiny model is made of, and where it stands once it is made: without the libraries that make it, since these
take seconds to load and a model that is there already needs none of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from optimizer.errors import ConfigError
from optimizer.learning.corpus import generate_corpus
from optimizer.learning.prompt import Prompt, summarise
from optimizer.ranges import NOT_NEGATIVE, POSITIVE, SHARE, check_ranges, whole
from optimizer.types import Slot

MARKER = "adloop.json"
TINY_LANGUAGE = "en"  # the generated corpus has no other
FINGERPRINT_ROWS = 1_000
LEAST_VOCABULARY = 257  # every byte, and the end of a text
LEAST_POSITIONS = 32  # half of them for the prompt, and a slot's name and 8 tokens of its text in the others
Line = tuple[Prompt, dict[str, str]]
"""One training example: a prompt and the slot texts to be written for it."""
Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as the work goes on; an empty `what` means unchanged."""


@dataclass(frozen=True)
class PretrainConfig:
    """The tiny model's shape and schedule. `layers`, `width` and `heads` are GPT-2's, `vocab_size` the most tokens of
    its tokenizer, `positions` its context in tokens. `rows` are training examples, each seen `epochs` times,
    `batch_rows` at a time. `matrix_learning_rate` and `weight_decay` are Muon's, for the layers' matrices;
    `learning_rate` AdamW's, for all else. `warmup`: share of the steps in which the rates rise. `version`: raised where
    the training itself changes, so that the cache keeps the models apart. Raises ConfigError for what is out of its
    range."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    vocab_size: int = 4096
    positions: int = 512
    rows: int = 40_000
    epochs: float = 1.0
    batch_rows: int = 64
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.05
    warmup: float = 0.03
    seed: int = 0
    version: int = 5

    def __post_init__(self) -> None:
        check_ranges(
            self,
            layers=whole(1),
            width=whole(1),
            heads=whole(1),
            vocab_size=whole(LEAST_VOCABULARY),
            positions=whole(LEAST_POSITIONS),
            rows=whole(1),
            epochs=POSITIVE,
            batch_rows=whole(1),
            learning_rate=POSITIVE,
            matrix_learning_rate=POSITIVE,
            weight_decay=NOT_NEGATIVE,
            warmup=SHARE,
            seed=whole(0),
            version=whole(1),
        )
        if self.width % self.heads:
            raise ConfigError(
                f"PretrainConfig.width: got {self.width}, expected a multiple of heads, which is {self.heads}; "
                "each head takes an equal part of it"
            )


def corpus_hash(config: PretrainConfig, lines: Iterable[Line]) -> str:
    """Names the model that this configuration and these lines give."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for prompt, slots in lines:
        digest.update(json.dumps([prompt.text, slots]).encode())
    return digest.hexdigest()[:16]


def cache_root() -> Path:
    """Where models made here are kept: ADLOOP_CACHE, else the user's cache folder."""
    named = os.environ.get("ADLOOP_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "adloop"


def corpus_lines(seed: int, rows: int) -> Iterable[Line]:
    """The generated ad-copy corpus as training lines."""
    for row in generate_corpus(seed, rows):
        text = summarise(row.content_type, row.brand, row.category, row.segment, row.price, tuple(row.facts))
        yield Prompt(text, tuple(Slot(name) for name in row.slots)), dict(row.slots)


def tiny_folder(key: str) -> Path:
    """The cache's folder of the model that `corpus_hash` names."""
    return cache_root() / "models" / f"tiny-{key}"


def made_already(config: PretrainConfig) -> Path | None:
    """The tiny model's folder where the cache has it, else None."""
    folder = tiny_folder(corpus_hash(config, corpus_lines(config.seed, FINGERPRINT_ROWS)))
    return folder if (folder / MARKER).is_file() else None
