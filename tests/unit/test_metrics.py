"""The list of metrics is the truth: names are unique, well formed, spelt nowhere else and all used; the page is its."""

from __future__ import annotations

import re
from pathlib import Path

from optimizer import metrics
from optimizer.metrics import METRICS, Metric, page, table

ROOT = Path(__file__).parents[2]
CODE = [
    path
    for folder in ("optimizer", "serving", "simulators", "bench", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path != ROOT / "optimizer/metrics.py"
]


def test_names_are_unique_and_prometheus_names() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"adloop_[a-z_]+", name) for name in names)
    assert all(metric.unit and metric.meaning for metric in METRICS)


def test_no_other_module_spells_a_metrics_name() -> None:
    name = re.compile(rf"\b({'|'.join(metric.name for metric in METRICS)})(_total|_bucket|_sum|_count)?\b")
    spelt = {str(path.relative_to(ROOT)): name.findall(path.read_text(encoding="utf-8")) for path in CODE}
    assert {path: found for path, found in spelt.items() if found} == {}


def test_every_metric_is_used() -> None:
    used = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in CODE)))
    constants = {name for name, value in vars(metrics).items() if isinstance(value, Metric)}
    assert len(constants) == len(METRICS) > 30
    assert constants - used == set()


def test_the_table_has_a_row_for_each() -> None:
    lines = table().splitlines()
    assert len(lines) == len(METRICS) + 2
    assert all(line.count("|") == 6 for line in lines)


def test_the_page_is_what_the_table_makes() -> None:
    shown = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert shown == page(), "run: python -m optimizer.metrics > docs/metrics.md"
    assert all(f"| `{metric.name}` |" in shown for metric in METRICS)
