"""Roles in threads: restart after a passing fault, end of the process after a fatal one, end within time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from optimizer.errors import ConfigError
from optimizer.stream.log import Append
from serving import loop
from serving.health import Health
from serving.loop import RoleThread
from tests.serving_rig import Rig, make_rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = make_rig(tmp_path)
    yield rig
    rig.close()


class Script:
    """A role that plays one outcome after the other, then idles."""

    def __init__(self, *plays: object) -> None:
        self.plays = list(plays)
        self.made = 0
        self.closed = 0
        self.idle = threading.Event()

    def make(self) -> Script:
        self.made += 1
        return self

    def step(self) -> bool:
        if not self.plays:
            self.idle.set()
            return False
        play = self.plays.pop(0)
        if isinstance(play, Exception):
            raise play
        return True

    def close(self) -> None:
        self.closed += 1


def started(script: Script, health: Health, faults: list[str]) -> tuple[RoleThread, threading.Event]:
    stopping = threading.Event()
    thread = RoleThread("joiner", script.make, health, stopping, faults.append, idle_s=0.001)
    thread.start()
    return thread, stopping


def test_a_passing_fault_starts_the_role_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop, "BACKOFF_FIRST_S", 0.001)
    script, faults = Script(True, OSError("disk full"), True, ValueError("odd")), list[str]()
    with caplog.at_level(logging.CRITICAL):
        thread, stopping = started(script, rig.parts.health, faults)
        assert script.idle.wait(60)
    assert (script.made, script.closed, thread.restarts, faults) == (3, 2, 2, [])
    assert rig.parts.health.roles["joiner"] == "running"
    assert rig.parts.health.problems() == {}
    stopping.set()
    assert thread.join(60)
    assert script.closed == 3


def test_an_append_ends_a_roles_pause(rig: Rig) -> None:
    script, stopping = Script(), threading.Event()
    thread = RoleThread("joiner", script.make, rig.parts.health, stopping, lambda _: None, idle_s=300.0, log=rig.log)
    thread.start()
    assert script.idle.wait(60)
    script.idle.clear()
    rig.log.append([Append("events", "k", b"v")])
    assert script.idle.wait(60)
    stopping.set()
    rig.log.append([Append("events", "k", b"v")])
    assert thread.join(60)


def test_a_fatal_fault_is_handed_up_and_makes_the_server_unready(rig: Rig) -> None:
    script, faults = Script(True, ConfigError("--model: no such folder")), list[str]()
    thread, _ = started(script, rig.parts.health, faults)
    assert thread.join(60)
    assert faults == ["joiner: --model: no such folder"]
    assert rig.parts.health.problems() == {"joiner": "stopped: --model: no such folder"}
