"""How fast a demo may send: as fast as the learner learns, but never slower than the clock allows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from optimizer.errors import AdloopError
from optimizer.ids import version_order
from simulators.ad_client import AdClient, Json
from simulators.results import KLPoint

POLL_S = 0.25
WAIT_S = 0.02


class NothingLearns(AdloopError):
    """The server answers, but no policy or no pool appears."""


@dataclass
class Monitor:
    """What the server says of itself, read every `POLL_S` seconds. `versions`: how many have been published;
    `learned`: outcomes that the live version knew."""

    client: AdClient
    version: str = ""
    versions: int = 0
    learned: int = 0
    kl: float = 0.0
    kl_budget: float = 0.0
    curve: list[KLPoint] = field(default_factory=list)

    async def poll(self, shown: int) -> None:
        """Read `/v1/policies` once. `shown`: impressions so far, for the KL curve."""
        policies = await self.client.policies()
        live = next((policy for policy in policies if policy.get("serving")), None)
        if live is None:
            return
        evidence: Json = live.get("evidence", {})
        self.versions = 1 + max(version_order(policy["version"]) for policy in policies)
        self.learned = int(evidence.get("outcomes") or 0)
        self.kl = float(evidence.get("kl") or 0.0)
        self.kl_budget = float(evidence.get("kl_budget") or 0.0)
        if live["version"] != self.version:
            self.version = live["version"]
            self.curve.append(KLPoint(shown, self.kl))

    async def until_pools(self, within_s: float, check: Callable[[], None]) -> None:
        """Wait until every campaign has texts of its own to show. Raises NothingLearns after `within_s` seconds.

        `check` is called at every look; it raises where the server is gone."""
        try:
            async with asyncio.timeout(within_s):
                while not all(campaign["newest"] for campaign in (await self.client.stats()).values()):
                    check()
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise NothingLearns(
                f"the generator made no texts to show within {within_s:.0f} s; look at /readyz and the server's stderr"
            ) from None
        await self.poll(0)


class Pace:
    """Hold traffic back while the learner is more than `slack` impressions behind, but keep to the schedule.

    The schedule is the slowest that may be: `impressions` spread evenly over `within_s` seconds from the first `admit`.
    So a run ends in time on a slow machine (where learning then lags), and on a fast one it is bounded by how fast the
    system learns.

    Args:
      check: called while waiting; raises where the server is gone.
    """

    def __init__(
        self,
        monitor: Monitor,
        impressions: int,
        within_s: float,
        slack: int,
        now_s: Callable[[], float],
        check: Callable[[], None],
    ) -> None:
        self.waited_s = 0.0
        self._monitor = monitor
        self._per_s = impressions / within_s
        self._slack = slack
        self._now_s = now_s
        self._check = check
        self._start_s: float | None = None
        self._polled_s = 0.0

    async def admit(self, shown: int) -> None:
        """Return when the next wave may go, `shown` impressions having gone before it."""
        self._check()
        came_s = self._now_s()
        if self._start_s is None:
            self._start_s = self._polled_s = came_s
        while True:
            now_s = self._now_s()
            if now_s - self._polled_s >= POLL_S:
                self._polled_s = now_s
                await self._monitor.poll(shown)
            behind = shown - self._monitor.learned > self._slack
            if not behind or shown <= (now_s - self._start_s) * self._per_s:
                break
            self._check()
            await asyncio.sleep(WAIT_S)
        self.waited_s += self._now_s() - came_s
