"""Files that are there whole or not at all: what stands after a disk that fills up, and who wins of many writers."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from optimizer.errors import ConfigError
from optimizer.files import lock_alone, sync_folder, unused_beside, write_new, write_whole

OLD, NEW = b"old" * 1000, b"new" * 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(OLD)
    return tmp_path / "file"


def alone(path: Path) -> bool:
    return [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("durable", [True, False])
def test_it_is_written_and_replaced(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    for data in (OLD, NEW, b""):
        write_whole(path, data, durable)
        assert path.read_bytes() == data
        assert alone(path)


def test_durable_flushes_content_before_the_name_and_then_the_folder(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "content")
        sync(handle)

    def replaced(one: str | Path, other: str | Path) -> None:
        steps.append("name")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_whole(path, NEW)
    assert steps == ["content", "name", "folder"]
    steps.clear()
    write_whole(path, OLD, durable=False)
    assert steps == ["name"]


@pytest.mark.parametrize("broken", ["open", "fsync", "replace"])
def test_a_disk_that_refuses_leaves_the_old_content_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, full)
        with pytest.raises(OSError, match="No space left"):
            write_whole(path, NEW)
    assert path.read_bytes() == OLD
    assert alone(path)
    write_whole(path, NEW)
    assert path.read_bytes() == NEW


def test_a_signal_in_the_middle_leaves_no_draft(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, NEW)
    assert path.read_bytes() == OLD
    assert alone(path)


def test_a_reader_never_sees_a_part_of_one_of_many_writers(path: Path) -> None:
    contents = {OLD, *(bytes([65 + number]) * 50_000 for number in range(4))}
    done = threading.Event()

    def write(data: bytes) -> None:
        for _ in range(50):
            write_whole(path, data, durable=False)

    writers = [threading.Thread(target=write, args=(data,)) for data in contents]
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    done.set()
    reader.join()
    assert seen
    assert seen <= contents
    assert path.read_bytes() in contents
    assert alone(path)


def test_a_link_is_replaced_and_not_followed(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    write_whole(link, NEW)
    assert not link.is_symlink()
    assert (path.read_bytes(), link.read_bytes()) == (OLD, NEW)


def test_permissions_are_those_of_any_new_file(path: Path) -> None:
    """Not those of a temporary file: another user's process reads them as well."""
    write_whole(path, NEW)
    usual = path.with_name("usual")
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_new_file_takes_nobodys_place(path: Path) -> None:
    with pytest.raises(FileExistsError):
        write_new(path, NEW)
    assert path.read_bytes() == OLD
    secret = path.with_name("secret")
    write_new(secret, NEW, mode=0o600)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_names_beside_a_file_are_hidden_and_its_own(path: Path) -> None:
    names = {unused_beside(path) for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == path.parent and name.name.startswith(".file.") for name in names)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "away" / "file", NEW)
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "away")


def test_a_lock_keeps_others_out_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with lock_alone(path, "data d", "somebody has it", "--data"):
        for _ in range(2):
            with pytest.raises(ConfigError, match=r"^data d: somebody has it$"):
                lock_alone(path, "data d", "somebody has it", "--data")
    lock_alone(path, "data d", "somebody has it", "--data").close()


def test_a_folder_that_cannot_be_locked_is_told_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^data d: the folder can't be used \(.*\); choose another --data$"):
        lock_alone(tmp_path / "file" / "lock", "data d", "somebody has it", "--data")

    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(ConfigError, match=r"^data d: files can't be locked there .*; take another disk's --data$"):
        lock_alone(tmp_path / "lock", "data d", "somebody has it", "--data")
