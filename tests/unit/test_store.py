"""The policy store: immutable versions, the damaged refused with the reason, a failed save that leaves nothing."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from optimizer.errors import StoreError
from optimizer.store import FileEntry, Manifest, PolicyStore

WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
CRITIC = b"critic"


def publish(
    store: PolicyStore, weights: Mapping[str, Tensor] = WEIGHTS, base: str = "base", bump: float = 0.0
) -> Manifest:
    moved = {name: value + bump for name, value in weights.items()}
    return store.publish(moved, CRITIC, parent=None, base=base, created_ts=7, facts={"kl": 0.5})


@pytest.fixture
def store(tmp_path: Path) -> PolicyStore:
    return PolicyStore(tmp_path / "policies")


def content_hash(base: str, files: Mapping[str, FileEntry]) -> str:
    listed = [base, *(f"{name}:{files[name].sha256}" for name in sorted(files))]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def forge(store: PolicyStore, policy: bytes, base: str = "base", critic: bytes = CRITIC) -> str:
    """A version whose manifest agrees with whatever bytes it is given: only the content itself can be refused."""
    contents = {"policy.safetensors": policy, "critic.safetensors": critic}
    files = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()}
    digest = content_hash(base, files)
    version = f"000009-{digest[:12]}"
    folder = store.root / version
    folder.mkdir()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    manifest = Manifest(version, 9, digest, None, base, files, 7, {})
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return version


def test_what_was_published_comes_back(store: PolicyStore) -> None:
    manifest = publish(store)
    assert store.versions() == [manifest.version]
    assert manifest.version == f"000000-{manifest.content_hash[:12]}"
    assert store.manifest(manifest.version) == manifest
    back = store.policy_tensors(manifest.version, WEIGHTS, "base")
    assert all(torch.equal(back[name], WEIGHTS[name]) for name in WEIGHTS)
    assert store.critic_bytes(manifest.version) == CRITIC
    second = publish(store, bump=1.0)
    assert store.versions() == [manifest.version, second.version]
    assert PolicyStore(store.root).versions() == store.versions()


def test_the_hash_names_the_content(store: PolicyStore) -> None:
    one, same, other = publish(store), publish(store), publish(store, bump=0.5)
    assert one.content_hash == same.content_hash != other.content_hash
    assert publish(store, base="another").content_hash != one.content_hash


def test_a_pickle_is_refused_unopened(store: PolicyStore, tmp_path: Path) -> None:
    witness = tmp_path / "opened"

    class Bomb:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(witness),)

    version = forge(store, pickle.dumps(Bomb()))
    with pytest.raises(StoreError, match=r"policy\.safetensors is damaged"):
        store.policy_tensors(version, WEIGHTS, "base")
    assert not witness.exists()


def bytes_with_header(header: Mapping[str, object], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


OVERLAP = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
}
HOLE = {
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
}


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"", id="empty"),
        pytest.param(save(WEIGHTS)[:-5], id="truncated"),
        pytest.param((2**60).to_bytes(8, "little") + b"{}", id="header too long"),
        pytest.param((500_000_000).to_bytes(8, "little") + save(WEIGHTS)[8:], id="header over the file"),
        pytest.param(bytes_with_header(OVERLAP, bytes(12)), id="overlapping offsets"),
        pytest.param(bytes_with_header(HOLE, bytes(12)), id="hole between offsets"),
        pytest.param(b"\x02\x00\x00\x00\x00\x00\x00\x00\xff\xff", id="header no text"),
    ],
)
def test_damaged_safetensors_are_refused(store: PolicyStore, damaged: bytes) -> None:
    with pytest.raises(StoreError, match=r"policy\.safetensors is damaged"):
        store.policy_tensors(forge(store, damaged), WEIGHTS, "base")


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"a": WEIGHTS["a"]}, "tensor b is missing"),
        ({**WEIGHTS, "c": torch.ones(1)}, "tensor c is extra"),
        ({**WEIGHTS, "b": torch.ones(5)}, r"b is torch.float32\[5\], expected torch.float32\[4\]"),
        ({**WEIGHTS, "b": torch.ones(4, dtype=torch.float64)}, r"b is torch.float64\[4\]"),
        ({**WEIGHTS, "b": torch.tensor([1.0, torch.nan, 1.0, 1.0])}, "b holds NaN or infinite"),
        ({**WEIGHTS, "b": torch.tensor([1.0, torch.inf, 1.0, 1.0])}, "b holds NaN or infinite"),
    ],
    ids=["missing", "extra", "shape", "dtype", "nan", "inf"],
)
def test_weights_that_are_not_the_models_are_refused(
    store: PolicyStore, weights: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(StoreError, match=reason):
        store.policy_tensors(forge(store, save(weights)), WEIGHTS, "base")


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_never_published(store: PolicyStore, broken: float) -> None:
    with pytest.raises(StoreError, match="a holds NaN"):
        publish(store, {**WEIGHTS, "a": torch.full((2, 3), broken)})
    assert list(store.root.iterdir()) == []


def test_another_base_is_refused(store: PolicyStore) -> None:
    version = publish(store).version
    with pytest.raises(StoreError, match=r"made for base model base, this one is other"):
        store.policy_tensors(version, WEIGHTS, "other")


@pytest.mark.parametrize("name", ["policy.safetensors", "critic.safetensors"])
def test_a_flipped_bit_a_missing_file_and_a_folder_in_its_place_are_refused(store: PolicyStore, name: str) -> None:
    version = publish(store).version
    path = store.root / version / name

    def read() -> object:
        if name.startswith("critic"):
            return store.critic_bytes(version)
        return store.policy_tensors(version, WEIGHTS, "base")

    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{name} differs from its manifest"):
        read()
    path.unlink()
    with pytest.raises(StoreError, match=f"{name} is missing"):
        read()
    path.mkdir()
    with pytest.raises(StoreError, match=f"{name} can't be read"):
        read()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: b"{", "can't be read"),
        (lambda m: b"\xff", "can't be read"),
        (lambda m: msgspec.json.encode(m).replace(b'":"base"', b'":"\xff"'), "can't be read"),
        (lambda m: b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "can't be read"),
        (lambda m: msgspec.json.encode(msgspec.structs.replace(m, version="000001-000000000000")), "does not describe"),
        (lambda m: msgspec.json.encode(msgspec.structs.replace(m, content_hash="0" * 64)), "does not describe"),
        (lambda m: msgspec.json.encode(msgspec.structs.replace(m, files={})), "does not describe"),
        (lambda m: msgspec.json.encode(msgspec.structs.replace(m, base="sly")), "does not describe"),
    ],
    ids=["cut", "no text", "a text of none", "deep nesting", "version", "hash", "files", "base"],
)
def test_a_manifest_that_is_not_its_versions_own_is_refused(
    store: PolicyStore, spoil: Callable[[Manifest], bytes], reason: str
) -> None:
    manifest = publish(store)
    (store.root / manifest.version / "manifest.json").write_bytes(spoil(manifest))
    with pytest.raises(StoreError, match=reason):
        store.critic_bytes(manifest.version)


def test_other_content_under_a_versions_name_is_refused(store: PolicyStore) -> None:
    # Every file agrees with its manifest, but not with the hash in the name.
    real, forged = publish(store), forge(store, save({name: value + 1 for name, value in WEIGHTS.items()}))
    manifest = msgspec.structs.replace(store.manifest(forged), version=real.version)
    shutil.rmtree(store.root / real.version)
    (store.root / forged).rename(store.root / real.version)
    (store.root / real.version / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(StoreError, match="does not describe"):
        store.policy_tensors(real.version, WEIGHTS, "base")


def test_a_half_written_folder_is_ignored_and_its_number_may_be_used(store: PolicyStore) -> None:
    first = publish(store)
    half = store.root / "000001-abcdefabcdef"
    half.mkdir()
    (half / "policy.safetensors").write_bytes(b"half")
    (store.root / ".000001-abcdefabcdef.99").mkdir()
    assert store.versions() == [first.version]
    assert publish(store, bump=1.0).sequence == 1
    with pytest.raises(StoreError, match="not in the store"):
        store.manifest(half.name)


@pytest.mark.parametrize(
    "name", ["..", "../../etc", "000001-zz", "/etc/passwd", "", "000000-000000000000/../x", "latest"]
)
def test_a_name_that_is_no_version_is_refused_before_the_disk_is_touched(store: PolicyStore, name: str) -> None:
    with pytest.raises(StoreError, match="no version's name"):
        store.manifest(name)


def test_links_out_of_the_store_are_refused(store: PolicyStore, tmp_path: Path) -> None:
    outside = PolicyStore(tmp_path / "elsewhere")
    away = publish(outside, bump=3.0).version
    (store.root / away).symlink_to(outside.root / away)
    assert store.versions() == []
    with pytest.raises(StoreError, match="link out of the store"):
        store.policy_tensors(away, WEIGHTS, "base")
    inside = publish(store).version
    path = store.root / inside / "policy.safetensors"
    moved = tmp_path / "weights"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(StoreError, match="is a link"):
        store.policy_tensors(inside, WEIGHTS, "base")
    told = store.root / inside / "manifest.json"
    told.rename(tmp_path / "told")
    told.symlink_to(tmp_path / "told")
    with pytest.raises(StoreError, match=r"manifest\.json is a link"):
        store.manifest(inside)
    PolicyStore(store.root, keep=1).prune(set())
    assert (outside.root / away).is_dir()


def files_below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("after", range(5))
def test_a_full_disk_leaves_the_previous_versions_and_nothing_else(
    store: PolicyStore, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    publish(store)
    before = files_below(store.root)
    real, calls = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            publish(store, bump=1.0)
    assert calls == after + 1
    assert files_below(store.root) == before
    assert len(list(store.root.iterdir())) == 1
    assert publish(store, bump=1.0).sequence == 1


def test_a_write_that_fails_leaves_nothing(store: PolicyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(store)
    before = files_below(store.root)
    real = os.open

    def full(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if Path(path).name == "critic.safetensors" and flags & os.O_CREAT:
            raise OSError(28, "No space left on device")
        return real(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            publish(store, bump=1.0)
    assert files_below(store.root) == before
    assert len(list(store.root.iterdir())) == 1


def test_prune_keeps_the_newest_the_reference_and_the_protected(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path, keep=2)
    versions = [publish(store, bump=float(at)).version for at in range(6)]
    store.prune({versions[2]})
    assert store.versions() == [versions[0], versions[2], versions[4], versions[5]]
