"""`python -m tests.faults kills | series`: long runs of faults on a broker of their own; figures go to stdout.

Exit status 1 where anything was lost or doubled, or took too long.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.faults import kills, series
from tests.kafka_rig import running_broker


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit status."""
    options = _parser().parse_args(argv)
    # The client library tells of every connection that fails: here that is what is wanted.
    logging.getLogger("optimizer.stream.kafka_confluent").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with the broker and the joiners ended
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        return _kills(options, Path(folder)) if options.what == "kills" else _series(options, Path(folder))


def _kills(options: argparse.Namespace, folder: Path) -> int:
    plan = kills.Plan(
        options.impressions, options.kills, options.restarts, options.lost_states, options.members, options.seed
    )
    with running_broker(folder / "kafka", quick_start=False) as broker:
        found = kills.run(plan, broker, folder / "joiners")
    print(
        json.dumps({**plan._asdict(), **found._asdict(), **found.verdict._asdict(), "verdict": found.verdict.right()})
    )
    return 0 if found.verdict.right() and found.kills == plan.kills and found.restarts == plan.restarts else 1


def _series(options: argparse.Namespace, folder: Path) -> int:
    right = True
    for fault in options.faults or list(series.FAULTS):
        found = series.run(fault, options.each, options.lanes, options.seed, folder / fault)
        print(json.dumps({**found.figures(), "verdict": found.right()}), flush=True)
        right = right and found.right()
    return 0 if right else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=sys.modules[__name__].__doc__)
    verbs = parser.add_subparsers(dest="what", required=True)
    killing = verbs.add_parser("kills", help="SIGKILL joiners at random moments, restart the broker under them")
    killing.add_argument("--impressions", type=int, default=100_000)
    killing.add_argument("--kills", type=int, default=120)
    killing.add_argument("--restarts", type=int, default=5, help="of the broker")
    killing.add_argument("--lost-states", type=int, default=4, help="kills that the state folder is lost with")
    killing.add_argument("--members", type=int, default=3, help="of the group that the second half of the kills hits")
    killing.add_argument("--seed", type=int, default=1)
    one_by_one = verbs.add_parser("series", help="one kind of fault after the other, many times each")
    one_by_one.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(series.FAULTS)}; all of them")
    one_by_one.add_argument("--each", type=int, default=50, help="how many of each (%(default)s)")
    one_by_one.add_argument("--lanes", type=int, default=4, help="logs and joiners side by side (%(default)s)")
    one_by_one.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
