"""Adloop as an ad server sees it: docs/api.md, Requests over real HTTP, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from optimizer.errors import AdloopError

EVENTS_PER_REQUEST = 1000
TIMEOUT_S = 30.0

Json = dict[str, Any]


class Refused(AdloopError):
    """A request was refused; the text holds the status and the problem's own words."""


class Unreachable(AdloopError):
    """No answer: the connection failed or the answer did not come in time."""


class AdClient:
    """A few kept-alive connections to one server. Use it as `async with AdClient(url) as client`."""

    def __init__(self, url: str, connections: int = 8) -> None:
        self.requests = 0
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=TIMEOUT_S,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            trust_env=False,  # a proxy of the environment has no business between here and loopback
        )

    async def __aenter__(self) -> AdClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def put_campaign(self, campaign_id: str, body: Mapping[str, object]) -> Json:
        """The campaign with its defaults filled in."""
        return await self._call("PUT", f"/v1/campaigns/{campaign_id}", body)

    async def generate(self, campaign_id: str, context: Mapping[str, object]) -> Json:
        """One decision: the first of the answer's `variants`."""
        answer = await self._call("POST", "/v1/generate", {"campaign_id": campaign_id, "context": context})
        variant: Json = answer["variants"][0]
        return {**variant, "policy_version": answer["policy_version"]}

    async def post_events(self, events: Sequence[Json]) -> None:
        """Post in batches of at most 1,000. Raises Refused for the first event that was rejected."""
        for start in range(0, len(events), EVENTS_PER_REQUEST):
            answer = await self._call("POST", "/v1/events", events[start : start + EVENTS_PER_REQUEST])
            for result in answer["results"]:
                if result["status"] != "accepted":
                    raise Refused(
                        f"event {result['event_id']} was rejected: {result.get('reason')}, {result.get('detail')}"
                    )

    async def stats(self) -> Json:
        """Per campaign: figures by policy version and for control, lift, KL, newest texts."""
        campaigns: Json = (await self._call("GET", "/v1/stats"))["campaigns"]
        return campaigns

    async def policies(self) -> list[Json]:
        """Every policy version with its stage, oldest first."""
        policies: list[Json] = (await self._call("GET", "/v1/policies"))["policies"]
        return policies

    async def _call(self, method: str, path: str, body: object = None) -> Json:
        self.requests += 1
        try:
            response = await self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Unreachable(f"{method} {path}: no answer ({type(error).__name__}: {error})") from error
        if not response.is_success:
            raise Refused(f"{method} {path} was refused with status {response.status_code}: {response.text[:500]}")
        answer: Json = response.json()
        return answer
