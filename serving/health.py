"""Whether the server may take traffic, and the figures of `/metrics`, read from their owners when asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from optimizer import metrics
from optimizer.metrics import Metric
from serving.views import Views

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0)


@dataclass
class Health:
    """What `/readyz` answers. `roles` holds the state of each background role; a role that is not "running" or
    "starting" makes the server unready."""

    views: Views
    roles: dict[str, str] = field(default_factory=dict)
    log_refuses: Callable[[], bool] = lambda: False
    started: bool = False

    def problems(self) -> dict[str, str]:
        """What stands against readiness, by part; empty when ready."""
        found = {name: state for name, state in self.roles.items() if state not in ("running", "starting", "paused")}
        if not self.started:
            found["views"] = "still reading the log"
        if self.log_refuses():
            found["log"] = "the last append was refused"
        return found


Figures = float | Mapping[str, float]


class Metrics:
    """The server's own registry; names, labels and meanings stand in optimizer/metrics.py.

    `gauges` are asked at each scrape, for a number or for numbers by label.
    """

    def __init__(self, gauges: Mapping[Metric, Callable[[], Figures]]) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(metrics.HTTP_REQUESTS)
        told = metrics.HTTP_REQUEST_SECONDS
        self.latency = Histogram(
            told.name, told.meaning, told.labels, buckets=LATENCY_BUCKETS_S, registry=self.registry
        )
        self.decisions = self._counter(metrics.DECISIONS)
        self.events = self._counter(metrics.EVENTS)
        self.registry.register(_Asked(gauges))

    def _counter(self, told: Metric) -> Counter:
        return Counter(told.name, told.meaning, told.labels, registry=self.registry)


class Measured:
    """ASGI middleware: counts and times every request under its route's template, never under the path that came."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if route != "unknown" else "-"
            self._metrics.requests.labels(route, method, status).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - started)


class _Asked(Collector):
    def __init__(self, gauges: Mapping[Metric, Callable[[], Figures]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[GaugeMetricFamily]:
        for metric, value in self._gauges.items():
            found = value()
            if isinstance(found, Mapping):
                family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for label, one in found.items():
                    family.add_metric([label], one)
                yield family
            else:
                yield GaugeMetricFamily(metric.name, metric.meaning, found)
