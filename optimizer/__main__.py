"""`python -m optimizer join | learn | pretrain`: the roles that need no HTTP.

Exit status: 0 done (also after SIGTERM and Ctrl-C), 1 failed with the reason on stderr, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from optimizer import arguments
from optimizer.clock import SystemClock
from optimizer.errors import AdloopError, ConfigError
from optimizer.maths.attribution import EXTRA_RETENTION_MS, GRACE_MS
from optimizer.signals import terminable
from optimizer.stream.assignment import Assignment
from optimizer.stream.exporter import Exporter, JoinerFigures
from optimizer.stream.joiner import Joiner
from optimizer.stream.kafka_url import parse_kafka_url
from optimizer.stream.open import open_log, sqlite_path
from optimizer.stream.tokens import TOKEN_KEYS_FILE, TokenKeys

POLL_S = 0.2
PROGRESS_EVERY_S = 2.0
RETRY_S = 1.0
LOOK_EVERY_S = 1.0  # at the figures that are shown
MOST_MS = 2**53  # a time plus this still fits 64 bits
COLLECT = (100_000, 50, 100)  # thresholds of the garbage collector
USAGE = "usage: python -m optimizer {join,learn,pretrain} [options]; each knows --help"
HELP = f"""{USAGE}

  join      turn decisions and events into outcomes, until a signal
  learn     teach critic and policy from the outcomes, until a signal
  pretrain  train the tiny language model, on generated ad copy or on your own texts

Exit status: 0 done (also after SIGTERM and Ctrl-C), 1 failed with the reason on stderr, 2 wrong usage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; expected errors become one sentence on stderr. Returns the exit status."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    try:
        with terminable():
            match verb:
                case "join":
                    return main_join(rest)
                case "pretrain" if not rest and (made := _made_already()) is not None:
                    print(made)
                    return 0
                case "learn" | "pretrain":
                    # Imported here because the joiner needs none of it.
                    from optimizer.learning.commands import main_learn, main_pretrain

                    return main_learn(rest) if verb == "learn" else main_pretrain(rest)
                case "-h" | "--help":
                    print(HELP)
                    return 0
                case _:
                    print(USAGE, file=sys.stderr)
                    return 2
    except KeyboardInterrupt:
        return 0
    except (AdloopError, OSError, sqlite3.Error) as error:
        print(f"adloop: {error}", file=sys.stderr)
        return 1


def _made_already() -> Path | None:
    """The tiny model of the default recipe, where it is made: told at once, before anything that could make it is
    loaded."""
    from optimizer.learning.recipe import PretrainConfig, made_already

    return made_already(PretrainConfig())


def main_join(argv: Sequence[str]) -> int:
    """`python -m optimizer join`: turn decisions and events into outcomes until a signal, or until nothing comes."""
    options = _join_parser().parse_args(argv)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    keys = join_keys(options, os.environ)
    started = time.monotonic()
    figures_now = JoinerFigures(SystemClock())
    # A joiner makes no cycles, and the collector walking its caches costs a fifth of the time.
    gc.set_threshold(*COLLECT)
    with (
        closing(open_log(options.log)) as log,
        Joiner(
            log,
            options.state,
            keys,
            SystemClock(),
            options.grace_ms,
            options.extra_retention_ms,
            join_group(options.log, options.group),
        ) as joiner,
        _exported(figures_now, options.metrics_port, options.metrics_host),
    ):
        _until_stopped(joiner, stopping, options.until_idle, figures_now)
        figures: dict[str, object] = {**joiner.counts, "seconds": round(time.monotonic() - started, 3)}
    print(json.dumps(figures) if options.json else _sentence(figures), flush=True)
    return 0


def join_keys(options: argparse.Namespace, environment: Mapping[str, str]) -> TokenKeys:
    """The keys that tokens are checked with: --token-keys FILE, ADLOOP_TOKEN_KEYS, or `token_keys` in --data (without
    that, in the folder of the embedded log). Raises ConfigError where there are none."""
    if options.token_keys is not None:
        return TokenKeys.load(options.token_keys)
    text = environment.get("ADLOOP_TOKEN_KEYS")
    if text is not None:
        return TokenKeys.parse(text)
    path = sqlite_path(options.log)
    folder = options.data if options.data is not None else (None if path is None else path.parent)
    if folder is not None and (folder / TOKEN_KEYS_FILE).exists():
        return TokenKeys.load(folder / TOKEN_KEYS_FILE)
    looked = "" if folder is None else f" and no {folder / TOKEN_KEYS_FILE}"
    raise ConfigError(
        f"ADLOOP_TOKEN_KEYS: got none{looked}, expected the keys that serving signs with; set it, or give --data DIR "
        "or --token-keys FILE"
    )


def join_group(url: str, group: str | None) -> Assignment | None:
    """The share of a consumer group; None (everything) without one, or on the embedded log, which knows no groups."""
    if group is None or sqlite_path(url) is not None:
        return None
    # Imported here because the embedded log needs no Kafka client.
    from optimizer.stream.kafka_group import KafkaGroup

    return KafkaGroup(parse_kafka_url(url, os.environ), group)


@contextmanager
def _exported(figures: JoinerFigures, port: int | None, host: str) -> Iterator[None]:
    """Show the figures over HTTP, if a port was given."""
    if port is None:
        yield
        return
    with closing(Exporter(figures, port, host)) as exporter:
        print(f"metrics: http://{host}:{exporter.port}/metrics", file=sys.stderr, flush=True)
        yield


def _until_stopped(joiner: Joiner, stopping: Sequence[int], until_idle_s: float | None, figures: JoinerFigures) -> None:
    busy = reported = looked = time.monotonic()
    figures.take(joiner)
    while not stopping:
        try:
            worked = joiner.step(timeout_s=POLL_S if until_idle_s is None else min(POLL_S, until_idle_s))
            now = time.monotonic()
            if now - looked >= LOOK_EVERY_S:
                looked = now
                figures.take(joiner)
            if worked or not joiner.caught_up:
                busy = now
            elif until_idle_s is not None and now - busy >= until_idle_s:
                return
            if now - reported >= PROGRESS_EVERY_S and worked:
                reported = now
                # As of the last step: a question to brokers that have just gone away would take its time, and fail.
                behind = sum(one.decisions_lag + one.events_lag for one in joiner.figures().values())
                print(f"{_sentence(joiner.counts)}; {behind} records behind", file=sys.stderr, flush=True)
        except OSError as error:
            # Brokers that are away, a disk that is full: nothing is lost, the next step begins at the last commit.
            print(f"adloop: {error}; trying again", file=sys.stderr, flush=True)
            figures.take(joiner, trouble=True)
            time.sleep(RETRY_S)


def _sentence(figures: Mapping[str, object]) -> str:
    names = ("decisions", "events", "outcomes", "closed")
    return f"{', '.join(f'{figures[name]} {name}' for name in names)}; quarantined: {figures['quarantined'] or 'none'}"


def _join_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adloop join", description="Join decisions and events into outcomes. Counts are of all the state knows."
    )
    parser.add_argument("--log", required=True, help="sqlite:///PATH or kafka://HOST:PORT[,HOST:PORT]?prefix=adloop.")
    parser.add_argument("--state", required=True, type=Path, help="the joiner's own folder; one joiner per folder")
    parser.add_argument("--group", help="consumer group to share partitions in; the embedded log has none, ignores it")
    parser.add_argument("--metrics-port", type=arguments.port, metavar="PORT", help="show /metrics and /readyz there")
    parser.add_argument("--metrics-host", default="127.0.0.1", metavar="HOST", help="listen there (%(default)s)")
    parser.add_argument(
        "--until-idle", type=arguments.seconds, metavar="SECONDS", help="end when nothing has come for so long"
    )
    parser.add_argument("--data", type=Path, help=f"the folder with {TOKEN_KEYS_FILE}, as `python -m serving` makes it")
    parser.add_argument("--token-keys", type=Path, metavar="FILE", help="a file of kid:base64,... to check tokens with")
    parser.add_argument(
        "--grace-ms",
        type=arguments.whole(0, MOST_MS, "whole milliseconds"),
        default=GRACE_MS,
        help="after its windows an outcome closes (%(default)s)",
    )
    parser.add_argument(
        "--extra-retention-ms",
        type=arguments.extra_retention,
        default=EXTRA_RETENTION_MS,
        help="how long after its windows a decision can still be revised (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
