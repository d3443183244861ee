"""The waiting part of a joiner's step, in threads: disks and brokers answer while the next records are judged."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from optimizer.errors import AdloopError
from optimizer.stream.partition import PartitionJoiner

THREADS: Final = 8  # partitions that wait at once


class Finisher:
    """Finishes partitions, each in a thread, and remembers what went wrong until it is asked. Not thread-safe."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="finish")
        self._running: dict[int, Future[None]] = {}

    def start(self, part: PartitionJoiner) -> None:
        """Finish a partition that was staged. The client's work is done here, so that its thread only waits: two
        threads that both work take turns of 5 ms."""
        try:
            part.flush()
        except (AdloopError, OSError) as error:
            self.failed(part.partition, error)
        else:
            self._running[part.partition] = self._pool.submit(part.finish)

    def failed(self, partition: int, error: Exception) -> None:
        """A partition could not even be staged."""
        self._running[partition] = Future()
        self._running[partition].set_exception(error)

    def running(self, partition: int) -> bool:
        """Whether a partition was started and has not been asked for since."""
        return partition in self._running

    def wait(self, partition: int) -> bool:
        """Wait until a partition is through; False where it went wrong, which `settle` then tells."""
        future = self._running.get(partition)
        if future is None:
            return True
        if future.exception() is not None:
            return False
        del self._running[partition]
        return True

    def settle(self) -> dict[int, BaseException]:
        """Wait until all are through; returns what went wrong, by partition."""
        errors = {partition: future.exception() for partition, future in self._running.items()}
        self._running.clear()
        return {partition: error for partition, error in errors.items() if error is not None}

    def close(self) -> None:
        """Once all are through, end the threads."""
        self._pool.shutdown()
