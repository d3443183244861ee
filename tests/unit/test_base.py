"""The base model of a data folder: chosen once, checked ever after, no code and no pickle of a model folder opened."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from optimizer.errors import ConfigError, StoreError
from optimizer.learning import base as base_module
from optimizer.learning.base import BaseModel, load_policy, load_version, settle_base, tiny_model
from optimizer.learning.recipe import cache_root
from optimizer.store import PolicyStore
from tests.learning_rig import TINY, campaign, lines, settle


@pytest.fixture
def folder(llama_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_model_folder, tmp_path / "my-model"))


def quiet(_: str, __: int, ___: int) -> None:
    return None


def test_the_choice_is_kept(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    chosen = settle(data, folder)
    assert settle_base(data, None, quiet) == chosen
    assert settle_base(data, str(folder), quiet) == chosen


def test_another_model_for_the_same_data_folder_is_refused(
    folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    settle(data, folder)
    with pytest.raises(ConfigError, match="begun with"):
        settle_base(data, str(tiny_model_folder), quiet)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"digest": "x"}', "null"])
def test_a_damaged_choice_is_refused_in_a_sentence(folder: Path, tmp_path: Path, content: str) -> None:
    data = tmp_path / "data"
    chosen = settle(data, folder)
    whole = (data / "base.json").read_text()
    (data / "base.json").write_text(content)
    with pytest.raises(ConfigError, match=r"base\.json: can't be read"):
        settle_base(data, None, quiet)
    (data / "base.json").unlink()  # as the sentence has it
    assert settle_base(data, str(folder), quiet) == chosen
    assert (data / "base.json").read_text() == whole


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_files_that_changed_since_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    settle(data, folder)
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(ConfigError, match="have changed"):
        settle_base(data, None, quiet)


def test_the_tiny_model_is_trained_once_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    trained: list[Path] = []

    def train(config: object, corpus: object, folder: Path, progress: object) -> Path:
        trained.append(folder)
        return Path(shutil.copytree(tiny_model_folder, folder))

    monkeypatch.setenv("ADLOOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base_module, "pretrain", train)
    monkeypatch.setattr(base_module, "corpus_lines", lambda seed, rows: lines(50))
    first = settle_base(tmp_path_of(tmp_path, "one"), None, quiet, TINY)
    second = settle_base(tmp_path_of(tmp_path, "two"), None, quiet, TINY)
    assert len(trained) == 1
    assert first.digest == second.digest
    assert first.folder == tmp_path / "one" / "base"
    assert cache_root() == tmp_path / "cache"
    # The data folder lives on without the cache.
    shutil.rmtree(tmp_path / "cache")
    assert settle_base(tmp_path / "one", None, quiet, TINY) == first
    assert first.language == "en"
    written = [tag for tag in ("en-US", "EN", "eng", "english", "pt-BR", "enm") if first.writes(campaign(language=tag))]
    assert written == ["en-US", "EN", "eng", "english"]
    assert tiny_model(TINY, quiet).is_dir()
    assert len(trained) == 2


def tmp_path_of(root: Path, name: str) -> Path:
    made = root / name
    made.mkdir()
    return made


def test_a_folder_of_pickled_weights_is_refused_unopened(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ConfigError, match=r"no \.safetensors"):
        settle(tmp_path / "data", folder)


def test_a_model_with_code_of_its_own_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    witness = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    with pytest.raises(ConfigError, match="code of its own"):
        load_policy(settle(tmp_path / "data", folder))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b"\x80\x04N."),
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "no-such-model"}'),
        ("tokenizer.json", b"{}"),
    ],
)
def test_a_damaged_model_folder_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, name: str, content: bytes
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError, match="my-model"):
        load_policy(settle(tmp_path / "data", folder))


def test_a_name_that_is_neither_a_folder_nor_a_hub_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a local model folder or a hub name"):
        settle_base(tmp_path, "no such/model/at all", quiet)


def test_a_version_of_another_base_is_refused_and_the_policy_is_as_it_was(
    folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    mine, other = settle(tmp_path / "a", folder), settle(tmp_path / "b", tiny_model_folder)
    store = PolicyStore(tmp_path / "policies")
    policy = load_policy(mine)
    before = {name: value.detach().clone() for name, value in policy.trainable().items()}
    made = store.publish(load_policy(other).trainable(), b"", parent=None, base=other.digest, created_ts=0, facts={})
    with pytest.raises(StoreError, match="made for base model"):
        load_version(policy, mine, store, made.version)
    # Neither does it help to lie about the base: names and shapes are checked.
    forged = store.publish(load_policy(other).trainable(), b"", parent=None, base=mine.digest, created_ts=0, facts={})
    with pytest.raises(StoreError, match=r"missing|extra"):
        load_version(policy, mine, store, forged.version)
    assert policy.version == ""
    assert all(torch.equal(before[name], value) for name, value in policy.trainable().items())


def test_adapters_start_the_same_in_every_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_module, "WHOLE_PARAMETERS", 0)
    base: BaseModel = settle(tmp_path / "data", folder)
    torch.manual_seed(1)
    one = load_policy(base).trainable()
    torch.manual_seed(2)
    two = load_policy(base).trainable()
    assert one.keys() == two.keys()
    assert all("lora_" in name for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)
    policy = load_policy(base)
    assert sum(value.numel() for value in one.values()) < sum(p.numel() for p in policy.model.parameters()) / 2


def test_up_to_20_million_parameters_are_trained_whole(folder: Path, tmp_path: Path) -> None:
    policy = load_policy(settle(tmp_path / "data", folder))
    assert len(policy.trainable()) == len(list(policy.model.parameters()))


@pytest.mark.parametrize("named", ["gpu", "cuda:", "cuda:x", "cpu:0", "mps", " cuda"])
def test_a_device_that_is_no_name_is_refused(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADLOOP_DEVICE", named)
    with pytest.raises(ConfigError, match=r"ADLOOP_DEVICE: got .* expected auto, cpu, cuda or cuda:N"):
        base_module.device()


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for named, wanted in (("", "cuda"), ("auto", "cuda"), ("cpu", "cpu"), ("cuda", "cuda"), ("cuda:1", "cuda:1")):
        monkeypatch.setenv("ADLOOP_DEVICE", named)
        assert str(base_module.device()) == wanted
    monkeypatch.setenv("ADLOOP_DEVICE", "cuda:2")
    with pytest.raises(ConfigError, match="'cuda:2', but torch finds 2 CUDA devices"):
        base_module.device()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("ADLOOP_DEVICE", "cuda")
    with pytest.raises(ConfigError, match="'cuda', but torch finds 0 CUDA devices"):
        base_module.device()
    monkeypatch.setenv("ADLOOP_DEVICE", "")
    assert str(base_module.device()) == "cpu"
