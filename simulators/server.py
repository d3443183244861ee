"""The real system as a subprocess: started, watched and stopped by whoever drives it from outside."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import AdloopError

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 10.0
STDERR_LINES = 12
# Development mode is what a newcomer meets; credentials meant for another server must not reach this one.
SECRETS = ("ADLOOP_API_KEYS", "ADLOOP_TOKEN_KEYS")


class ServerDied(AdloopError):
    """The served process ended, or never became ready; the text carries its last stderr lines."""


class NoModel(AdloopError):
    """The tiny language model could not be made."""


def serving_command(data: Path, port: int, model: str | None) -> list[str]:
    """`python -m serving --all` on the embedded log in `data`; port 0 takes a free one, model None the tiny one."""
    return [*python("serving", "--all", "--data", data, "--port", port), *([] if model is None else ["--model", model])]


def python(module: str, *arguments: object) -> list[str]:
    """`python -m MODULE ...` with the Python that runs us."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def pretrain_command() -> list[str]:
    """`python -m optimizer pretrain`: puts the tiny model into the cache where it is not there yet."""
    return [sys.executable, "-m", "optimizer", "pretrain"]


async def make_model(command: Sequence[str]) -> None:
    """Run `command` to its end, its progress on our stderr. The server would train the model as well, but on one core
    and unseen. Raises NoModel."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        status = await process.wait()
    finally:
        await _stop(process)
    if status != 0:
        raise NoModel(f"the tiny language model could not be made: pretrain ended with status {status}, see above")


@dataclass(frozen=True)
class Child:
    """A running process of the system, what it is called, and what it has said on stderr."""

    name: str
    process: asyncio.subprocess.Process
    stderr: Path

    def check(self) -> None:
        """Raises ServerDied where the process has ended."""
        if self.process.returncode is not None:
            raise died(f"the {self.name} ended with status {self.process.returncode}", self.stderr)


@dataclass(frozen=True)
class Server:
    """A running server and where it answers; `others` are the processes that run beside it."""

    url: str
    child: Child
    others: tuple[Child, ...] = ()

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The server's own."""
        return self.child.process

    def check(self) -> None:
        """Raises ServerDied where one of the processes has ended."""
        for child in (self.child, *self.others):
            child.check()


def died(what: str, stderr: Path) -> ServerDied:
    """The error for a server that is gone, with the end of its stderr."""
    lines = stderr.read_text(errors="replace").splitlines()[-STDERR_LINES:]
    said = "\n".join(f"  {line}" for line in lines) if lines else "  (nothing)"
    return ServerDied(f"{what}; its last words on stderr:\n{said}")


@asynccontextmanager
async def running(
    command: Sequence[str], stderr: Path, ready_within_s: float = READY_WITHIN_S
) -> AsyncIterator[Server]:
    """Start `command`, wait for the line with its URL on stdout, hand it out, and stop it whatever happens.

    Args:
      stderr: the file that takes the process's stderr.
      ready_within_s: how long the line may take.

    Raises:
      ServerDied: it ended, or the line did not come in time.
    """
    child = await start("server", command, stderr, stdout=asyncio.subprocess.PIPE)
    try:
        yield Server(await _ready_url(child.process, stderr, ready_within_s), child)
    finally:
        await _stop(child.process)


async def start(name: str, command: Sequence[str], stderr: Path, stdout: int = asyncio.subprocess.DEVNULL) -> Child:
    """Start `command` in a session of its own, its stderr in a file."""
    with stderr.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=stdout,
            stderr=sink,
            env={name: value for name, value in os.environ.items() if name not in SECRETS},
            start_new_session=True,  # Ctrl-C reaches us alone: we stop the system in order
        )
    return Child(name, process, stderr)


async def stop(children: Sequence[Child]) -> None:
    """End them all at once, each in order where it listens."""
    await asyncio.gather(*(_stop(child.process) for child in children))


async def _ready_url(process: asyncio.subprocess.Process, stderr: Path, within_s: float) -> str:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(within_s):
            while line := await process.stdout.readline():
                if found := re.search(rb"https?://\S+", line):
                    return found.group().decode().rstrip("/")
            status = await process.wait()
    except TimeoutError:
        raise died(f"the server was not ready within {within_s:.0f} s", stderr) from None
    raise died(f"the server ended with status {status} before it was ready", stderr)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, then SIGKILL for one that does not listen."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_WITHIN_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
