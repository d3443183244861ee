"""Files that are there whole or not at all, also after a crash and, where it is asked for, a power cut; and a lock."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

from optimizer.errors import ConfigError


def write_whole(path: Path, data: bytes, durable: bool = True) -> None:
    """Put `data` under `path`: whoever reads it sees the old content or the new, never a part, however many write at
    once; the last one stands. A link is replaced, not followed. `durable`: it also outlives a power cut.

    Raises OSError where the disk refuses; then the old content stands, and nothing else is left. Where only the
    folder could not be flushed, the new one stands and may not outlive a power cut."""
    draft = unused_beside(path)
    write_new(draft, data, durable)
    try:
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_new(path: Path, data: bytes, durable: bool = True, mode: int = 0o666) -> None:
    """Write a file that must not be there yet, with the permissions `mode` (less the umask). `durable`: on the disk
    when this returns, though its name only after `sync_folder`. Raises OSError; then, as after a signal, no part of it
    is left."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def lock_alone(path: Path, name: str, taken: str, option: str) -> IO[bytes]:
    """Keep everyone else who asks for `path` out, in this process and others, until the result is closed or the process
    ends. Makes the folder. Raises ConfigError, "NAME: TAKEN" where somebody else has it, and where the folder can't be
    used or has no file locks, with the option that names another one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("ab")
    except OSError as error:
        raise ConfigError(f"{name}: the folder can't be used ({error}); choose another {option}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(f"{name}: {taken}") from None
    except OSError as error:
        lock.close()
        raise ConfigError(f"{name}: files can't be locked there ({error}); take another disk's {option}") from error
    return lock


def unused_beside(path: Path) -> Path:
    """A hidden name in the same folder, which no other call gets."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def sync_folder(folder: Path) -> None:
    """What was made, renamed and removed in the folder outlives a power cut once this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
