"""`python -m serving`: the HTTP server, alone or with all roles; `python -m serving generate`: the generator alone.

Exit status: 0 done (also after SIGTERM and Ctrl-C), 1 failed with the reason on stderr, 2 wrong usage.
What serves is imported once the command line is known to be right: help and refusals come at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from optimizer import arguments
from optimizer.clock import SystemClock
from optimizer.errors import AdloopError
from optimizer.loop import step_until
from optimizer.maths.attribution import EXTRA_RETENTION_MS
from optimizer.signals import terminable
from serving.settings import Settings, settings_from

if TYPE_CHECKING:
    from serving.process import Process

# Python's default of 5 ms is how long a thread that computes may keep a request waiting for the interpreter.
SWITCH_INTERVAL_S = 0.0005
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn expected errors into one sentence on stderr; returns the exit status."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        with terminable():
            settings = settings_from(options, os.environ)
            if options.verb == "generate":
                return run_generator(settings)
            return run_server(settings, options.host, options.port)
    except KeyboardInterrupt:
        return 0
    except (AdloopError, OSError) as error:
        print(f"adloop: {error}", file=sys.stderr)
        return 1


def run_server(settings: Settings, host: str, port: int) -> int:
    """Serve until a signal (0) or a fatal fault in a role (1)."""
    from optimizer.stream.open import open_log
    from serving.process import Process
    from serving.server import bind

    with bind(host, port) as listening, closing(open_log(settings.log_url)) as log:
        process = Process(settings, log, SystemClock())
        fault = asyncio.run(_serve(process, listening))
        # The end has begun, and takes a few seconds at most: a second signal must not cut it short with another status.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        idle = process.stop()
        if fault is not None:
            print(f"adloop: {fault}", file=sys.stderr)
        status = 0 if fault is None else 1
        if not idle:
            # A thread is deep in an increment that cannot be interrupted. Everything durable is durable already, so the
            # process ends here as it might end at any moment.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status


def run_generator(settings: Settings) -> int:
    """Write pools until a signal. The learner publishes the first version; before that there is nothing to write."""
    from optimizer.stream.open import open_log
    from serving.roles import LearningOnce, PromptGuard, make_generator

    stopping = threading.Event()
    with closing(open_log(settings.log_url)) as log:
        opened = LearningOnce(settings.data, settings.model)
        guard = PromptGuard(settings.data, expected=False)
        with closing(make_generator(log, opened, SystemClock(), guard)) as generator:
            # From here on a step is finished first; before, a signal interrupts what may take minutes.
            for number in SIGNALS:
                signal.signal(number, lambda *_: stopping.set())
            print("generating; Ctrl-C stops", file=sys.stderr, flush=True)
            step_until(stopping, generator.step)
    return 0


async def _serve(process: Process, listening: socket.socket) -> str | None:
    """Run roles and HTTP; returns the fatal fault that ended them, or None after a signal."""
    from serving.server import serve, url_of

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.call_soon_threadsafe(stop.set)

    # Before the first role: from here on whoever ends this must end them in order.
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.set)
    process.start(on_fatal=end)
    await serve(process.app, listening, process.ready, lambda: _announce(url_of(listening)), stop, process.closing)
    return process.fault


def _announce(url: str) -> None:
    print(f"Adloop is ready at {url}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve ads over HTTP.")
    parser.add_argument("verb", nargs="?", choices=["generate"], help="run the generator alone instead of the server")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the log, the keys and the policies")
    parser.add_argument("--port", type=arguments.port, default=8080, help="0 takes a free one (default: 8080)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback needs API keys")
    parser.add_argument("--log", metavar="URL", help="the event log (default: sqlite:///DIR/log.db)")
    parser.add_argument("--all", action="store_true", help="run generator, joiner and learner in this process as well")
    parser.add_argument(
        "--joiner",
        action="append",
        metavar="URL",
        help="http://HOST:PORT of a joiner's --metrics-port, for the live page; may be given several times; not with "
        "--all, which has its joiner in this process",
    )
    parser.add_argument(
        "--extra-retention-ms",
        type=arguments.extra_retention,
        default=EXTRA_RETENTION_MS,
        metavar="MS",
        help="how long after its windows a decision takes events; the same as of `join` (default: %(default)s)",
    )
    parser.add_argument("--production", action="store_true", help="refuse to start without API and token keys")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a Hugging Face causal LM (default: the tiny one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
