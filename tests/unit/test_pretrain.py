"""Training the tiny model: whole or not at all, the same from the same lines, and worth the training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optimizer.learning.pretrain import pretrain
from optimizer.learning.prompt import Prompt
from optimizer.learning.recipe import PretrainConfig, corpus_hash
from optimizer.types import Slot
from tests.learning_rig import TINY, lines

SMALL = dataclasses.replace(TINY, epochs=1.0, rows=120, batch_rows=24)


def quiet(_: str, __: int, ___: int) -> None:
    return None


def test_the_folder_holds_safetensors_a_tokenizer_and_no_pickle(tiny_model_folder: Path) -> None:
    names = {path.name for path in tiny_model_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "adloop.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert json.loads((tiny_model_folder / "adloop.json").read_text())["pretrain"]["width"] == TINY.width
    assert not [path for path in tiny_model_folder.parent.iterdir() if path != tiny_model_folder]


def test_the_same_lines_give_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    one, two = (pretrain(SMALL, lines(120), tmp_path / name, quiet) for name in ("one", "two"))
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = pretrain(dataclasses.replace(SMALL, seed=1), lines(120), tmp_path / "three", quiet)
    third = load_file(other / "model.safetensors")
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_progress_is_told_to_the_end_and_the_loss_falls(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    pretrain(TINY, lines(600), tmp_path / "model", lambda *what: told.append(what))
    steps = [entry for entry in told if not entry[0].startswith("tokenizer")]
    assert steps[-1][1] == steps[-1][2]
    losses = [float(what.split()[-1]) for what, _, _ in told if "loss" in what]
    assert len(losses) >= 2
    assert losses[-1] < losses[0] / 1.3


def test_training_does_not_touch_the_global_generator(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    pretrain(SMALL, lines(120), tmp_path / "model", quiet)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_example_that_fits_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    long = [(Prompt("ad\n", (Slot("headline"),)), {"headline": "word " * 400})]
    with pytest.raises(ValueError, match="no example fits"):
        pretrain(SMALL, long, tmp_path / "model", quiet)
    assert list(tmp_path.iterdir()) == []


def test_the_hash_names_configuration_and_corpus() -> None:
    config, some = PretrainConfig(), lines(10)
    assert corpus_hash(config, some) == corpus_hash(PretrainConfig(), lines(10))
    assert corpus_hash(dataclasses.replace(config, width=64), some) != corpus_hash(config, some)
    assert corpus_hash(config, some[:-1]) != corpus_hash(config, some)
    changed = [*some[:-1], (some[-1][0], {"headline": "other"})]
    assert corpus_hash(config, changed) != corpus_hash(config, some)
