"""`python -m optimizer join` as a process: figures, signals, exit codes, keys."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest

from optimizer.__main__ import _until_stopped, main
from optimizer.stream.sqlite_log import SqliteLog
from tests.stream_rig import appended, decision, event, values

D = decision()
KEYS = "test:" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.fixture
def url(tmp_path: Path) -> str:
    log = SqliteLog(tmp_path / "log.db")
    log.append(
        [appended(D), appended(event(D, "i")), appended(event(D, "c", "click", D.ts + 5)), appended(event(D, "i"))]
    )
    log.append([appended({**event(D, "v"), "schema": 2})])
    log.close()
    return f"sqlite:///{tmp_path / 'log.db'}"


def join(url: str, folder: Path, *more: str, keys: str | None = KEYS) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ADLOOP_TOKEN_KEYS"}
    if keys is not None:
        environment["ADLOOP_TOKEN_KEYS"] = keys
    command = [sys.executable, "-m", "optimizer", "join", "--log", url, "--state", str(folder / "state"), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_until_idle_prints_one_object_and_counts_all_that_the_state_knows(url: str, tmp_path: Path) -> None:
    for _ in range(2):
        process = join(url, tmp_path, "--until-idle", "0.2", "--json", "--group", "g")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        figures = json.loads(out.splitlines()[-1])
        assert {name: figures[name] for name in ("decisions", "events", "outcomes", "closed", "quarantined")} == {
            "decisions": 1,
            "events": 2,
            "outcomes": 1,
            "closed": 0,
            "quarantined": {"schema": 1},
        }
        assert figures["duplicates"] == 1
        assert figures["seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(url: str, tmp_path: Path, number: signal.Signals) -> None:
    process = join(url, tmp_path, "--json")
    log = SqliteLog(tmp_path / "log.db")
    deadline = time.monotonic() + 120
    while len(values(log, "outcomes")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    log.close()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["outcomes"] == 1


def test_without_keys_it_refuses_in_a_sentence(url: str, tmp_path: Path) -> None:
    process = join(url, tmp_path, "--until-idle", "0", keys=None)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.startswith("adloop: ADLOOP_TOKEN_KEYS: got none")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("where", ["beside the log", "--data", "--token-keys"])
def test_keys_come_from_a_file(url: str, tmp_path: Path, where: str) -> None:
    folder = tmp_path if where == "beside the log" else tmp_path / "data"
    folder.mkdir(exist_ok=True)
    (folder / "token_keys").write_text(KEYS)
    more = {
        "beside the log": [],
        "--data": ["--data", str(folder)],
        "--token-keys": ["--token-keys", f"{folder}/token_keys"],
    }
    process = join(url, tmp_path, "--until-idle", "0", "--json", *more[where], keys=None)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["events"] == 2


@pytest.mark.parametrize(
    "argv",
    [[], ["nonsense"], ["join"], ["join", "--log", "x", "--state", "y", "--until-idle", "-1"], ["join", "--what"]],
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(argv)
    except SystemExit as exit_:  # argparse's way
        status = exit_.code
    assert status == 2
    assert "usage" in capsys.readouterr().err


def test_help_gives_every_verb_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == ["join", "learn", "pretrain"]


def test_the_usage_line_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["join", "--help"])
    assert capsys.readouterr().out.startswith("usage: adloop join ")


@pytest.mark.parametrize(
    ("verb", "option", "value"),
    [
        ("join", "--metrics-port", "99999"),
        ("join", "--metrics-port", "-1"),
        ("join", "--grace-ms", str(2**63)),
        ("join", "--extra-retention-ms", str(2**63)),
        *(("learn", "--kl-budget", value) for value in ("inf", "nan", "0", "-1")),
    ],
)
def test_a_number_that_no_option_takes_is_named(
    verb: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"join": ["--state", "y"], "learn": ["--data", "y"]}[verb]
    with pytest.raises(SystemExit) as ended:
        main([verb, "--log", "nowhere", *more, f"{option}={value}"])
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert option in err.splitlines()[-1]
    assert value in err.splitlines()[-1]


def test_a_log_that_is_none_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text(KEYS)
    options = ["--state", str(tmp_path / "state"), "--token-keys", str(tmp_path / "keys")]
    assert main(["join", "--log", "http://[", *options]) == 1
    assert capsys.readouterr().err == (
        "adloop: log: got 'http', expected sqlite:///PATH or kafka://HOST:PORT; correct the log's URL\n"
    )


def test_what_fails_beside_a_step_does_not_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A broker that went away between a step and the progress line ended the process."""

    class Gone:
        counts: ClassVar[dict[str, object]] = dict.fromkeys(
            ("decisions", "events", "outcomes", "closed", "quarantined"), 0
        )
        steps = 0

        def step(self, timeout_s: float) -> int:
            self.steps += 1
            return 0

        @property
        def caught_up(self) -> bool:
            if self.steps == 1:
                raise OSError("kafka: gives no answer")
            return True

        def figures(self) -> dict[int, object]:
            return {}

        def take_delays(self) -> list[int]:
            return []

    class Nothing:
        def take(self, joiner: object, trouble: bool = False) -> None:
            troubles.append(trouble)
            if len(troubles) > 2:
                stopping.append(signal.SIGTERM)

    stopping: list[int] = []
    troubles: list[bool] = []
    gone = Gone()
    _until_stopped(gone, stopping, None, Nothing())  # type: ignore[arg-type]
    assert gone.steps >= 2
    assert troubles[:2] == [False, True]
    assert "kafka: gives no answer; trying again" in capsys.readouterr().err
