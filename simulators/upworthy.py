"""Loads the Upworthy Research Archive's headline tests (Matias, Munger, Le Quere, Ebersole 2021, Scientific Data
8:195).

Takes the archive's own csv files and this project's extract of them, plain or gzipped: both have the same core
columns. An arm of a test is headline + image, so for a text bandit the image is held fixed: `text_groups` makes one
group of each (test, image). There is no log of single impressions in these files, only counts per arm.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import BadInput, FieldError

COLUMNS = ("clickability_test_id", "headline", "impressions", "clicks", "test_week", "eyecatcher_id")
# Randomisation was broken from 25 June 2013 to 10 January 2014: 78 % of the tests of these weeks fail a sample-ratio
# test.
BROKEN_WEEKS = range(201325, 201402)
# Relative variance of true arm rates inside a group, by the method of moments over the archive's whole exploratory set.
REFERENCE_RELATIVE_VARIANCE = 0.0434
GZIP_MAGIC = b"\x1f\x8b"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TestArm:
    """One row of the file: what was shown, how often, and how often it was clicked. `week` is YYYYWW."""

    __test__ = False  # Not a test case, whatever pytest makes of the name.

    test_id: str
    eyecatcher_id: str
    headline: str
    week: int
    impressions: int
    clicks: int


@dataclass(frozen=True)
class HeadlineGroup:
    """Two or more headlines that were tested against each other under one image; one count per headline. `week`: the
    first, YYYYWW."""

    test_id: str
    eyecatcher_id: str
    headlines: tuple[str, ...]
    impressions: tuple[int, ...]
    clicks: tuple[int, ...]
    week: int


@dataclass(frozen=True)
class Grouped:
    """What `text_groups` made of a file: the groups, and how many rows the broken weeks cost."""

    groups: tuple[HeadlineGroup, ...]
    dropped_rows: int

    @property
    def arms(self) -> int:
        return sum(len(group.headlines) for group in self.groups)


def read_arms(path: Path) -> list[TestArm]:
    """Every arm of the file, in its order. Raises BadInput that names file, row (the header is row 1) and column."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            source = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            return list(_parse(path, csv.reader(_lines(path, source), strict=True)))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        _refuse(
            str(path), f"a gzip stream that breaks off or is damaged ({error})", "a whole gzip file", "fetch it again"
        )
    except OSError as error:
        _refuse(str(path), error.strerror or str(error), "a csv file, plain or gzipped", "give the path of the file")


def text_groups(arms: Sequence[TestArm], keep_broken_weeks: bool = False) -> Grouped:
    """Group by (test, image), merge equal headlines by summing their counts, keep groups of two or more.

    Rows of the weeks of broken randomisation are left out unless `keep_broken_weeks`; arms that were never shown are no
    arms. Order is that of first appearance."""
    kept = [arm for arm in arms if keep_broken_weeks or arm.week not in BROKEN_WEEKS]
    groups: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
    weeks: dict[tuple[str, str], int] = {}
    for arm in kept:
        if arm.impressions == 0:
            continue
        place = (arm.test_id, arm.eyecatcher_id)
        weeks[place] = min(arm.week, weeks.get(place, arm.week))
        headlines = groups.setdefault(place, {})
        shown, clicked = headlines.get(arm.headline, (0, 0))
        headlines[arm.headline] = (shown + arm.impressions, clicked + arm.clicks)
    return Grouped(
        groups=tuple(
            HeadlineGroup(
                test_id=test_id,
                eyecatcher_id=eyecatcher_id,
                headlines=tuple(headlines),
                impressions=tuple(shown for shown, _ in headlines.values()),
                clicks=tuple(clicked for _, clicked in headlines.values()),
                week=weeks[test_id, eyecatcher_id],
            )
            for (test_id, eyecatcher_id), headlines in groups.items()
            if len(headlines) >= 2
        ),
        dropped_rows=len(arms) - len(kept),
    )


def relative_variance(groups: Sequence[tuple[Floats, Floats]]) -> float:
    """Relative variance of true rates inside groups, pooled, by the method of moments.

    In a group of k arms with pooled rate m, each estimated rate has sampling variance m (1 - m) / n_i. The sum over
    arms of (rate_i - mean rate)^2 is in expectation (k - 1) tau^2 m^2 + (1 - 1/k) sum_i m (1 - m) / n_i, solved here
    for tau^2 after both sides are summed over all groups.

    Args:
      groups: (impressions float[k], clicks float[k]) of each group, impressions > 0.
    Returns:
      tau^2 >= 0; 0 where there is no spread beyond sampling noise.
    """
    excess = scale = 0.0
    for impressions, clicks in groups:
        k = len(impressions)
        mean = clicks.sum() / impressions.sum()
        rates = clicks / impressions
        noise = (1 - 1 / k) * (mean * (1 - mean) / impressions).sum()
        excess += float(((rates - rates.mean()) ** 2).sum() - noise)
        scale += float((k - 1) * mean**2)
    return max(0.0, excess / scale) if scale > 0 else 0.0


def shrunk_rates(impressions: Floats, clicks: Floats, tau2: float) -> Floats:
    """Arm rates float[k], shrunk towards the group's mean m by the best linear predictor (Buhlmann credibility).

    Prior mean m and variance tau2 m^2, sampling variance m (1 - m) / n_i:
    rate_i = m + w_i (clicks_i / n_i - m), w_i = tau2 m^2 / (tau2 m^2 + m (1 - m) / n_i). A group without clicks gets 0.
    """
    mean = clicks.sum() / impressions.sum()
    prior = tau2 * mean**2
    noise = mean * (1 - mean) / impressions
    total = prior + noise
    weight = np.divide(prior, total, out=np.zeros_like(total), where=total > 0)
    shrunk: Floats = mean + weight * (clicks / impressions - mean)
    return np.clip(shrunk, 0.0, 1.0)


def group_rates(group: HeadlineGroup, tau2: float) -> Floats:
    """`shrunk_rates` of one group."""
    return shrunk_rates(np.array(group.impressions, float), np.array(group.clicks, float), tau2)


def file_relative_variance(groups: Sequence[HeadlineGroup]) -> float:
    """`relative_variance` of a file's groups."""
    return relative_variance([(np.array(g.impressions, float), np.array(g.clicks, float)) for g in groups])


def _refuse(place: str, got: str, expected: str, fix: str) -> NoReturn:
    raise BadInput(FieldError(place, got, expected, fix))


def _lines(path: Path, source: BinaryIO) -> Iterator[str]:
    """Lines as text. Each is decoded alone, so that a byte that is not UTF-8 can be placed."""
    for number, line in enumerate(source, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            _refuse(f"{path}, line {number}", f"byte 0x{byte:02x}", "UTF-8 text", "save the file as UTF-8")


def _parse(path: Path, rows: Iterator[list[str]]) -> Iterator[TestArm]:
    number = 1
    try:
        header = next(rows, None)
        if not header:
            _refuse(
                str(path),
                "an empty file",
                f"a csv file with the columns {', '.join(COLUMNS)}",
                "give the archive's file",
            )
        place = _columns(path, header)
        for number, row in enumerate(rows, start=2):
            if row:
                yield _arm(_Row(path, number, row, len(header), place))
    except csv.Error as error:
        _refuse(f"{path}, row {number + 1}", f"a row that is not csv ({error})", "quoted csv", "fetch the file again")
    if number == 1:
        _refuse(str(path), "a header and no row", "at least one arm", "give the archive's file")


def _columns(path: Path, header: list[str]) -> dict[str, int]:
    """Where each needed column stands. Others (the archive has more, one of them unnamed) are ignored."""
    for column in COLUMNS:
        if header.count(column) != 1:
            got = f"{header.count(column)} of it among {', '.join(name or '(unnamed)' for name in header)[:300]}"
            _refuse(
                f"{path}, row 1, column {column}", got, "exactly one", "give a file of the Upworthy Research Archive"
            )
    return {column: header.index(column) for column in COLUMNS}


@dataclass(frozen=True)
class _Row:
    path: Path
    number: int
    cells: list[str]
    width: int
    place: dict[str, int]

    def refuse(self, column: str, got: str, expected: str) -> NoReturn:
        _refuse(f"{self.path}, row {self.number}, column {column}", got[:200], expected, "correct or remove this row")

    def text(self, column: str) -> str:
        return self.cells[self.place[column]]

    def count(self, column: str) -> int:
        text = self.text(column).strip()
        if not (text.isascii() and text.isdigit() and len(text) <= 15):
            self.refuse(column, repr(text), "a whole number, 0 or more")
        return int(text)


def _arm(row: _Row) -> TestArm:
    if len(row.cells) != row.width:
        # The first needed column that a short row lacks; a long row has lost its alignment from the start.
        lacking = [column for column in COLUMNS if row.place[column] >= len(row.cells)]
        column = lacking[0] if lacking else COLUMNS[0]
        row.refuse(column, f"a row of {len(row.cells)} fields", f"{row.width} fields, as in the header")
    for column in ("clickability_test_id", "headline"):
        if not row.text(column).strip():
            row.refuse(column, "nothing", "some text")
    impressions, clicks, week = row.count("impressions"), row.count("clicks"), row.count("test_week")
    if clicks > impressions:
        row.refuse("clicks", f"{clicks} clicks of {impressions} impressions", "at most as many clicks as impressions")
    if not (2000 <= week // 100 <= 2100 and 0 <= week % 100 <= 53):
        row.refuse("test_week", str(week), "YYYYWW, a year and its week")
    return TestArm(
        test_id=row.text("clickability_test_id"),
        eyecatcher_id=row.text("eyecatcher_id"),
        headline=row.text("headline"),
        week=week,
        impressions=impressions,
        clicks=clicks,
    )
