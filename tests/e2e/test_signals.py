"""SIGTERM and Ctrl-C end every command with status 0 and without a traceback, also where it is not at its main work
(contracts section 5)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ENDS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
WAIT = "import sys, time\ndef wait(*_, **__):\n    print('HERE', file=sys.stderr, flush=True)\n    time.sleep(100)\n"


def ended(command: list[str], number: int, at: str = "HERE", **environment: str) -> str:
    """Send the signal once the command says `at` on stderr; its stderr from then on, with the status checked."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        before = ""
        try:
            while at not in before:
                line = process.stderr.readline()
                assert line, before
                before += line
            process.send_signal(number)
            _, after = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, before + after
    assert "Traceback" not in after
    return after


@ENDS
@pytest.mark.parametrize(
    ("verb", "during"),
    [
        (["pretrain", "--seed", "99"], "commands._pretrain = wait"),
        # In place of the modules that bring torch.
        (["learn", "--data", "."], "sys.modules.update({f'optimizer.learning.{name}': made for name in NAMES})"),
    ],
    ids=["pretrain", "learn"],
)
def test_the_tiny_model_in_the_making(tmp_path: Path, number: int, verb: list[str], during: str) -> None:
    script = WAIT + (
        "from types import SimpleNamespace\nfrom optimizer import __main__ as roles\n"
        "from optimizer.learning import commands\n"
        "made = SimpleNamespace(open_learning=wait, share_processor=wait, LearnerConfig=wait)\n"
        f"NAMES = ('run', 'config')\n{during}\nsys.exit(roles.main(sys.argv[1:]))"
    )
    log = ["--log", f"sqlite:///{tmp_path}/log.db"] if "learn" in verb else []
    ended(["-c", script, *verb, *log], number)


@ENDS
def test_the_generator_while_its_model_is_made(tmp_path: Path, number: int) -> None:
    script = WAIT + (
        "from serving import __main__ as main, roles\nroles.LearningOnce.get = wait\n"
        "sys.exit(main.main(['generate', '--data', sys.argv[1]]))"
    )
    ended(["-c", script, str(tmp_path / "data")], number)


@ENDS
@pytest.mark.parametrize("during", ["load_world", "write_report"])
def test_the_demo_beside_its_traffic(tmp_path: Path, number: int, during: str) -> None:
    script = WAIT + (
        "from simulators import demo\nfrom tests.fakes.toy_world import ToyWorld\n"
        "demo.pretrain_command = lambda: [sys.executable, '-c', '']\n"
        "demo.serving_command = lambda *_: [sys.executable, '-m', 'tests.fakes.contract_server']\n"
        "demo.load_world = lambda _, seed: ToyWorld(seed)\n"
        f"demo.{during} = wait\n"
        "sys.exit(demo.main(['--impressions', '200', '--report', sys.argv[1]]))"
    )
    ended(["-c", script, str(tmp_path / "report.html")], number, TMPDIR=str(tmp_path))
    assert not list(tmp_path.glob("adloop-demo-*"))


@ENDS
@pytest.mark.parametrize(
    "during",
    [
        "process.Process.__init__ = wait",
        # The signal comes in the middle of it, once for good measure again while the roles end.
        "process.Process.start = after(process.Process.start)",
        "process.Process.stop = before(process.Process.stop)",
    ],
)
def test_the_server_while_it_starts_and_stops(tmp_path: Path, number: int, during: str) -> None:
    script = WAIT + (
        "def pause(*_):\n    print('HERE', file=sys.stderr, flush=True)\n    time.sleep(1)\n"
        "def after(work):\n    return lambda *a, **k: (work(*a, **k), pause())[0]\n"
        "def before(work):\n    return lambda *a, **k: (pause(), work(*a, **k))[1]\n"
        "import os, signal\nfrom serving import __main__ as main, process\n"
        f"{during}\n"
        "if 'stop' in sys.argv:\n"
        "    announce = main._announce\n"
        "    main._announce = lambda url: (announce(url), os.kill(os.getpid(), signal.SIGTERM))\n"
        "sys.exit(main.main(['--data', sys.argv[1], '--port', '0']))"
    )
    more = ["stop"] if "stop" in during else []
    said = ended(["-c", script, str(tmp_path / "data"), *more], number)
    assert said == ""
