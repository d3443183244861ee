"""`adloop log dump` and `adloop quarantine list|replay`: what stands in a log, as JSON lines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import closing
from typing import get_args

from optimizer.errors import ConfigError
from optimizer.stream.dump import dump
from optimizer.stream.kafka_url import DEFAULT_PREFIX
from optimizer.stream.log import TOPICS, EventLog
from optimizer.stream.open import open_log
from optimizer.stream.quarantine import Place, list_, replay
from optimizer.types import Reason
from simulators.command import execute, line

LOG_HELP = "sqlite:///PATH or kafka://HOST:PORT[,HOST:PORT]?prefix=adloop."


def main(argv: Sequence[str]) -> int:
    """`adloop log ...` and `adloop quarantine ...`; `argv` begins with the verb."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.verb == "quarantine":
        given = {url for url in (options.url, options.log) if url is not None}
        if len(given) != 1:
            got = "two logs" if given else "no log"
            parser.error(f"quarantine {options.action}: got {got}, expected one, as URL or as --log URL")
        options.url = given.pop()
    return execute(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    with closing(open_log(options.url, create=False)) as log:
        if options.verb == "log":
            for record in dump(log, _named(log, options.topic)):
                line(record)
        elif options.action == "list":
            for refused in list_(log, options.reason):
                line(refused)
        else:
            done = replay(log, options.reason, options.place)
            for place in done.replayed:
                line({**place._asdict(), "status": "replayed"})
            for skipped in done.skipped:
                line({**skipped.place._asdict(), "status": "skipped", "why": skipped.why})
    return 0


def _named(log: EventLog, text: str) -> str:
    """The topic by its own name or by its full one. Raises ConfigError for that of another log."""
    for topic in TOPICS:
        full = log.topic_name(topic)
        # The embedded log's names have no prefix; a command that was made for Kafka's default one works there too.
        if text in (topic, DEFAULT_PREFIX + topic if full == topic else full):
            return topic
    names = ", ".join(TOPICS)
    raise ConfigError(f"topic: got {text!r}, expected one of {names}, bare or with the prefix in the log's URL")


def _topic(text: str) -> str:
    """A topic's name, maybe with a prefix; which prefix is right, the log tells."""
    if not text.endswith(TOPICS):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {', '.join(TOPICS)}")
    return text


def _place(text: str) -> Place:
    topic, _, rest = text.partition("/")
    partition, _, offset = rest.partition("/")
    if not (topic and partition.isascii() and partition.isdigit() and offset.isascii() and offset.isdigit()):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected TOPIC/PARTITION/OFFSET")
    return Place(topic, int(partition), int(offset))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adloop")
    verbs = parser.add_subparsers(dest="verb", required=True)
    logs = verbs.add_parser("log", description="Look into a log.").add_subparsers(dest="action", required=True)
    dumping = logs.add_parser("dump", description="A topic's records, {partition, offset, key, value} a line.")
    dumping.add_argument("url", metavar="URL", help=LOG_HELP)
    dumping.add_argument(
        "topic", metavar="TOPIC", type=_topic, help=f"{', '.join(TOPICS)}; the log's prefix may stand before it"
    )
    quarantine = verbs.add_parser("quarantine", description="Records that were refused.")
    actions = quarantine.add_subparsers(dest="action", required=True)
    for action, description in (
        ("list", "The refused records, each once, a line each."),
        ("replay", "Append refused records to their own topics again, where they are judged anew."),
    ):
        sub = actions.add_parser(action, description=description)
        sub.add_argument("url", metavar="URL", nargs="?", help=LOG_HELP)
        sub.add_argument("--log", metavar="URL", help="the same, as an option")
        sub.add_argument(
            "--reason", action="append", choices=get_args(Reason), help="only this reason; may stand several times"
        )
        if action == "replay":
            sub.add_argument(
                "--place", action="append", type=_place, metavar="TOPIC/PARTITION/OFFSET", help="only this record"
            )
    return parser
