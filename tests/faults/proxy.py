"""A TCP proxy between joiners and the broker, whose connections can be cut, slowed down or left half-open."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final

HOST: Final = "127.0.0.1"
CHUNK: Final = 65_536
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close sends a reset, as a cut line does in the end


class _Link:
    """A connection that goes through. `dead`: what either side still sends is dropped, and neither is told."""

    def __init__(self, ends: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self.ends = ends
        self.dead = False

    def reset(self) -> None:
        for end in self.ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.transport.abort()


class Proxy:
    """Listens on a free port of 127.0.0.1, in a thread of its own, and forwards to `target`, which may come later."""

    def __init__(self) -> None:
        self.port = 0
        self.target = 0
        self._mode = "pass"
        self._delay_s = 0.0
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="proxy")
        self._thread.start()
        self._ready.wait()

    # -- faults: each in force from the return of the call ------------------------------------------------------------

    def cut(self) -> None:
        """Reset every connection, and every new one at once, until `mend`."""
        self._do(self._cut)

    def slow(self, delay_s: float) -> None:
        """Every answer of the broker comes so much later, until `mend`."""
        self._do(lambda: setattr(self, "_delay_s", delay_s))

    def swallow(self) -> None:
        """Every connection stays open and carries nothing any more, for good; new ones likewise until `mend`."""
        self._do(self._swallow)

    def mend(self) -> None:
        """New connections go through again, at full speed. Those that were swallowed stay dead."""
        self._do(self._mend)

    def connections(self) -> int:
        """How many connections are open."""
        return len(self._links)

    def close(self) -> None:
        """End the thread and every connection."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside: all in the proxy's thread ----------------------------------------------------------------------------

    def _do(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def call() -> None:
            what()
            done.set()

        self._loop.call_soon_threadsafe(call)
        done.wait()

    def _cut(self) -> None:
        self._mode = "cut"
        for link in self._links:
            link.reset()

    def _swallow(self) -> None:
        self._mode = "swallow"
        for link in self._links:
            link.dead = True

    def _mend(self) -> None:
        self._mode, self._delay_s = "pass", 0.0

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for link in list(self._links):
            link.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._through(reader, writer)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._tasks.discard(task)

    async def _through(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._mode == "cut":
            _Link((writer, writer)).reset()
            return
        far_reader, far_writer = await asyncio.open_connection(HOST, self.target)
        link = _Link((writer, far_writer))
        link.dead = self._mode == "swallow"
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, link, lambda: 0.0),
                self._pump(far_reader, writer, link, lambda: self._delay_s),
            )
        finally:
            self._links.discard(link)
            for end in link.ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link, delay_s: Callable[[], float]
    ) -> None:
        """One direction. Bytes keep their order and wait side by side, so that a delay is no limit of the speed."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sending = asyncio.create_task(self._send(queue, writer, link))
        try:
            while data := await reader.read(CHUNK):
                queue.put_nowait((self._loop.time() + delay_s(), data))
        finally:
            queue.put_nowait((0.0, b""))
            with suppress(OSError):
                await sending

    async def _send(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, link: _Link) -> None:
        while True:
            due, data = await queue.get()
            if not data:
                break
            if (left := due - self._loop.time()) > 0:
                await asyncio.sleep(left)
            if not link.dead:
                writer.write(data)
                await writer.drain()
        if not link.dead and writer.can_write_eof():
            writer.write_eof()
