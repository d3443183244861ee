"""The files in a data folder by which operators and the learner, perhaps other processes, stop learning and go on."""

from __future__ import annotations

from pathlib import Path

PAUSE_FILE = "learner.paused"  # there or not: its content says nothing
HALT_FILE = "learner.halted"  # why the sentinel has halted learning
RESUME_FILE = "learner.resumed"  # when an operator resumed from a halt last, Unix ms


def halt_reason(data: Path) -> str:
    """Why the sentinel has halted learning; empty where it has not."""
    try:
        return (data / HALT_FILE).read_text(encoding="utf-8").strip() or "no reason was kept"
    except FileNotFoundError:
        return ""


def resumed_ms(data: Path) -> int | None:
    """When an operator resumed last, Unix ms; None where that is not known."""
    try:
        return int((data / RESUME_FILE).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None


def put_file(path: Path, text: str) -> None:
    """Write a small file, whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
