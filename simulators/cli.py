"""`adloop VERB` and `python -m simulators VERB`: finds the verb, imports what it needs and nothing else, and runs
it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Verb(NamedTuple):
    """`module:main` takes the arguments after the verb (and the verb itself where `named`) and returns an exit
    status. `figures`: it ends with figures, and has --json for them."""

    summary: str
    module: str
    named: bool = False
    figures: bool = False


VERBS = {
    "demo": Verb("the whole loop on a simulated market, over HTTP, with a report", "simulators.demo", figures=True),
    "replay": Verb("real headline tests played again, against other bandits", "simulators.replay_run", figures=True),
    "compare": Verb(
        "a simulated market, against other policies on the same arrivals", "simulators.compare", figures=True
    ),
    "serve": Verb("the HTTP server (python -m serving)", "serving.__main__"),
    "serving": Verb("the same as serve", "serving.__main__"),
    "join": Verb("the reward joiner (python -m optimizer join)", "optimizer.__main__", named=True, figures=True),
    "learn": Verb("the learner (python -m optimizer learn)", "optimizer.__main__", named=True),
    "pretrain": Verb("train the tiny language model", "optimizer.__main__", named=True),
    "log": Verb("`log dump URL TOPIC`: a topic's records as JSON lines", "simulators.records", named=True),
    "quarantine": Verb("`quarantine list|replay URL`: records that were refused", "simulators.records", named=True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed, 2 wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if not arguments or arguments[0] not in VERBS:
        got = f"got {arguments[0]!r}" if arguments else "got no verb"
        print(f"adloop: {got}, expected one of {', '.join(VERBS)}; see adloop --help", file=sys.stderr)
        return 2
    verb = VERBS[arguments[0]]
    run: Callable[[Sequence[str]], int] = importlib.import_module(verb.module).main
    return run(arguments if verb.named else arguments[1:])


def usage() -> str:
    """The help page."""
    lines = [f"  {name:<12}{verb.summary}" for name, verb in VERBS.items()]
    *most, last = (name for name, verb in VERBS.items() if verb.figures)
    return "\n".join(
        [
            "usage: adloop VERB [options]    (adloop VERB --help tells a verb's own)",
            "",
            "Ad copy that learns from its clicks.",
            "",
            *lines,
            "",
            f"{', '.join(most)} and {last} have --json: one JSON object as the last line; progress goes to stderr.",
            "Exit status: 0 done, 1 failed with the reason on stderr, 2 wrong usage.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
