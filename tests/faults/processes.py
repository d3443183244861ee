"""Joiner processes: started, killed, frozen, and their messages kept."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.faults.traffic import SECRET

END_S: Final = 90.0


class Joiners:
    """Joiner processes by name, each with a state folder of its own under `folder`, all on one log."""

    def __init__(self, folder: Path, group: str | None = None) -> None:
        self.folder = folder
        self.group = group
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, url: str, *more: str) -> subprocess.Popen[bytes]:
        """Start `name` on the log at `url`; its messages go to NAME.log."""
        command = [sys.executable, "-m", "optimizer", "join", "--log", url, "--state", str(self.state(name)), *more]
        if self.group is not None:
            command += ["--group", self.group]
        keys = {"ADLOOP_TOKEN_KEYS": f"test:{base64.b64encode(SECRET).decode()}"}
        with self.messages(name).open("ab") as messages:
            process = subprocess.Popen(command, stdout=messages, stderr=messages, env={**os.environ, **keys})
        self.running[name] = process
        return process

    def state(self, name: str) -> Path:
        """The state folder of a joiner."""
        return self.folder / name

    def messages(self, name: str) -> Path:
        """What a joiner has said so far."""
        return self.folder / f"{name}.log"

    def kill(self, name: str, lose_state: bool = False) -> None:
        """SIGKILL, and its state folder gone too where that is wanted."""
        process = self.running.pop(name)
        process.kill()
        process.wait(END_S)
        if lose_state:
            shutil.rmtree(self.state(name), ignore_errors=True)

    def stop(self, name: str) -> int:
        """SIGTERM; the exit status."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(END_S)

    def leave(self, name: str) -> None:
        """SIGTERM, if it runs, and its state folder gone: the next one of that name begins with nothing."""
        if name in self.running:
            status = self.stop(name)
            assert status == 0, self.last_words(name)
        shutil.rmtree(self.state(name), ignore_errors=True)

    def died(self) -> list[str]:
        """Those that have ended by themselves, which none should."""
        return [name for name, process in self.running.items() if process.poll() is not None]

    def last_words(self, name: str) -> str:
        """The end of what a joiner has said."""
        return "\n".join(self.messages(name).read_text(encoding="utf-8", errors="replace").splitlines()[-8:])

    def close(self) -> None:
        """Kill whatever runs."""
        for name in list(self.running):
            self.kill(name)
