"""One kind of fault after the other, many times each: nothing is lost, and the join catches up soon after.

A lane is a log of its own with joiner processes that reach the broker through a proxy; lanes go side by side. Traffic
goes on all the time. A fault has a length; catching up is measured from its end to the moment when the outcomes of all
that had been appended by then are in the log.
"""

from __future__ import annotations

import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple

from deploy.kafka.broker import Broker
from optimizer.stream.kafka_log import KafkaLog
from optimizer.stream.kafka_url import parse_kafka_url
from tests.faults.check import Verdict, judge
from tests.faults.life import Life
from tests.faults.processes import Joiners
from tests.faults.proxy import HOST, Proxy
from tests.kafka_rig import new_prefix, running_broker, url

CLIENTS: Final = ("kafka-python", "confluent")
PARTITIONS: Final = 4
DELAY_S: Final = 2.0
MOST: Final = 2.0  # times its length may the join take to catch up after a fault
LIMIT_S: Final = 60.0
SETTLED_S: Final = 1.0


class Fault(NamedTuple):
    """One that was: seconds that it lasted, and that catching up took after it."""

    length_s: float
    catch_up_s: float


class Found(NamedTuple):
    """What came of a series."""

    fault: str
    faults: list[Fault]
    verdicts: list[Verdict]
    died: int

    def right(self) -> bool:
        """Nothing lost, nothing doubled, caught up in time."""
        return self.slow() == 0 and self.died == 0 and all(verdict.right() for verdict in self.verdicts)

    def slow(self) -> int:
        """How many were not caught up with in `MOST` times their length."""
        return sum(fault.catch_up_s > MOST * fault.length_s for fault in self.faults)

    def figures(self) -> dict[str, Any]:
        """For people."""
        lengths = [fault.length_s for fault in self.faults]
        ratios = sorted(fault.catch_up_s / fault.length_s for fault in self.faults)
        catch_up = sorted(fault.catch_up_s for fault in self.faults)
        return {
            "fault": self.fault,
            "faults": len(self.faults),
            "length_s": [round(min(lengths), 2), round(max(lengths), 2)],
            "catch_up_s": {"median": round(statistics.median(catch_up), 2), "max": round(catch_up[-1], 2)},
            "catch_up_per_length": {"median": round(statistics.median(ratios), 2), "max": round(ratios[-1], 2)},
            "slower_than_allowed": self.slow(),
            "ended_by_themselves": self.died,
            **{name: sum(getattr(verdict, name) for verdict in self.verdicts) for name in Verdict._fields},
        }


class Lane:
    """A log, a proxy, joiners and traffic."""

    def __init__(self, number: int, broker: Broker, proxy: Proxy, folder: Path, members: int, seed: int) -> None:
        self.rng = random.Random(f"{seed}/{number}")
        self.proxy = proxy
        self.broker = broker
        self.died = 0
        prefix = new_prefix()
        direct = url(broker, prefix, "confluent", partitions=PARTITIONS)
        client = CLIENTS[number % len(CLIENTS)]
        self.url = f"kafka://{HOST}:{proxy.port}?prefix={prefix}&client={client}"
        self.joiners = Joiners(folder, "g")
        self._log = KafkaLog(parse_kafka_url(direct, {}))
        self.life = Life(self._log, seed * 1_000 + number)
        self._members = members

    def start(self, name: str) -> None:
        """Start a joiner, and wait until it has a share."""
        self.joiners.start(name, self.url)
        deadline = time.monotonic() + LIMIT_S
        while not self.shares(name) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert self.shares(name), self.joiners.last_words(name)

    def shares(self, name: str) -> int:
        """How many partitions' states a joiner holds."""
        return len(list(self.joiners.state(name).glob("partition-*")))

    def one(self, inflict: Callable[[Lane], float]) -> Fault:
        """Once all is well, a fault, and the time that it takes until all is well again."""
        self.settle()
        length_s = inflict(self)
        ended = time.monotonic()
        found = Fault(length_s, self.life.caught_up(ended, LIMIT_S))
        self.died += len(self.joiners.died())
        return found

    def settle(self) -> None:
        """Wait until everything of a second ago is out."""
        time.sleep(SETTLED_S)
        self.life.caught_up(time.monotonic() - SETTLED_S, LIMIT_S)

    def end(self) -> Verdict:
        """End the traffic, wait for the last of it, and judge the log."""
        self.life.caught_up(time.monotonic(), LIMIT_S)
        expected = self.life.end()
        for name in list(self.joiners.running):
            self.joiners.stop(name)
        # What was appended last may still be on its way: one joiner reads to the end.
        last = self.joiners.start("last", self.url, "--until-idle", "3")
        assert last.wait(LIMIT_S) == 0, self.joiners.last_words("last")
        return judge(self._log, expected)

    def __enter__(self) -> Lane:
        try:
            for member in range(self._members):
                self.start(f"m{member}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the traffic and every process."""
        self.life.end()
        self.joiners.close()
        self._log.close()


# -- the faults: each inflicts one and returns how long it lasted, in seconds ------------------------------------------


def cut(lane: Lane) -> float:
    """Every connection is reset, and stays so for a while."""
    lane.proxy.cut()
    return _mended(lane, 2.0, 6.0)


def latency(lane: Lane) -> float:
    """Every answer takes two seconds."""
    lane.proxy.slow(DELAY_S)
    return _mended(lane, 6.0, 10.0)


def half_open(lane: Lane) -> float:
    """Every socket stays open and carries nothing; new ones do after a while, old ones never again."""
    lane.proxy.swallow()
    return _mended(lane, 10.0, 14.0)


def broker(lane: Lane) -> float:
    """The broker is stopped, and started again after a moment."""
    started = time.monotonic()
    lane.broker.stop()
    time.sleep(lane.rng.random() * 2)
    lane.broker.start()
    return time.monotonic() - started


def added(lane: Lane) -> float:
    """Another consumer comes, with no state of its own; it ends again once the join has caught up."""
    lane.joiners.leave("new")
    lane.settle()
    started = time.monotonic()
    lane.start("new")
    return time.monotonic() - started


def frozen(lane: Lane) -> float:
    """One of two consumers stands still for longer than its session, and goes on as if nothing had been."""
    name = lane.rng.choice(sorted(lane.joiners.running))
    process = lane.joiners.running[name]
    started = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    time.sleep(lane.rng.uniform(12.0, 15.0))
    process.send_signal(signal.SIGCONT)
    return time.monotonic() - started


def _mended(lane: Lane, least_s: float, most_s: float) -> float:
    started = time.monotonic()
    time.sleep(lane.rng.uniform(least_s, most_s))
    lane.proxy.mend()
    return time.monotonic() - started


FAULTS: Final[dict[str, tuple[Callable[[Lane], float], int]]] = {
    "cut": (cut, 1),
    "latency": (latency, 1),
    "half-open": (half_open, 1),
    "broker": (broker, 1),
    "added": (added, 1),
    "frozen": (frozen, 2),
}


def run(fault: str, each: int, lanes: int, seed: int, folder: Path) -> Found:
    """A series of `each` faults of a kind, shared out among lanes; a broker that is stopped is every lane's."""
    inflict, members = FAULTS[fault]
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy()) for _ in range(lanes)]
        behind = {f"lane{number}": proxy.port for number, proxy in enumerate(proxies)}
        running = stack.enter_context(running_broker(folder / "kafka", behind=behind, quick_start=False))
        for name, proxy in zip(behind, proxies, strict=True):
            proxy.target = int(running.address(name).rpartition(":")[2])
        made = [
            stack.enter_context(Lane(number, running, proxy, folder / f"lane{number}", members, seed))
            for number, proxy in enumerate(proxies)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(lanes))
        told = _Told(fault, each)
        if fault == "broker":
            faults = [told(_everyones(made, pool, inflict)) for _ in range(each)]
        else:
            shares = [each // lanes + (number < each % lanes) for number in range(lanes)]
            series = pool.map(lambda lane, share: [told(lane.one(inflict)) for _ in range(share)], made, shares)
            faults = [one for lane in series for one in lane]
        verdicts = list(pool.map(Lane.end, made))
        return Found(fault, faults, verdicts, sum(lane.died for lane in made))


def _everyones(lanes: list[Lane], pool: ThreadPoolExecutor, inflict: Callable[[Lane], float]) -> Fault:
    """A fault that hits all lanes at once: the slowest one counts."""
    list(pool.map(Lane.settle, lanes))
    length_s = inflict(lanes[0])
    ended = time.monotonic()
    slowest = max(pool.map(lambda lane: lane.life.caught_up(ended, LIMIT_S), lanes))
    for lane in lanes:
        lane.died += len(lane.joiners.died())
    return Fault(length_s, slowest)


class _Told:
    """Tells of each fault as it is over."""

    def __init__(self, fault: str, each: int) -> None:
        self._fault, self._each = fault, each
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self, one: Fault) -> Fault:
        with self._lock:
            self._count += 1
            place = f"{self._fault} {self._count}/{self._each}"
            print(f"{place}: {one.length_s:.1f} s, caught up in {one.catch_up_s:.2f} s", file=sys.stderr, flush=True)
        return one
