"""`python -m tests.fakes.contract_server [--fault KIND]`: answers contracts section 1 from memory, and learns by rote.

It holds back a tenth of the requests; the rest get one of two texts, the better one more and more as impressions come.
Faults: `early` ends before it is ready, `late` after 40 decisions, `silent` never gets ready, `deaf` ignores SIGTERM.
`GET /seen` tells what came in, so that a test can check the stream that a client sends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
PLAIN, GOOD = {"headline": "A plain thing"}, {"headline": "A good thing"}


class State:
    """Everything that came in."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.lock = threading.Lock()
        self.random = random.Random(7)
        self.campaigns: dict[str, Json] = {}
        self.decisions: dict[str, Json] = {}
        self.events: list[Json] = []

    def shown(self) -> int:
        return sum(event["type"] == "impression" for event in self.events)

    def version(self) -> str:
        return f"v{self.shown() // 50}"

    def put(self, campaign_id: str, body: Json) -> Json:
        defaults: Json = {"segments": ["all"], "attribution": {"click_window_ms": 1_800_000}}
        self.campaigns[campaign_id] = {"campaign_id": campaign_id, **defaults, **body}
        return self.campaigns[campaign_id]

    def generate(self, body: Json) -> Json:
        campaign = self.campaigns[body["campaign_id"]]
        held_back = self.random.random() < 0.1
        good = self.random.random() < min(0.9, 0.1 + self.shown() / 400)
        slots = campaign["controls"][0] if held_back else GOOD if good else PLAIN
        decision_id = f"d-{len(self.decisions)}"
        self.decisions[decision_id] = body
        if self.fault == "late" and len(self.decisions) > 40:
            print("the disk is full", file=sys.stderr, flush=True)
            os._exit(3)
        variant = {"decision_id": decision_id, "slots": slots, "source": "control" if held_back else "pool"}
        return {"policy_version": self.version(), "variants": [{**variant, "token": f"t-{decision_id}"}]}

    def post(self, events: list[Json]) -> Json:
        results = []
        for event in events:
            known = event["decision_id"] in self.decisions and event["token"] == f"t-{event['decision_id']}"
            self.events.append(event)
            status = {"status": "accepted"} if known else {"status": "rejected", "reason": "bad_token", "detail": "no"}
            results.append({"event_id": event["event_id"], **status})
        return {"results": results}

    def seen(self) -> Json:
        return {"events": self.events, "decisions": self.decisions}

    def stats(self) -> Json:
        figures: Json = {"policies": {}, "control": {}, "lift": None, "kl": 1.5, "newest": ["A good thing"]}
        return {"campaigns": dict.fromkeys(self.campaigns, figures)}

    def policies(self) -> Json:
        evidence = {"outcomes": self.shown(), "kl": 1.5, "kl_budget": 8.0}
        return {"policies": [{"version": self.version(), "stage": "live", "serving": True, "evidence": evidence}]}


def handler(state: State) -> type[BaseHTTPRequestHandler]:
    """A request handler over `state`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_PUT(self) -> None:
            with state.lock:
                self._answer(201, state.put(self.path.rsplit("/", 1)[1], self._body()))

        def do_POST(self) -> None:
            body = self._body()
            with state.lock:
                if self.path == "/v1/generate":
                    self._answer(200, state.generate(body))
                else:
                    self._answer(202, state.post(body))

        def do_GET(self) -> None:
            with state.lock:
                answers = {"/v1/stats": state.stats, "/v1/policies": state.policies, "/seen": state.seen}
                self._answer(200, answers[self.path]())

        def _body(self) -> Any:
            return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, status: int, body: Json) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            return None

    return Handler


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", default="")
    fault = parser.parse_args().fault
    if fault == "early":
        sys.exit("no room at the inn")
    if fault == "silent":
        time.sleep(60)
    if fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(State(fault)))
    print(f"Adloop is ready at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
