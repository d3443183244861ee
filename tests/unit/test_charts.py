from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from optimizer.maths.proportions import wilson
from serving import charts, numbers

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(\"x\")</script> & 'co'"
FRAME = charts.Frame("c", HOSTILE, HOSTILE)


def parsed(markup: str) -> ElementTree.Element:
    """The drawing as XML: it must be well formed, and carry neither style attributes nor handlers."""
    root = ElementTree.fromstring(markup.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    for node in root.iter():
        assert not [name for name in node.attrib if name == "style" or name.startswith("on")]
        assert node.tag != f"{SVG}script"
    return root


def numbers_in(root: ElementTree.Element) -> list[float]:
    words = [
        v for n in root.iter() for k, v in n.attrib.items() if k in ("d", "cx", "cy", "x", "y", "x1", "x2", "y1", "y2")
    ]
    return [float(number) for word in words for number in re.findall(r"-?\d+(?:\.\d+)?", word)]


def curve(count: int, name: str = "Learned") -> charts.Curve:
    points = [charts.Point(k * 100.0, 0.02 + k / 2000, 0.01 + k / 2500, 0.03 + k / 1500) for k in range(count)]
    return charts.Curve(name, "learned", points)


@pytest.mark.parametrize("count", [0, 1, 2, 500])
@pytest.mark.parametrize("axis", ["time", "count"])
def test_a_line_chart_is_well_formed_and_finite(count: int, axis: charts.AxisKind) -> None:
    frame = charts.Frame("c", "t", "d", axis)
    root = parsed(charts.line_chart(frame, [curve(count)], [charts.Level(HOSTILE, "oracle", 0.1)]))
    assert all(math.isfinite(number) for number in numbers_in(root))
    assert ("No data yet" in "".join(root.itertext())) == (count == 0)
    assert len(root.findall(f".//{SVG}circle")) == (1 if count else 0)
    assert root.attrib["data-x"].count(" ") == max(0, count - 1)


def test_text_in_a_chart_stays_text() -> None:
    drawing = charts.line_chart(FRAME, [curve(3)], [charts.Level(HOSTILE, "oracle", 0.1)])
    assert "".join(parsed(drawing).itertext()).count(HOSTILE) == 3
    table = charts.table(HOSTILE, (HOSTILE, "a"), [(HOSTILE, "1")])
    assert "<script" not in table + charts.legend([(HOSTILE, "v1")])


def test_a_curve_lies_where_its_values_say() -> None:
    points = [charts.Point(0.0, 0.0), charts.Point(10.0, 1.0)]
    root = parsed(charts.line_chart(charts.Frame("c", "t", "d", height=246), [charts.Curve("a", "learned", points)]))
    scale = root.find(f".//{SVG}g[@class='scale']")
    assert scale is not None
    top = max(float(label.text or "") for label in scale)
    line = root.find(f".//{SVG}path[@class='line learned']")
    assert line is not None
    (x0, y0), (x1, y1) = (tuple(map(float, place.split())) for place in re.split("[ML]", line.attrib["d"])[1:])
    assert (x0, x1) == (charts.LEFT * 10, charts.RIGHT * 10)
    assert (y0, y1) == pytest.approx((1000.0, 1000 * (1 - 1 / top)), abs=0.1)


def test_a_wild_band_does_not_flatten_the_curve() -> None:
    calm = [charts.Point(float(k), 0.05, 0.04, 0.06) for k in range(5)]
    wild = [charts.Point(0.0, 0.05, 0.0, 0.9), *calm[1:]]
    shown = charts.line_chart(FRAME, [charts.Curve("a", "learned", wild)], y_text=charts.per_thousand_scale)
    labels = [t.text for t in parsed(shown).findall(f".//{SVG}g/{SVG}text") if t.text]
    assert max(float(t) for t in labels if t.isdigit()) <= 100


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_a_stack_fills_the_whole(count: int) -> None:
    layers = [charts.Layer(f"v{n}", f"v{n}", [1.0 + n + k for k in range(count)]) for n in range(3)]
    root = parsed(charts.stacked_area(FRAME, [float(k) for k in range(count)], layers))
    areas = root.findall(f".//{SVG}path")
    assert len(areas) == (3 if count else 0)
    if count:
        highest = [min(float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", a.attrib["d"])) for a in areas]
        assert highest[-1] == 0.0
        assert highest == sorted(highest, reverse=True)


def test_columns_without_traffic_are_left_out() -> None:
    root = parsed(charts.stacked_area(FRAME, [0.0, 1.0, 2.0], [charts.Layer("a", "v1", [1.0, 0.0, 1.0])]))
    assert all(math.isfinite(number) for number in numbers_in(root))


def test_an_interval_bar_keeps_to_its_track() -> None:
    bar = parsed(charts.interval_bar("b", "label", 0.5, -9.0, 9.0, (0.0, 1.0), "learned", 0.0))
    places = [float(v.rstrip("%")) for n in bar.iter() for k, v in n.attrib.items() if k in ("x1", "x2", "cx")]
    assert all(0.0 <= place <= 100.0 for place in places)
    parsed(charts.interval_bar("b", "label", 0.0, 0.0, 0.0, (0.0, 0.0), "learned", None))


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (numbers.integer(1234567.4), "1,234,567"),
        (numbers.integer(-5), "\N{MINUS SIGN}5"),
        (numbers.compact(950), "950"),
        (numbers.compact(1234), "1.2K"),
        (numbers.compact(12_345), "12K"),
        (numbers.compact(999_700), "1M"),
        (numbers.compact(0.25), "0.25"),
        (numbers.compact(-2500), "\N{MINUS SIGN}2.5K"),
        (numbers.per_thousand(0.04131), "41.3"),
        (numbers.per_thousand(None), "\N{EN DASH}"),
        (numbers.signed_percent(1.424), "+142%"),
        (numbers.signed_percent(-0.0512), "\N{MINUS SIGN}5.1%"),
        (numbers.signed_percent(0.0), "0%"),
        (numbers.signed_percent(-0.0001), "0%"),
        (numbers.signed_percent(12.345), "+1,234%"),
        (numbers.percent(0.993), "99.3%"),
        (numbers.duration(75), "1 min 15 s"),
        (numbers.duration(3.14159), "3.1 s"),
        (numbers.duration(7265), "2 h 1 min"),
        (numbers.date_time(1_795_448_713_123), "Nov 23, 15:45 UTC"),
    ],
)
def test_numbers_read_as_people_write_them(shown: str, wanted: str) -> None:
    assert shown == wanted


@pytest.mark.parametrize("span", [1e-6, 0.37, 1.0, 99.0, 1e9])
def test_steps_are_round_and_few(span: float) -> None:
    step = numbers.nice_step(span, 4)
    assert span / step <= 4 + 1e-9
    assert span / step > 1.2
    assert float(f"{step:.1e}"[:3]) in (1.0, 2.0, 2.5, 5.0)


def test_wilson_against_newcombe() -> None:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", Stat. Med. 17, table I, method 3.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(successes, trials)
        assert found is not None
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(20, 20)
    assert mirrored is not None
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert wilson(0, 0) is None
    with pytest.raises(ValueError, match="successes: got 3 of 2"):
        wilson(3, 2)
