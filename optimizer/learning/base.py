"""The base model a data folder learns from: the tiny one made here, or any Hugging Face causal language model.

No code from a model folder is ever run and no pickle opened: `trust_remote_code` is off and only safetensors are read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from optimizer.errors import ConfigError
from optimizer.learning.pin import Pin, read_pin, write_pin
from optimizer.learning.policy import LanguagePolicy
from optimizer.learning.pretrain import pretrain
from optimizer.learning.recipe import (
    FINGERPRINT_ROWS,
    MARKER,
    TINY_LANGUAGE,
    PretrainConfig,
    Progress,
    corpus_hash,
    corpus_lines,
    tiny_folder,
)
from optimizer.learning.tokenizer import TextCodec, quiet_transformers
from optimizer.store import PolicyStore
from optimizer.types import Campaign

WHOLE_PARAMETERS = 20_000_000
DEVICE = re.compile(r"auto|cpu|cuda(?::([0-9]+))?")


@dataclass(frozen=True)
class BaseModel:
    """`folder` holds the Hugging Face files; `digest` names their content (weights, configuration and tokenizer).
    `language`: the only one it writes, as the first part of a language tag; None where that is not known."""

    folder: Path
    digest: str
    language: str | None = None

    def writes(self, campaign: Campaign) -> bool:
        """Whether texts in the campaign's language may be expected of it."""
        return self.language is None or campaign.primary_language == self.language


def device() -> torch.device:
    """Where models live: what ADLOOP_DEVICE names (cpu, cuda, cuda:1); else cuda where there is one, else cpu. Raises
    ConfigError for a device that isn't there."""
    named = os.environ.get("ADLOOP_DEVICE") or "auto"
    match = DEVICE.fullmatch(named)
    if match is None:
        raise ConfigError(
            f"ADLOOP_DEVICE: got {named[:40]!r}, expected auto, cpu, cuda or cuda:N; correct it or leave it out"
        )
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if named == "auto":
        return torch.device("cuda" if there else "cpu")
    if named != "cpu" and int(match[1] or 0) >= there:
        raise ConfigError(
            f"ADLOOP_DEVICE: got {named!r}, but torch finds {there} CUDA devices here; name one that is there, or cpu"
        )
    return torch.device(named)


def tiny_model(config: PretrainConfig, progress: Progress) -> Path:
    """The tiny model's folder in the cache; trained on first use, once for each content of corpus and configuration."""
    key = corpus_hash(config, corpus_lines(config.seed, FINGERPRINT_ROWS))
    folder = tiny_folder(key)
    if (folder / MARKER).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".tiny-{key}.lock").open("w") as lock:
        # Whoever comes second waits for the first one's model instead of training it again.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / MARKER).is_file():
            progress("writing the corpus", 0, 1)
            pretrain(config, list(corpus_lines(config.seed, config.rows)), folder, progress)
    return folder


def settle_base(data: Path, model: str | None, progress: Progress, config: PretrainConfig | None = None) -> BaseModel:
    """The base model of a data folder: chosen on first use, the same ever after.

    Args:
      data: the data folder; the choice is written to `base.json` there, the tiny model's files to `base/`.
      model: a Hugging Face name or folder; None for the tiny model.
    Raises:
      ConfigError: a model that can't be had, or another one than this data folder was begun with.
    """
    # Learner and generator, each a process of its own, may come at the same time.
    with (data / ".base.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _settled(data, model, progress, config)


def _settled(data: Path, model: str | None, progress: Progress, config: PretrainConfig | None) -> BaseModel:
    chosen = read_pin(data)
    if chosen is not None:
        if model is not None and chosen.model != model:
            raise ConfigError(
                f"--model: got {model}, but this data folder was begun with {chosen.model or 'the tiny model'}; "
                "take a new --data folder for another model"
            )
        model = chosen.model
        folder = data / "base" if model is None else _resolve(model)
        base = _base(folder, model)
        if base.digest != chosen.digest:
            raise ConfigError(
                f"--model: the files in {folder.name} have changed since this data folder was begun; put them back"
            )
        return base
    if model is None:
        source = tiny_model(config or PretrainConfig(), progress)
        temporary = data / f".base.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        if not (data / "base").exists():
            temporary.rename(data / "base")
        shutil.rmtree(temporary, ignore_errors=True)
        folder = data / "base"
    else:
        folder = _resolve(model)
    base = _base(folder, model)
    write_pin(data, Pin(model, base.digest))
    return base


def _base(folder: Path, model: str | None) -> BaseModel:
    return BaseModel(folder, _digest(folder), TINY_LANGUAGE if model is None else None)


def _resolve(model: str) -> Path:
    """A local folder as it is, a hub name through the hub's cache (only the files that are read here)."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        # Imported here: the hub client is needed for hub names alone.
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        )

        try:
            folder = Path(snapshot_download(model, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
        except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise ConfigError(
                f"--model: got {model!r}, expected a local model folder or a hub name that can be reached "
                f"({type(error).__name__})"
            ) from error
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"--model: {folder.name} has no .safetensors file; convert it first (pickled weights are not opened)"
        )
    return folder


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".json", ".txt", ".model"):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def load_policy(base: BaseModel, store: PolicyStore | None = None, version: str | None = None) -> LanguagePolicy:
    """The base model as a policy, with a version's weights in it if one is named.

    Up to 20 million parameters everything is trained; beyond that rank-8 LoRA adapters on every linear layer. bf16 on a
    GPU for the large ones. Raises ConfigError for a model that can't be loaded, StoreError for a refused version."""
    where = device()
    model = _network(base)
    parameters = sum(p.numel() for p in model.parameters())
    reference: nn.Module | None = None
    if parameters <= WHOLE_PARAMETERS:
        reference = _network(base).requires_grad_(False)
    else:
        model = _with_adapters(model)
    codec = TextCodec.load(base.folder)
    model.to(where).eval()
    if reference is not None:
        reference.to(where).eval()
    policy = LanguagePolicy(model, codec, reference, where, brief=(base.folder / MARKER).is_file())
    if version is not None and store is not None:
        load_version(policy, base, store, version)
    return policy


def _network(base: BaseModel) -> nn.Module:
    quiet_transformers()
    dtype = torch.float32
    try:
        described = json.loads((base.folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model: {base.folder.name} has no config.json that can be read ({error})") from error
    if "auto_map" in described:
        raise ConfigError(
            f"--model: {base.folder.name} needs code of its own (auto_map), which is never run; choose another model"
        )
    try:
        network = AutoModelForCausalLM.from_pretrained(
            base.folder, trust_remote_code=False, use_safetensors=True, local_files_only=True, dtype=dtype
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"--model: {base.folder.name} is no causal language model that can be loaded ({error})"
        ) from error
    if device().type == "cuda" and sum(p.numel() for p in network.parameters()) > WHOLE_PARAMETERS:
        network = network.bfloat16()
    return network


def _with_adapters(model: nn.Module) -> nn.Module:
    with torch.random.fork_rng(), warnings.catch_warnings():
        # The adapters' first values are part of the base: every process must draw the same.
        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        # peft asks transformers for a property that the latter has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        return get_peft_model(model, config)


def load_version(policy: LanguagePolicy, base: BaseModel, store: PolicyStore, version: str) -> None:
    """Put a stored version's weights into a policy; on a StoreError the policy is as it was."""
    tensors = store.policy_tensors(version, policy.trainable(), base.digest)
    policy.put(tensors)
    policy.version = version
