from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from optimizer.maths.proportions import wilson
from simulators.compare_report import drawn
from simulators.report import write_compare_report, write_report
from simulators.results import (
    CompareCurve,
    CompareRow,
    CurvePoint,
    DemoResult,
    KLPoint,
    SegmentRow,
    TextPair,
    TrafficBin,
)
from simulators.settings import NAMES

BINS, BIN = 30, 400


def example() -> DemoResult:
    """A plausible run: learning rises from control's level towards the oracle."""
    curve, traffic, kl = [], [], []
    for n in range(BINS):
        rate = 0.04 + 0.10 * (1 - math.exp(-n / 8)) + 0.004 * math.sin(2.1 * n)
        found = wilson(round(rate * BIN), BIN)
        assert found is not None
        curve.append(CurvePoint((n + 1) * BIN, found.value, found.low, found.high, 0.041 + 0.002 * math.cos(n)))
        traffic.append(TrafficBin((n + 1) * BIN, {"control": 20, f"v{n:02}": 300, f"v{max(0, n - 1):02}": 80}))
        kl.append(KLPoint((n + 1) * BIN, 7.4 * (1 - math.exp(-n / 10))))
    texts = (
        TextPair("trail-runner", "commuters", "Light and waterproof", "Dry feet, <b>every</b> mile", 0.04, 0.14),
        TextPair("kettle", "students", "A kettle for every kitchen", "Tea in 90 seconds. From $29.", 0.031, 0.092),
        TextPair("desk-lamp", "all", "The Lumen desk lamp", "Work late without tired eyes: Lumen", None, None),
    )
    rows = tuple(SegmentRow("trail-runner", s, 600, 0.04, 0.13, 0.22) for s in ("commuters", "students", "parents"))
    return DemoResult(
        7, BINS * BIN, 0.0402, 0.1389, 0.21, 2.455, (2.01, 2.98), 0.9934, 7.1, 8.0, 287.4,
        tuple(curve), tuple(kl), tuple(traffic), texts, rows, ("True rates.", "The interval is Fieller's."),
    )  # fmt: skip


class Structure(HTMLParser):
    """Which tags a document has, what it loads from elsewhere, and whether every tag is closed."""

    VOID = frozenset({"meta", "br", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def written(path: Path) -> Structure:
    page = Structure(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    return page


def test_a_demo_report_stands_alone_and_says_what_was_found(tmp_path: Path) -> None:
    path = write_report(example(), tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    page = written(path)
    text = " ".join(page.text)
    for said in (
        "+246%",
        "95% interval +201% to +298%",
        "138.9",
        "40.2",
        "7.10",
        "within its budget of 8 nats",
        "99.3%",
    ):
        assert said in text
    assert "4 min 47 s" in text
    assert "12,000" in text
    # Text of ads is text: the tag in it is none.
    assert "Dry feet, <b>every</b> mile" in text
    assert "b" not in page.tags
    assert page.tags.count("svg") == 7  # the mark, and three charts with an inner viewport each


def test_a_report_of_next_to_nothing_is_still_a_report(tmp_path: Path) -> None:
    bare = replace(
        example(),
        lift=None,
        lift_interval=None,
        oracle_ctr=0.0,
        curve=(),
        kl_curve=(),
        traffic=(),
        texts=(),
        segments=(),
    )
    text = " ".join(written(write_report(bare, tmp_path / "r.html")).text)
    assert "Too few clicks to tell yet" in text
    assert text.count("No data yet") == 3
    one = replace(example(), curve=example().curve[:1], kl_curve=example().kl_curve[:1], traffic=example().traffic[:1])
    assert "No data yet" not in " ".join(written(write_report(one, tmp_path / "r.html")).text)


def test_a_far_off_oracle_does_not_press_the_curves_flat(tmp_path: Path) -> None:
    near = " ".join(written(write_report(example(), tmp_path / "r.html")).text)
    assert "Oracle, 210.0" in near
    assert "above the chart" not in near
    far = " ".join(written(write_report(replace(example(), oracle_ctr=0.9), tmp_path / "r.html")).text)
    assert "Oracle, 900.0, above the chart" in far


def test_versions_are_called_by_their_number(tmp_path: Path) -> None:
    traffic = (TrafficBin(100, {"control": 5, "000012-abcdef": 50}), TrafficBin(200, {"000013-fedcba": 50}))
    text = " ".join(written(write_report(replace(example(), traffic=traffic), tmp_path / "r.html")).text)
    assert "Version 12" in text
    assert "Version 13" in text


def test_a_kl_over_its_budget_is_called_so(tmp_path: Path) -> None:
    page = written(write_report(replace(example(), kl=8.4), tmp_path / "r.html"))
    assert "over its budget of 8 nats" in " ".join(page.text)


def test_a_comparison_ranks_by_mean_rate_and_averages_seeds(tmp_path: Path) -> None:
    rows = [
        CompareRow(name, seed, 0.05 + gain / 2, 0.05 + gain + seed / 100, 0.3, 0.06, kl, valid, 12, 30.0)
        for name, gain, kl, valid in (("uniform", 0.0, 0.0, 1.0), ("adloop", 0.1, 6.0, 0.99))
        for seed in (1, 2)
    ]
    curves = [
        CompareCurve(r.name, r.seed, tuple((k * 100, r.last_tenth_ctr * k / 10) for k in range(1, 11))) for r in rows
    ]
    skipped = [{"name": "trl_grpo", "why": "the package <trl> is not installed"}]
    text = " ".join(written(write_compare_report(rows, curves, tmp_path / "c.html", skipped)).text)
    assert (
        "2 policies on the same arrivals, 2 seeds each. Skipped: trl_grpo (the package <trl> is not installed)." in text
    )
    assert text.index("adloop") < text.index("uniform")
    # 160 and 170: Student's t of one degree of freedom at 97.5 % is 12.706, the standard error 5.
    assert "165.0 (101.5 to 228.5)" in text
    assert "6.00 (6.00 to 6.00)" in text
    assert "adloop over each other policy" in text
    assert "At the end: adloop 165.0, uniform 65.0." in text


def test_a_chart_shows_the_best_of_each_kind_where_there_are_many() -> None:
    rates = {name: 0.01 * at for at, name in enumerate(NAMES)} | {"adloop": 0.001, "vw_bag_mtr_50": 0.9}
    rows = [CompareRow(name, 1, rate, rate, 0.3, rate, 0.0, 1.0, 12, 30.0) for name, rate in rates.items()]
    shown = drawn(rows)
    assert shown[:2] == ["adloop", "vw_bag_mtr_50"]
    assert set(shown[2:]) == {"trl_grpo", "reinforce", "best_of_50", "ucb_50", "thompson_50", "control"}
    assert drawn(rows[:3]) == [row.name for row in sorted(rows[:3], key=lambda row: -row.mean_ctr)]
