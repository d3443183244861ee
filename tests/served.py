"""A real `python -m serving` process for the end-to-end tests."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

READY = "Adloop is ready at "
ROOT = Path(__file__).resolve().parent.parent


class Served:
    """The process, its URL and an HTTP client. What it prints on stdout is in `lines`, its stderr in a file."""

    def __init__(self, data: Path, *options: str, environment: Mapping[str, str] | None = None) -> None:
        data.mkdir(parents=True, exist_ok=True)
        self.stderr = data / "stderr.txt"
        self.lines: list[str] = []
        self.url = ""
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        command = [sys.executable, "-m", "serving", "--data", str(data), "--port", "0", *options]
        with self.stderr.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(environment or {})},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Served:
        return self.wait_ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def wait_ready(self, timeout_s: float = 120.0) -> Served:
        """Wait for the line with the URL."""
        try:
            line = self._ready.get(timeout=timeout_s)
        except queue.Empty:
            line = ""
        if not line.startswith(READY):
            self.kill()
            raise AssertionError(f"the server did not start: {line!r} {self.errors()[-2000:]}")
        self.url = line.removeprefix(READY).strip()
        self.http = httpx.Client(base_url=self.url, timeout=60.0)
        return self

    def errors(self) -> str:
        return self.stderr.read_text(errors="replace")

    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60.0) -> int:
        """Send a signal and wait; returns the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(timeout_s)
        self._close()
        return status

    def kill(self) -> None:
        """SIGKILL, whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)
        self._close()

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, body: object) -> Any:
        return self.http.post(path, json=body).raise_for_status().json()

    def put(self, path: str, body: object) -> Any:
        return self.http.put(path, json=body).raise_for_status().json()

    def _close(self) -> None:
        self._reader.join(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self.url:
            self.http.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            self._ready.put(line)
        self._ready.put("")
