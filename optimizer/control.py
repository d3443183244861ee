"""The files in a data folder by which operators and the learner, perhaps other processes, stop learning and go on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from optimizer.files import write_whole
from optimizer.types import HALT_REASONS, HaltReason

PAUSE_FILE = "learner.paused"  # there or not: its content says nothing
HALT_FILE = "learner.halted"  # why the sentinel has halted learning: `REASON: SENTENCE`
RESUME_FILE = "learner.resumed"  # when an operator resumed from a halt last, Unix ms

OTHER = "other"
"""The reason of a halt file in which the sentinel's reason does not stand."""
SAID_BEFORE: dict[HaltReason, str] = {
    "kl": "from the reference, over its budget",
    "kl_step": "a single version moved by",
    "entropy": "entropy of",
    "length": "times as long as the first model's",
    "duplicates": "of the samples repeat another",
    "rejected": "the gate refuses",
    "bait": "clicks are up",
}
"""What the sentences of versions that wrote no reason always said, for files that they left behind."""


class HaltNote(NamedTuple):
    """Why learning is halted: `reason`, one of HALT_REASONS or OTHER, and `why`, a sentence for people."""

    reason: str
    why: str


def write_halt(data: Path, reason: HaltReason, why: str) -> None:
    """Leave word, for all processes and after a restart, that the sentinel has halted learning."""
    write_whole(data / HALT_FILE, f"{reason}: {why}\n".encode())


def read_halt(data: Path) -> HaltNote | None:
    """Why learning is halted; None where it is not. A file that is there halts, whatever it says."""
    try:
        said = (data / HALT_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    reason, _, why = said.partition(": ")
    if reason in HALT_REASONS and why:
        return HaltNote(reason, why)
    old = next((name for name, phrase in SAID_BEFORE.items() if phrase in said), OTHER)
    return HaltNote(old, said or "no reason was kept")


def halt_reason(data: Path) -> str:
    """Why the sentinel has halted learning, the sentence; empty where it has not."""
    note = read_halt(data)
    return "" if note is None else note.why


def resumed_ms(data: Path) -> int | None:
    """When an operator resumed last, Unix ms; None where that is not known."""
    try:
        return int((data / RESUME_FILE).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return None
