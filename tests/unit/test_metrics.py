"""The list of metrics is the truth: names are unique, well formed, and what the code exports is on it."""

from __future__ import annotations

import re
from pathlib import Path

from optimizer.metrics import METRICS, table

ROOT = Path(__file__).parents[2]


def test_names_are_unique_and_prometheus_names() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"adloop_[a-z_]+", name) for name in names)
    assert all(metric.unit and metric.meaning for metric in METRICS)


def test_every_metric_in_the_code_is_listed() -> None:
    found: dict[str, Path] = {}
    for path in [*(ROOT / "serving").rglob("*.py"), *(ROOT / "optimizer").rglob("*.py")]:
        if path.name != "metrics.py":
            found |= dict.fromkeys(re.findall(r'"(adloop_[a-z_]+)"', path.read_text(encoding="utf-8")), path)
    listed = {metric.name for metric in METRICS}
    assert {name: path.name for name, path in found.items() if name not in listed} == {}
    assert {name for name in listed if name not in found} == set()


def test_the_table_has_a_row_for_each() -> None:
    lines = table().splitlines()
    assert len(lines) == len(METRICS) + 2
    assert all(line.count("|") == 6 for line in lines)
