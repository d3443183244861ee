"""The demo's stream and its life around the server, against a contract-shaped stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from optimizer.clock import ManualClock
from simulators.ad_client import AdClient, Json, Refused, Unreachable
from simulators.pace import Monitor, NothingLearns, Pace
from simulators.server import Server, ServerDied, running
from simulators.traffic import Due, Remains, Shown, play, put_campaigns
from tests.fakes.toy_world import LATE_MS, ToyWorld

FAKE = [sys.executable, "-m", "tests.fakes.contract_server"]
NOW_MS = 1_700_000_000_000


async def no_wait(_shown: int) -> None:
    return None


def played(tmp_path: Path, seed: int, impressions: int = 100) -> tuple[ToyWorld, list[Shown], Remains, list[Json]]:
    """A whole run against the stand-in, and the events that it saw."""

    async def run() -> tuple[ToyWorld, list[Shown], Remains, list[Json]]:
        world, shown = ToyWorld(seed), list[Shown]()
        async with running(FAKE, tmp_path / "stderr") as server, AdClient(server.url) as client:
            campaigns = await put_campaigns(world, client)
            remains = await play(world, campaigns, client, impressions, ManualClock(NOW_MS), no_wait, shown.append)
            async with httpx.AsyncClient(trust_env=False) as http:
                events: list[Json] = (await http.get(f"{server.url}/seen")).json()["events"]
        return world, shown, remains, events

    return asyncio.run(run())


def test_due_events_come_out_by_time_then_in_order() -> None:
    due = Due()
    for name, due_ms in (("late", 30), ("first", 10), ("second", 10), ("edge", 20)):
        due.add(due_ms, {"event_id": name})
    assert [event["event_id"] for event in due.take(20)] == ["first", "second", "edge"]
    assert (due.take(29), len(due)) == ([], 1)


def test_everything_that_people_do_is_posted_once_and_in_time(tmp_path: Path) -> None:
    world, shown, remains, events = played(tmp_path, seed=3)
    clicks = [one for one in shown if one.clicked]
    assert len(shown) == 100
    assert clicks
    assert [one.number for one in shown] == list(range(100))
    kinds = [event["type"] for event in events]
    assert (kinds.count("impression"), kinds.count("click"), kinds.count("conversion")) == (
        100,
        len(clicks),
        len(clicks),
    )
    assert len({event["event_id"] for event in events}) == len(events)
    # The conversion that lies beyond the run has not happened; its click and the early one have.
    assert remains.unlived == len(clicks)
    assert 100 * world.interval_ms + 1_800_000 < LATE_MS
    for event in events:
        offset_ms = {"impression": 0, "click": 2500, "conversion": 2600}[event["type"]]
        assert event["ts"] == NOW_MS + offset_ms
        assert event.get("value") == (9.5 if event["type"] == "conversion" else None)


def test_a_click_is_posted_only_when_simulated_time_has_come(tmp_path: Path) -> None:
    _, _, _, events = played(tmp_path, seed=3)
    at = {(event["decision_id"], event["type"]): place for place, event in enumerate(events)}
    later = [event for event in events if event["type"] == "click"]
    waves = {event["decision_id"]: int(event["decision_id"].removeprefix("d-")) // 16 for event in later}
    for decision_id, wave in waves.items():
        impressions_before = sum(event["type"] == "impression" for event in events[: at[decision_id, "click"]])
        assert impressions_before >= 16 * (wave + 1) or impressions_before == 100


def test_the_same_seed_brings_the_same_people(tmp_path: Path) -> None:
    first, second = (played(tmp_path, seed=5, impressions=48)[1] for _ in range(2))
    assert [one.segment for one in first[:16]] == [one.segment for one in second[:16]]
    other = played(tmp_path, seed=6, impressions=48)[1]
    assert [one.segment for one in first[:16]] != [one.segment for one in other[:16]]


def test_within_a_wave_responses_follow_the_order_of_arrival(tmp_path: Path) -> None:
    world, _, _, _ = played(tmp_path, seed=8, impressions=32)
    for start in (0, 32):
        arrivals, responses = world.asked[start : start + 16], world.asked[start + 16 : start + 32]
        assert [what for what, _ in arrivals] == ["arrive"] * 16
        assert [segment for _, segment in responses] == [segment for _, segment in arrivals]


def test_a_server_that_ends_early_is_quoted(tmp_path: Path) -> None:
    async def start() -> None:
        async with running([*FAKE, "--fault", "early"], tmp_path / "stderr"):
            pytest.fail("it never was ready")

    with pytest.raises(ServerDied, match=r"status 1 before it was ready.*\n  no room at the inn"):
        asyncio.run(start())


def test_a_server_that_never_gets_ready_is_stopped(tmp_path: Path) -> None:
    async def start() -> None:
        async with running([*FAKE, "--fault", "silent"], tmp_path / "stderr", ready_within_s=0.3):
            pytest.fail("it never was ready")

    with pytest.raises(ServerDied, match=r"not ready within 0 s.*\n  \(nothing\)"):
        asyncio.run(start())


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.server.STOP_WITHIN_S", 0.3)

    async def start() -> int | None:
        async with running([*FAKE, "--fault", "deaf"], tmp_path / "stderr") as server:
            server.check()
        return server.process.returncode

    assert asyncio.run(start()) == -signal.SIGKILL


def test_a_server_that_dies_under_traffic_is_an_error(tmp_path: Path) -> None:
    async def run() -> Server:
        async with running([*FAKE, "--fault", "late"], tmp_path / "stderr") as server, AdClient(server.url) as client:
            world = ToyWorld(1)
            campaigns = await put_campaigns(world, client)
            with pytest.raises(Unreachable, match="POST /v1/generate: no answer"):
                await play(world, campaigns, client, 100, ManualClock(), no_wait, lambda _: None)
            await server.process.wait()
            with pytest.raises(ServerDied, match=r"status 3(.|\n)*the disk is full"):
                server.check()
            return server

    assert asyncio.run(run()).process.returncode == 3


def test_a_rejected_event_is_an_error(tmp_path: Path) -> None:
    async def run() -> None:
        async with running(FAKE, tmp_path / "stderr") as server, AdClient(server.url) as client:
            await client.post_events([{"event_id": "e", "type": "click", "decision_id": "d-0", "token": "x"}])

    with pytest.raises(Refused, match="event e was rejected: bad_token"):
        asyncio.run(run())


class Told(Monitor):
    """A monitor whose learner has learnt `learned`, whatever is polled."""

    async def poll(self, shown: int) -> None:
        self.polls = getattr(self, "polls", 0) + 1


def admit(monitor: Monitor, shown: int, within_s: float, slack: int = 10) -> float:
    """Seconds that traffic waited before its second wave, on a clock that only moves on while traffic waits."""
    now_s = 0.0

    def check() -> None:
        nonlocal now_s
        now_s += 0.05

    async def run() -> float:
        pace = Pace(monitor, 100, within_s, slack, lambda: now_s, check)
        await pace.admit(0)
        await pace.admit(shown)
        return pace.waited_s

    return asyncio.run(run())


def told(learned: int) -> Told:
    return Told(AdClient("http://127.0.0.1:1"), learned=learned)


def test_traffic_goes_at_once_while_the_learner_keeps_up() -> None:
    assert admit(told(20), shown=30, within_s=1000.0) == 0.0


def test_traffic_waits_for_a_learner_that_lags_but_keeps_to_the_schedule() -> None:
    # 40 of 100 impressions are due after 0.4 s of the schedule; `check` moves the clock on once a round of waiting.
    assert admit(told(0), shown=40, within_s=1.0) == pytest.approx(0.35)


def test_traffic_sees_a_dead_server_while_it_waits() -> None:
    def dead() -> None:
        raise ServerDied("gone")

    async def run() -> None:
        await Pace(told(0), 100, 100.0, 10, time.monotonic, dead).admit(50)

    with pytest.raises(ServerDied, match="gone"):
        asyncio.run(run())


def test_no_pools_in_time_is_an_error() -> None:
    class Empty(AdClient):
        async def stats(self) -> Json:
            return {"c": {"newest": []}}

    with pytest.raises(NothingLearns, match="made no texts"):
        asyncio.run(Monitor(Empty("http://127.0.0.1:1")).until_pools(0.05, lambda: None))


def test_versions_are_counted_also_where_the_server_has_forgotten_old_ones() -> None:
    class Forgetful(AdClient):
        async def policies(self) -> list[Json]:
            names = ("000000-aaaaaaaaaaaa", "001500-bbbbbbbbbbbb", "001501-cccccccccccc")
            return [{"version": name, "evidence": {}, "serving": name == names[1]} for name in names]

    monitor = Monitor(Forgetful("http://127.0.0.1:1"))
    asyncio.run(monitor.poll(0))
    assert (monitor.version, monitor.versions) == ("001500-bbbbbbbbbbbb", 1502)


DEMO = """
import sys
from simulators import demo, server
from tests.fakes.toy_world import ToyWorld
demo.pretrain_command = lambda: [sys.executable, "-c", PRETRAIN]
demo.serving_command = lambda data, port, model: [sys.executable, "-m", "tests.fakes.contract_server", *FAULT]
demo.load_world = lambda name, seed: ToyWorld(seed)
sys.exit(demo.main(sys.argv[1:]))
"""


def run_demo(tmp_path: Path, *arguments: str, fault: str = "", pretrain: str = "") -> subprocess.Popen[str]:
    script = DEMO.replace("FAULT", repr(["--fault", fault] if fault else [])).replace("PRETRAIN", repr(pretrain))
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )


KEYS = [
    "seed",
    "impressions",
    "control_ctr",
    "learned_ctr",
    "oracle_ctr",
    "lift",
    "lift_interval",
    "valid_share",
    "kl",
    "seconds",
    "report",
]


def test_demo_json_has_the_contract_s_keys_and_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    with run_demo(tmp_path, "--json", "--seed", "4", "--impressions", "3000", "--report", str(report)) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    line = json.loads(out.splitlines()[-1])
    assert list(line) == KEYS
    assert (line["seed"], line["impressions"], line["oracle_ctr"], line["kl"]) == (4, 3000, 0.5, 1.5)
    assert line["control_ctr"] == 0.05
    assert 0.4 < line["learned_ctr"] < 0.5
    low, high = line["lift_interval"]
    assert 0 < low < line["lift"] < high
    assert line["valid_share"] == 1.0
    assert line["report"] == str(report)
    assert "A good thing" in report.read_text()
    assert not list(tmp_path.glob("adloop-demo-*"))


def test_demo_prints_a_summary_without_json(tmp_path: Path) -> None:
    with run_demo(tmp_path, "--impressions", "300", "--no-report") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "learned click rate, last fifth" in out
    assert "A good thing" in out
    assert "live page: http://127.0.0.1:" in err


def test_demo_ends_with_1_and_the_server_s_last_words(tmp_path: Path) -> None:
    with run_demo(tmp_path, "--impressions", "300", "--no-report", fault="late") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "the disk is full" in err
    assert "Traceback" not in err
    assert not out


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_demo_stops_the_server_on_a_signal_and_ends_with_0(tmp_path: Path, name: signal.Signals) -> None:
    keep = tmp_path / "kept"
    with run_demo(tmp_path, "--impressions", "100000", "--no-report", "--keep", str(keep)) as process:
        assert process.stderr is not None
        said = ""
        while "serving the market" not in said:
            said = process.stderr.readline()
            assert said
        process.send_signal(name)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "stopped before its end" in err
    assert list(keep.iterdir()) == [keep / "server.stderr"]


def test_demo_ends_with_1_where_no_model_can_be_made(tmp_path: Path) -> None:
    with run_demo(tmp_path, "--no-report", pretrain="import sys; sys.exit('no room for a model')") as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "no room for a model" in err
    assert "pretrain ended with status 1" in err


def test_demo_keeps_out_of_a_used_folder(tmp_path: Path) -> None:
    (tmp_path / "log.db").touch()
    with run_demo(tmp_path, "--no-report", "--keep", str(tmp_path)) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "is not empty" in err


@pytest.mark.parametrize("wrong", [["--impressions", "0"], ["--port", "70000"], ["--seed", "x"], ["--nonsense"]])
def test_demo_refuses_wrong_usage_with_2(tmp_path: Path, wrong: list[str]) -> None:
    with run_demo(tmp_path, *wrong) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "usage:" in err
