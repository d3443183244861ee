"""bench/update.py measures what it names, on a model of any size."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.update import measure, timed


def test_every_part_is_measured_beside_its_baseline(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Few texts: what is looked at here is who is measured and what is said of it, not how fast they are.
    monkeypatch.setattr("bench.update.SAMPLES", 8)
    measure(1, tmp_path, str(tiny_model_folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("64 texts, ")
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "both: TRL's GRPO step that samples, beta 0.04",
        "both: adloop, sample and an increment",
        "sample: adloop",
        "sample: transformers generate",
        "update: TRL's GRPO step, beta 0",
        "update: TRL's GRPO step, beta 0.04",
        "update: adloop, 1 gradient step",
        "update: adloop, a default increment (128 and 64)",
        "update: adloop, an increment (256 samples, 64 favourites)",
    ]
    assert all(line.rstrip().endswith(" x") for line in lines[2:])
    # A baseline is as fast as itself.
    assert all(lines[at].split()[-4::2] == ["1.00", "1.00"] for at in (2, 5, 7))


def test_works_take_turns() -> None:
    done: list[str] = []
    times = timed({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2)
    assert done == ["a", "b"] * 3
    assert set(times) == {"a", "b"}
