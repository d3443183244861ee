"""The files in a data folder by which operators and the learner, perhaps other processes, stop learning and go on."""

from __future__ import annotations

from pathlib import Path

PAUSE_FILE = "learner.paused"  # there or not: its content says nothing
HALT_FILE = "learner.halted"  # why the sentinel has halted learning
RESUME_FILE = "learner.resumed"  # when an operator resumed from a halt last, Unix ms


REASONS = {
    "kl": "from the reference, over its budget",
    "kl_step": "a single version moved by",
    "entropy": "entropy of",
    "length": "times as long as the first model's",
    "duplicates": "of the samples repeat another",
    "rejected": "the gate refuses",
    "bait": "clicks are up",
}
"""Each reason for which the sentinel halts, and what its phrase (maths/sentinel.py) always says."""


def reason_of(why: str) -> str:
    """The name of the reason that the sentinel's phrase tells; "other" for any other."""
    return next((name for name, said in REASONS.items() if said in why), "other")


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
