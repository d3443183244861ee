"""The command line: exit statuses, one-sentence errors, help without heavy imports, log dump and quarantine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from optimizer.errors import AdloopError, ConfigError
from optimizer.stream.log import Append, EventLog
from optimizer.stream.open import open_log
from optimizer.types import Quarantined, to_json
from simulators import records
from simulators.cli import VERBS, main, usage
from simulators.command import execute


def adloop(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulators", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    page = adloop("--help")
    assert (page.returncode, page.stderr) == (0, "")
    assert page.stdout.rstrip("\n") == usage()
    assert all(f"  {verb} " in page.stdout for verb in VERBS)
    loaded = "import sys, simulators.cli; print(sorted({'torch', 'numpy', 'rich', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_verbs_that_have_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    (said,) = (line for line in usage().splitlines() if "--json" in line)
    action = {"log": ["dump"], "quarantine": ["list"]}.get(verb, [])
    with pytest.raises(SystemExit):
        main([verb, *action, "--help"])
    assert ("--json" in capsys.readouterr().out) == (verb in re.findall(r"\w+", said.split(" have ")[0]))


@pytest.mark.parametrize("arguments", [[], ["evaluate"], ["--json"], ["nonsense", "--help"]])
def test_wrong_verbs_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "expected one of demo, replay" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "verb", [["replay"], ["compare"], ["log", "dump"], ["quarantine", "list"], ["serve"], ["serving"], ["demo"]]
)
def test_every_verb_has_help(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*verb, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay"],
        ["replay", "--data", "f", "--groups", "0"],
        ["replay", "--data", "f", "--groups", "some"],
        ["replay", "--data", "f", "--seed", "-1"],
        ["replay", "--data", "f", "--relative-variance", "nan"],
        ["replay", "--data", "f", "--unknown"],
        ["compare", "--impressions", "0"],
        ["compare", "--seeds", "1.5"],
        ["compare", "--only", "thompson,nobody"],
        ["compare", "--only", "ucb,ucb"],
        ["log"],
        ["log", "dump", "sqlite:///x.db", "nonsense"],
        ["quarantine", "list"],
        ["quarantine", "list", "sqlite:///x", "--log", "sqlite:///y"],
        ["quarantine", "replay", "--log", "sqlite:///x", "--reason", "dislike"],
        ["quarantine", "replay", "--log", "sqlite:///x", "--place", "events/0"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_a_missing_log_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.db"
    assert main(["log", "dump", f"sqlite:///{path}", "events"]) == 1
    err = capsys.readouterr().err
    assert str(path) in err
    assert len(err.splitlines()) == 1
    assert not path.exists()
    assert main(["quarantine", "list", "--log", "ftp://somewhere"]) == 1


def test_log_dump_prints_every_record(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log = open_log(url)
    log.append([Append("campaigns", "default/c1", '{"n": "Zoë"}'.encode()), Append("campaigns", "default/c2", b"\xff")])
    log.append([Append("campaigns", "default/c1", None)])
    log.close()
    assert main(["log", "dump", url, "campaigns"]) == 0
    rows = [json.loads(row) for row in capfdbinary.readouterr().out.splitlines()]
    assert [row["offset"] for row in rows] == sorted(row["offset"] for row in rows)
    assert [(row["partition"], row["key"], row["value"]) for row in rows] == [
        (0, "default/c1", {"n": "Zoë"}),
        (0, "default/c2", {"base64": "/w=="}),
        (0, "default/c1", None),
    ]


@pytest.mark.parametrize("topic", ["decisions", "adloop.decisions"])
def test_log_dump_takes_a_topics_full_name(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], topic: str
) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log = open_log(url)
    log.append([Append("decisions", "d1", b"{}")])
    log.close()
    assert main(["log", "dump", url, topic]) == 0
    assert [json.loads(row)["key"] for row in capfdbinary.readouterr().out.splitlines()] == ["d1"]
    assert main(["log", "dump", url, f"other.{topic}"]) == 1
    assert b"topic: got 'other." in capfdbinary.readouterr().err


def test_a_topics_full_name_is_the_one_under_the_logs_own_prefix() -> None:
    class Prefixed:
        def topic_name(self, topic: str) -> str:
            return f"mine.{topic}"

    log = cast(EventLog, Prefixed())
    assert [records._named(log, name) for name in ("decisions", "mine.decisions")] == ["decisions"] * 2
    with pytest.raises(ConfigError, match=r"topic: got 'adloop\.decisions'"):
        records._named(log, "adloop.decisions")


def test_quarantine_takes_its_log_as_log_dump_does(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log = open_log(url)
    log.append([Append("quarantine", "", to_json(Quarantined("events", 0, 3, "orphan", "no", 2, "e30=")))])
    log.close()
    for arguments in (["list", url], ["list", "--log", url], ["list", url, "--log", url], ["replay", url]):
        assert main(["quarantine", *arguments]) == 0
        assert [json.loads(row)["offset"] for row in capfdbinary.readouterr().out.splitlines()] == [3]


def test_quarantine_lists_and_replays(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log = open_log(url)
    whole = Quarantined("events", 0, 3, "orphan", "no decision", 22, "eyJkZWNpc2lvbl9pZCI6ICJkMSJ9")
    whole = Quarantined("events", 0, 3, "orphan", "no decision", 21, "eyJkZWNpc2lvbl9pZCI6ICJkMSJ9")
    cut = Quarantined("events", 0, 4, "too_large", "2 MiB", 2_000_000, "eyJkZWNpc2lvbl9pZCI6ICJkMSJ9")
    log.append([Append("quarantine", "", to_json(record)) for record in (whole, cut, whole)])
    log.close()

    def lines(*arguments: str) -> list[dict[str, object]]:
        assert main(["quarantine", *arguments, "--log", url]) == 0
        return [json.loads(row) for row in capfdbinary.readouterr().out.splitlines()]

    assert [(row["offset"], row["reason"]) for row in lines("list")] == [(3, "orphan"), (4, "too_large")]
    assert [row["offset"] for row in lines("list", "--reason", "too_large")] == [4]
    assert lines("replay", "--place", "events/0/4")[0]["status"] == "skipped"
    assert lines("replay", "--reason", "orphan") == [
        {"topic": "events", "partition": 0, "offset": 3, "status": "replayed"}
    ]
    assert main(["log", "dump", url, "events"]) == 0
    (row,) = (json.loads(row) for row in capfdbinary.readouterr().out.splitlines())
    assert (row["key"], row["value"]) == ("d1", {"decision_id": "d1"})


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    log = open_log(url)
    log.append([Append("events", f"d{number}", b'{"x": "' + b"y" * 200 + b'"}') for number in range(5000)])
    log.close()
    command = [sys.executable, "-m", "simulators", "log", "dump", url, "events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"partition":0')
        process.stdout.close()
        assert process.wait(timeout=120) == 0
        assert process.stderr.read() == b""


def test_expected_errors_are_a_sentence_and_bugs_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    def expected() -> int:
        raise AdloopError("field: got this, expected that; do so")

    def bug() -> int:
        raise KeyError("x")

    def interrupted() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        return 1

    assert execute(expected) == 1
    assert capsys.readouterr().err == "adloop: field: got this, expected that; do so\n"
    with pytest.raises(KeyError):
        execute(bug)
    before = signal.getsignal(signal.SIGTERM)
    assert execute(interrupted) == 0
    assert signal.getsignal(signal.SIGTERM) is before
