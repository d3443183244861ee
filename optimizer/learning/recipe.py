"""What the tiny model is made of, and where it stands once it is made: without the libraries that make it, since these
take seconds to load and a model that is there already needs none of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from optimizer.learning.corpus import generate_corpus
from optimizer.learning.prompt import Prompt, summarise
from optimizer.types import Slot

MARKER = "adloop.json"
FINGERPRINT_ROWS = 1_000
Line = tuple[Prompt, dict[str, str]]
"""One training example: a prompt and the slot texts to be written for it."""
Progress = Callable[[str, int, int], None]
"""Told (what, done, total) as the work goes on; an empty `what` means unchanged."""


@dataclass(frozen=True)
class PretrainConfig:
    """The tiny model's shape and schedule. `rows` are training examples, each seen `epochs` times."""

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
