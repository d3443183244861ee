"""The policy store: immutable, content-addressed policy versions in one folder each.

    DIR/policies/000007-3fa1b2c4d5e6/{policy.safetensors, critic.safetensors, manifest.json}

A version is written under a temporary name, the manifest last, then renamed: a folder with a manifest is whole. What is
read is checked against the manifest byte for byte before it is used; only safetensors are ever opened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from safetensors import SafetensorError

from optimizer.errors import StoreError
from optimizer.files import sync_folder, write_new
from optimizer.ids import version_order
from optimizer.stream.guarded import UNREADABLE
from optimizer.types import Scalar

if TYPE_CHECKING:
    # torch takes seconds and hundreds of megabytes; a server that only reads critics and checks files needs none of it.
    from torch import Tensor

VERSION = re.compile(r"\d{6,}-[0-9a-f]{12}")
FILES = ("policy.safetensors", "critic.safetensors")
MANIFEST = "manifest.json"


class FileEntry(Struct, frozen=True):
    """One file of a version: SHA-256 of its bytes in hexadecimal, and how many they are."""

    sha256: str
    bytes: int


class Manifest(Struct, frozen=True):
    """What a version is made of. Producer: learner. Consumers: serving, generator, learner. `parent` is None for the
    reference; `base` names the model that the weights belong to; `facts` are the learner's figures when it was made."""

    version: str
    sequence: int
    content_hash: str
    parent: str | None
    base: str
    files: dict[str, FileEntry]
    created_ts: int
    facts: dict[str, Scalar | None]
    schema: int = 1


class PolicyStore:
    """One folder of versions. Several processes may read; one writes."""

    def __init__(self, root: Path, keep: int = 40) -> None:
        """`keep`: versions that `prune` leaves beside those it is told to protect."""
        self.root = root
        self.keep = keep
        root.mkdir(parents=True, exist_ok=True)

    def versions(self) -> list[str]:
        """Whole versions, oldest first; folders without a manifest (a write cut short) are ignored."""
        names = [
            entry.name for entry in self.root.iterdir() if VERSION.fullmatch(entry.name) and not entry.is_symlink()
        ]
        return sorted((name for name in names if (self.root / name / MANIFEST).is_file()), key=version_order)

    def uri(self, version: str) -> str:
        return f"policies/{version}"

    def publish(
        self,
        policy: Mapping[str, Tensor],
        critic: bytes,
        *,
        parent: str | None,
        base: str,
        created_ts: int,
        facts: Mapping[str, Scalar | None],
        after: int = -1,
    ) -> Manifest:
        """Write a version, numbered after all in the store and after `after`. Raises StoreError for weights that are
        not finite, OSError where the disk refuses (nothing is left)."""
        import torch
        from safetensors.torch import save

        for name, tensor in policy.items():
            if not bool(torch.isfinite(tensor).all()):
                raise StoreError(
                    f"policy.safetensors: {name} holds NaN or infinite weights; the version is not published"
                )
        contents = {
            "policy.safetensors": save({k: v.detach().cpu().contiguous() for k, v in policy.items()}),
            "critic.safetensors": critic,
        }
        files = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()}
        content_hash = _content_hash(base, files)
        known = self.versions()
        sequence = max(after, version_order(known[-1]) if known else -1) + 1
        version = f"{sequence:06d}-{content_hash[:12]}"
        manifest = Manifest(version, sequence, content_hash, parent, base, files, created_ts, dict(facts))
        temporary = self.root / f".{version}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            for name, data in contents.items():
                write_new(temporary / name, data)
            write_new(temporary / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest)))
            sync_folder(temporary)
            temporary.rename(self.root / version)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        try:
            sync_folder(self.root)
        except OSError:
            shutil.rmtree(self.root / version, ignore_errors=True)
            raise
        return manifest

    def manifest(self, version: str) -> Manifest:
        """Raises StoreError for a version that is not there or whose manifest is not its own."""
        path = self._folder(version) / MANIFEST
        if path.is_symlink():
            raise StoreError(f"policy {version}: {MANIFEST} is a link; it is refused")
        try:
            manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
        except FileNotFoundError as error:
            raise StoreError(
                f"policy {version}: not in the store; choose one of /v1/policies whose files are kept"
            ) from error
        except (*UNREADABLE, OSError) as error:
            raise StoreError(f"policy {version}: {MANIFEST} can't be read ({error}); the version is refused") from error
        if (
            manifest.version != version
            or not version.endswith(f"-{manifest.content_hash[:12]}")
            or set(manifest.files) != set(FILES)
            or _content_hash(manifest.base, manifest.files) != manifest.content_hash
        ):
            raise StoreError(f"policy {version}: {MANIFEST} does not describe this version; it is refused")
        return manifest

    def critic_bytes(self, version: str) -> bytes:
        return self._read(self.manifest(version), "critic.safetensors")

    def check(self, version: str) -> None:
        """Read every file of the version. Raises StoreError where one is missing or differs from the manifest."""
        manifest = self.manifest(version)
        for name in FILES:
            self._read(manifest, name)

    def policy_tensors(self, version: str, expected: Mapping[str, Tensor], base: str) -> dict[str, Tensor]:
        """The version's weights, checked against `expected` (names, shapes, dtypes) and finite.

        Raises StoreError with what differs: another base model or tokenizer, a missing or extra tensor, NaN."""
        import torch
        from safetensors.torch import load

        manifest = self.manifest(version)
        if manifest.base != base:
            raise StoreError(
                f"policy {version}: made for base model {manifest.base}, this one is {base}; start with that model"
            )
        try:
            tensors = load(self._read(manifest, "policy.safetensors"))
        except SafetensorError as error:
            raise StoreError(f"policy {version}: policy.safetensors is damaged ({error}); it is refused") from error
        if set(tensors) != set(expected):
            odd = min(set(tensors) ^ set(expected))
            raise StoreError(
                f"policy {version}: tensor {odd} is {'extra' if odd in tensors else 'missing'}; it is refused"
            )
        for name, tensor in tensors.items():
            want = expected[name]
            if tensor.shape != want.shape or tensor.dtype != want.dtype:
                raise StoreError(
                    f"policy {version}: {name} is {tensor.dtype}{list(tensor.shape)}, "
                    f"expected {want.dtype}{list(want.shape)}; it is refused"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise StoreError(f"policy {version}: {name} holds NaN or infinite weights; it is refused")
        return tensors

    def prune(self, protect: set[str]) -> None:
        """Remove all but the newest `keep` versions and the protected ones; the reference (sequence 0) stays."""
        for version in self.versions()[: -self.keep]:
            if version not in protect and version_order(version) != 0:
                shutil.rmtree(self._folder(version))

    def _folder(self, version: str) -> Path:
        if not VERSION.fullmatch(version):
            raise StoreError(
                f"policy {version!r}: no version's name; expected digits, a dash and 12 hexadecimal digits"
            )
        folder = self.root / version
        if folder.is_symlink() or not folder.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"policy {version}: a link out of the store; it is refused")
        return folder

    def _read(self, manifest: Manifest, name: str) -> bytes:
        path = self._folder(manifest.version) / name
        if path.is_symlink():
            raise StoreError(f"policy {manifest.version}: {name} is a link; it is refused")
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"policy {manifest.version}: {name} is missing; the version is refused") from error
        except OSError as error:
            raise StoreError(f"policy {manifest.version}: {name} can't be read ({error}); it is refused") from error
        entry = manifest.files[name]
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise StoreError(
                f"policy {manifest.version}: {name} differs from its manifest ({len(data)} bytes); it is refused"
            )
        return data


def _content_hash(base: str, files: Mapping[str, FileEntry]) -> str:
    listed = [base, *(f"{name}:{files[name].sha256}" for name in sorted(files))]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
