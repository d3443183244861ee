"""The loader of headline tests: groups, shrinkage, and an error that can be acted on for every unusable file."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import BadInput
from simulators.upworthy import (
    COLUMNS,
    file_relative_variance,
    read_arms,
    relative_variance,
    shrunk_rates,
    text_groups,
)

EXTRACT = (*COLUMNS[:2], "lede", "excerpt", *COLUMNS[2:4], "significance", "winner", "first_place", *COLUMNS[4:])
ORIGINAL = (
    *("", "created_at", "updated_at", "clickability_test_id", "excerpt", "headline", "lede", "slug", "eyecatcher_id"),
    *("impressions", "clicks", "significance", "first_place", "winner", "share_text", "square", "test_week"),
)
ROW = {
    "clickability_test_id": "t1",
    "headline": "What They Learned",
    "lede": '<p>Two lines,\nand a "quote"</p>',
    "impressions": "3000",
    "clicks": "40",
    "test_week": "201446",
    "eyecatcher_id": "i1",
}


def table(rows: list[dict[str, str]], columns: tuple[str, ...] = EXTRACT) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def rows(*changes: dict[str, str]) -> list[dict[str, str]]:
    return [ROW | change for change in changes]


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_arms(path)
    message = str(caught.value)
    assert str(path) in message
    assert "expected" in message
    return message


@pytest.mark.parametrize("columns", [EXTRACT, ORIGINAL], ids=["extract", "archive"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no-bom", "bom"])
def test_takes_every_form_of_the_file(tmp_path: Path, columns: tuple[str, ...], pack: type[bytes], mark: bytes) -> None:
    path = tmp_path / "tests.csv"
    path.write_bytes(pack(mark + table(rows({}, {"headline": "Ünïcode, “quoted”", "eyecatcher_id": ""}), columns)))
    first, second = read_arms(path)
    assert (first.test_id, first.eyecatcher_id, first.week, first.impressions, first.clicks) == (
        "t1",
        "i1",
        201446,
        3000,
        40,
    )
    assert (second.headline, second.eyecatcher_id) == ("Ünïcode, “quoted”", "")


def test_groups_hold_the_image_fixed_and_merge_equal_headlines(tmp_path: Path) -> None:
    path = tmp_path / "tests.csv"
    path.write_bytes(
        table(
            rows(
                {"headline": "A"},
                {"headline": "B", "impressions": "1000", "clicks": "10"},
                {"headline": "A", "impressions": "500", "clicks": "5"},  # the same headline with another excerpt
                {"headline": "C", "eyecatcher_id": "i2"},  # alone with its image
                {"headline": "D", "clickability_test_id": "t2"},
                {"headline": "E", "clickability_test_id": "t2", "impressions": "0", "clicks": "0"},  # never shown
            )
        )
    )
    grouped = text_groups(read_arms(path))
    (group,) = grouped.groups
    assert (group.test_id, group.eyecatcher_id) == ("t1", "i1")
    assert dict(zip(group.headlines, zip(group.impressions, group.clicks, strict=True), strict=True)) == {
        "A": (3500, 45),
        "B": (1000, 10),
    }
    assert (grouped.arms, grouped.dropped_rows) == (2, 0)


@pytest.mark.parametrize(("week", "kept"), [("201324", True), ("201325", False), ("201401", False), ("201402", True)])
def test_weeks_of_broken_randomisation_are_left_out(tmp_path: Path, week: str, kept: bool) -> None:
    path = tmp_path / "tests.csv"
    path.write_bytes(table(rows({"headline": "A", "test_week": week}, {"headline": "B", "test_week": week})))
    grouped = text_groups(read_arms(path))
    assert (len(grouped.groups), grouped.dropped_rows) == ((1, 0) if kept else (0, 2))
    assert len(text_groups(read_arms(path), keep_broken_weeks=True).groups) == 1


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    columns = tuple(name for name in EXTRACT if name != column)
    assert f"row 1, column {column}: got 0 of it" in refusal(tmp_path / "f.csv", table(rows({}), columns))


def test_a_repeated_column_is_named(tmp_path: Path) -> None:
    content = table(rows({})).replace(b"lede", b"clicks", 1)
    assert "row 1, column clicks: got 2 of it" in refusal(tmp_path / "f.csv", content)


@pytest.mark.parametrize(
    ("change", "place", "got"),
    [
        ({"impressions": "3000.5"}, "row 3, column impressions", "'3000.5'"),
        ({"impressions": ""}, "row 3, column impressions", "''"),
        ({"impressions": "-3"}, "row 3, column impressions", "'-3'"),
        ({"clicks": "many"}, "row 3, column clicks", "'many'"),
        ({"clicks": "1e3"}, "row 3, column clicks", "'1e3'"),
        ({"clicks": "٣"}, "row 3, column clicks", "'٣'"),  # a digit to Python, not to a csv of counts
        ({"clicks": "9" * 400}, "row 3, column clicks", "999"),
        ({"clicks": "3001"}, "row 3, column clicks", "3001 clicks of 3000 impressions"),
        ({"test_week": "2014"}, "row 3, column test_week", "2014"),
        ({"test_week": "201499"}, "row 3, column test_week", "201499"),
        ({"headline": "  "}, "row 3, column headline", "nothing"),
        ({"clickability_test_id": ""}, "row 3, column clickability_test_id", "nothing"),
    ],
)
def test_an_impossible_value_is_placed(tmp_path: Path, change: dict[str, str], place: str, got: str) -> None:
    # The row before it spans two lines: rows are counted, not lines.
    message = refusal(tmp_path / "f.csv", table(rows({}, change)))
    assert place in message
    assert got in message


def test_rows_of_the_wrong_width_are_placed(tmp_path: Path) -> None:
    good = table(rows({}))
    assert "row 3, column eyecatcher_id: got a row of 10 fields" in refusal(tmp_path / "f", good + b",,,,,,,,,\n")
    assert "row 3, column clickability_test_id: got a row of 13" in refusal(tmp_path / "f", good + b"," * 12 + b"\n")


@pytest.mark.parametrize("content", [b"", b"\n", gzip.compress(b"")], ids=["empty", "blank", "gzip of nothing"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "empty file" in refusal(tmp_path / "f.csv", content)


def test_a_header_alone_is_refused(tmp_path: Path) -> None:
    assert "a header and no row" in refusal(tmp_path / "f.csv", table([]))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    packed = gzip.compress(table(rows(*[{"headline": f"H{n}"} for n in range(500)])))
    assert "gzip" in refusal(tmp_path / "cut", packed[: len(packed) // 2])
    assert "gzip" in refusal(tmp_path / "flipped", packed[:60] + bytes([packed[60] ^ 0xFF]) + packed[61:])
    assert "gzip" in refusal(tmp_path / "magic alone", b"\x1f\x8b")
    assert "line 4" in refusal(tmp_path / "latin-1", table(rows({}, {"headline": "Beyonc?"})).replace(b"c?", b"c\xe9"))
    assert "not csv" in refusal(tmp_path / "open quote", table(rows({})) + b't1,"never closed')


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(BadInput, match="expected a csv file"):
            read_arms(path)


@given(
    counts=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), min_size=2, max_size=12),
    tau2=st.floats(0, 2),
)
def test_shrunk_rates_lie_between_the_arm_and_its_group(counts: list[tuple[int, float]], tau2: float) -> None:
    impressions = np.array([n for n, _ in counts], float)
    clicks = np.floor(impressions * [share for _, share in counts])
    mean, raw = clicks.sum() / impressions.sum(), clicks / impressions
    shrunk = shrunk_rates(impressions, clicks, tau2)
    assert (shrunk >= np.minimum(raw, mean) - 1e-12).all()
    assert (shrunk <= np.maximum(raw, mean) + 1e-12).all()


def test_shrinkage_at_its_limits() -> None:
    impressions, clicks = np.array([1000.0, 4000.0]), np.array([20.0, 40.0])
    assert shrunk_rates(impressions, clicks, 0.0) == pytest.approx([0.012, 0.012])
    assert shrunk_rates(impressions, clicks, 1e9) == pytest.approx([0.02, 0.01])
    # By hand: m = 0.012, prior variance 0.05 m^2 = 7.2e-6; sampling variances 1.18560e-5 and 2.9640e-6.
    assert shrunk_rates(impressions, clicks, 0.05) == pytest.approx([0.0150226, 0.0105833], abs=1e-7)
    assert shrunk_rates(impressions, np.zeros(2), 0.05) == pytest.approx([0.0, 0.0])


def test_relative_variance_is_recovered() -> None:
    # 4,000 groups of 4 arms: the estimate's standard error is about 0.001 (from the spread over seeds), so 0.005 is
    # five of them: a false alarm once in a million seeds.
    rng = np.random.default_rng(3)
    groups = []
    for _ in range(4000):
        mean = rng.uniform(0.005, 0.02)
        rates = mean * (1 + 0.2 * rng.standard_normal(4)).clip(0.1)
        impressions = rng.integers(2000, 6000, 4).astype(float)
        groups.append((impressions, rng.binomial(impressions.astype(int), rates).astype(float)))
    assert relative_variance(groups) == pytest.approx(0.04, abs=0.005)


def test_relative_variance_without_spread_or_groups_is_zero() -> None:
    assert relative_variance([]) == 0.0
    assert relative_variance([(np.array([100.0, 100.0]), np.array([5.0, 5.0]))]) == 0.0
    assert file_relative_variance([]) == 0.0
