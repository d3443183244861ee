"""A joiner's figures for Prometheus, and whether it is ready: `/metrics` and `/readyz` of `join`."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from optimizer import metrics
from optimizer.clock import Clock
from optimizer.errors import ConfigError
from optimizer.metrics import (
    JOINER_CATCH_UP,
    JOINER_DELAY,
    JOINER_EVENT_TIME_AGE,
    JOINER_LAG,
    JOINER_OPEN_DECISIONS,
    JOINER_QUARANTINED,
    JOINER_READY,
    JOINER_REVISIONS,
)
from optimizer.stream.joiner import SOURCES, Joiner

DELAY_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class JoinerFigures(Collector):
    """The figures as the joiner's own thread last took them; read by any thread."""

    def __init__(self, clock: Clock) -> None:
        self.ready = False
        self._clock = clock
        self._families: list[Metric] = []
        self._buckets = [0] * (len(DELAY_BUCKETS_S) + 1)
        self._delays_s = 0.0

    def take(self, joiner: Joiner, trouble: bool = False) -> None:
        """Look at the joiner, in its own thread. `trouble`: its last step failed, so it is not ready."""
        for delay_ms in joiner.take_delays():
            self._buckets[bisect_left(DELAY_BUCKETS_S, delay_ms / 1000)] += 1
            self._delays_s += delay_ms / 1000
        self.ready = joiner.caught_up and not trouble
        self._families = list(self._made(joiner))

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from self._families

    def _made(self, joiner: Joiner) -> Iterator[Metric]:
        counts, now = joiner.counts, self._clock.now_ms()
        lag, age, behind = (_gauge(told) for told in (JOINER_LAG, JOINER_EVENT_TIME_AGE, JOINER_CATCH_UP))
        for partition, figures in joiner.figures().items():
            name = str(partition)
            for topic, waiting in zip(SOURCES, (figures.decisions_lag, figures.events_lag), strict=True):
                lag.add_metric([topic, name], waiting)
            if figures.event_time is not None:
                age.add_metric([name], (now - figures.event_time) / 1000)
            behind.add_metric([name], figures.behind)
        refused = CounterMetricFamily(
            JOINER_QUARANTINED.name, JOINER_QUARANTINED.meaning, labels=JOINER_QUARANTINED.labels
        )
        quarantined = counts["quarantined"]
        for reason, count in quarantined.items() if isinstance(quarantined, dict) else ():
            refused.add_metric([reason], count)
        revisions = counts["revisions"]
        yield from (lag, age, behind, refused, self._delay())
        yield CounterMetricFamily(
            JOINER_REVISIONS.name,
            JOINER_REVISIONS.meaning,
            value=revisions if isinstance(revisions, int) else None,
        )
        yield _gauge(JOINER_OPEN_DECISIONS, joiner.open_decisions)
        yield _gauge(JOINER_READY, int(self.ready))

    def _delay(self) -> Metric:
        total = 0
        buckets: list[tuple[str, float]] = []
        for edge, count in zip((*map(str, DELAY_BUCKETS_S), "+Inf"), self._buckets, strict=True):
            total += count
            buckets.append((edge, total))
        return HistogramMetricFamily(JOINER_DELAY.name, JOINER_DELAY.meaning, buckets=buckets, sum_value=self._delays_s)


def _gauge(told: metrics.Metric, value: float | None = None) -> GaugeMetricFamily:
    """A gauge of one value, or, without it, one that gets its values by label."""
    return GaugeMetricFamily(told.name, told.meaning, value, told.labels if value is None else None)


class Exporter:
    """An HTTP server in a thread of its own. Raises ConfigError where the port is taken."""

    def __init__(self, figures: JoinerFigures, port: int, host: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        registry.register(figures)

        class Handler(BaseHTTPRequestHandler):
            """GET /metrics, GET /readyz; anything else is 404."""

            def do_GET(self) -> None:
                """Answer from what was last taken."""
                match self.path:
                    case "/metrics":
                        self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                    case "/readyz":
                        said = b'{"ready": true}' if figures.ready else b'{"ready": false}'
                        self._answer(200 if figures.ready else 503, said, "application/json")
                    case _:
                        self._answer(404, b'{"title": "Not found"}', "application/problem+json")

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: a look every few seconds is no news."""

            def _answer(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConfigError(
                f"--metrics-host {host} --metrics-port {port}: cannot listen there ({error}); give another"
            ) from error
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, name="exporter", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
