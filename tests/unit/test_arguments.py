"""Values of the command line: what is taken, and a refusal that names the option, what came and what is expected."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

import optimizer.__main__
import serving.__main__
import simulators.cli
from optimizer import arguments
from optimizer.arguments import number, whole
from optimizer.types import MOST_WINDOW_MS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("checked", "text", "value"),
    [
        (whole(-3, 3), "-3", -3),
        (whole(0, 2**53), str(2**53), 2**53),
        (arguments.natural, "0", 0),
        (arguments.positive, "007", 7),
        (arguments.port, "65535", 65_535),
        (arguments.seconds, "1e3", 1000.0),
        (arguments.seconds, "0", 0.0),
        (number(0.5, 2.0), ".5", 0.5),
        (arguments.extra_retention, str(MOST_WINDOW_MS), MOST_WINDOW_MS),
    ],
)
def test_what_is_in_range_is_taken(checked: Callable[[str], float], text: str, value: float) -> None:
    assert checked(text) == value


@pytest.mark.parametrize(
    ("checked", "text", "told"),
    [
        *((arguments.port, text, "a port from 0 to 65535") for text in ("99999", "-1", "http", "", " 80", "8_0", "٣")),
        *((arguments.port, text, "a port from 0 to 65535") for text in ("+80", "80.0", "9" * 5000)),
        (arguments.natural, "-1", f"a whole number from 0 to {2**31 - 1}"),
        (arguments.positive, str(2**31), f"a whole number from 1 to {2**31 - 1}"),
        *((arguments.seconds, text, "seconds from 0") for text in ("soon", "-0.1", "inf", "nan", "1e999", "")),
        (number(0.5, 2.0, "a rate"), "3", "a rate from 0.5 to 2"),
        (arguments.extra_retention, "1h", f"whole milliseconds from 0 to {MOST_WINDOW_MS}"),
    ],
)
def test_what_is_not_is_told_with_what_is_expected(checked: Callable[[str], float], text: str, told: str) -> None:
    with pytest.raises(ArgumentTypeError, match=f"^{re.escape(f'got {text!r}, expected {told}')}$"):
        checked(text)


JOIN = ["join", "--log", "nowhere", "--state", "nowhere"]
SERVE = ["--data", "nowhere"]


@pytest.mark.parametrize(
    ("main", "given", "option", "value", "expected"),
    [
        (serving.__main__.main, SERVE, "--port", "99999", "a port from 0 to 65535"),
        (serving.__main__.main, SERVE, "--port", "http", "a port from 0 to 65535"),
        (serving.__main__.main, SERVE, "--extra-retention-ms", "1h", "whole milliseconds from 0 to 315360000000"),
        (optimizer.__main__.main, JOIN, "--extra-retention-ms", "1h", "whole milliseconds from 0 to 315360000000"),
        (optimizer.__main__.main, JOIN, "--grace-ms", "1h", f"whole milliseconds from 0 to {2**53}"),
        (optimizer.__main__.main, JOIN, "--until-idle", "soon", "seconds from 0"),
        (optimizer.__main__.main, JOIN, "--metrics-port", "99999", "a port from 0 to 65535"),
        (simulators.cli.main, ["demo"], "--port", "99999", "a port from 0 to 65535"),
        (simulators.cli.main, ["demo"], "--impressions", "many", "a whole number from 1 to 2147483647"),
        (simulators.cli.main, ["compare"], "--seeds", "0", "a whole number from 1 to 2147483647"),
        (simulators.cli.main, ["replay", "--data", "nowhere"], "--seed", "-1", "a whole number from 0 to 2147483647"),
    ],
)
def test_a_command_names_the_option_and_no_function(
    main: Callable[[list[str]], int],
    given: list[str],
    option: str,
    value: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*given, f"{option}={value}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(f"error: argument {option}: got {value!r}, expected {expected}")


def test_no_benchmark_leaves_a_number_to_argparse() -> None:
    """`int` and `float` take what makes no sense, and say `invalid int value` of the rest."""
    bare = re.compile(r"type=(int|float)\b")
    # It runs in an environment of its own, without this package.
    files = [path for path in (ROOT / "bench").glob("*.py") if path.name != "stream_quix.py"]
    assert [path.name for path in files if bare.search(path.read_text(encoding="utf-8"))] == []
