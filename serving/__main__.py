"""`python -m serving`: the HTTP server, alone or with all roles; `python -m serving generate`: the generator alone.

Exit status: 0 done (also after SIGTERM and Ctrl-C), 1 failed with the reason on stderr, 2 wrong usage.
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
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from optimizer.clock import SystemClock
from optimizer.errors import AdloopError, ConfigError
from optimizer.stream.open import open_log
from optimizer.stream.tokens import TOKEN_KEYS_FILE, TokenKeys
from serving.auth import KeyRing, check_exposure
from serving.loop import IDLE_S
from serving.process import Process, Settings
from serving.roles import LearningOnce, PromptGuard, make_generator
from serving.server import bind, serve, url_of

# Python's default of 5 ms is how long a thread that computes may keep a request waiting for the interpreter.
SWITCH_INTERVAL_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn expected errors into one sentence on stderr; returns the exit status."""
    options = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        settings = settings_from(options, os.environ)
        if options.verb == "generate":
            return run_generator(settings)
        return run_server(settings, options.host, options.port)
    except KeyboardInterrupt:
        return 0
    except (AdloopError, OSError) as error:
        print(f"adloop: {error}", file=sys.stderr)
        return 1


def settings_from(options: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    """Everything that start-up needs, checked. Raises ConfigError."""
    data = Path(options.data)
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data {data}: the folder cannot be made ({error}); choose another") from error
    api_keys = KeyRing.parse(environment.get("ADLOOP_API_KEYS", ""))
    exposed = options.verb is None
    if exposed:
        check_exposure(options.host, options.production, api_keys)
    return Settings(
        data=data,
        log_url=options.log or f"sqlite:///{data / 'log.db'}",
        api_keys=api_keys,
        token_keys=_token_keys(environment, data, options.production),
        all_roles=options.all,
        model=options.model,
    )


def _token_keys(environment: Mapping[str, str], data: Path, production: bool) -> TokenKeys:
    """From ADLOOP_TOKEN_KEYS, else from the data folder, where development mode makes them."""
    text = environment.get("ADLOOP_TOKEN_KEYS")
    if text is not None:
        return TokenKeys.parse(text)
    if production and not (data / TOKEN_KEYS_FILE).exists():
        raise ConfigError(
            f"ADLOOP_TOKEN_KEYS: got none, expected kid:base64[,...] with --production (or {data / TOKEN_KEYS_FILE}); "
            "set it: every process that signs or checks tokens needs the same keys"
        )
    return TokenKeys.load_or_create(data)


def run_server(settings: Settings, host: str, port: int) -> int:
    """Serve until a signal (0) or a fatal fault in a role (1)."""
    with bind(host, port) as listening, closing(open_log(settings.log_url)) as log:
        process = Process(settings, log, SystemClock())
        fault = asyncio.run(_serve(process, listening))
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
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with closing(open_log(settings.log_url)) as log:
        opened = LearningOnce(settings.data, settings.model)
        seed = int.from_bytes(os.urandom(7), "little")
        generator = make_generator(log, opened, SystemClock(), seed, PromptGuard(settings.data, expected=False))
        print("generating; Ctrl-C stops", file=sys.stderr)
        while not stopping.is_set():
            if not generator.step():
                stopping.wait(IDLE_S)
    return 0


async def _serve(process: Process, listening: socket.socket) -> str | None:
    """Run roles and HTTP; returns the fatal fault that ended them, or None after a signal."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.call_soon_threadsafe(stop.set)

    process.start(on_fatal=end)
    await serve(process.app, listening, process.ready, lambda: _announce(url_of(listening)), stop, process.closing)
    return process.fault


def _announce(url: str) -> None:
    print(f"Adloop is ready at {url}", flush=True)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError
    return port


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description="Serve ads over HTTP.")
    parser.add_argument("verb", nargs="?", choices=["generate"], help="run the generator alone instead of the server")
    parser.add_argument("--data", required=True, metavar="DIR", help="folder of the log, the keys and the policies")
    parser.add_argument("--port", type=_port, default=8080, help="0 takes a free one (default: 8080)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; beyond loopback needs API keys")
    parser.add_argument("--log", metavar="URL", help="the event log (default: sqlite:///DIR/log.db)")
    parser.add_argument("--all", action="store_true", help="run generator, joiner and learner in this process as well")
    parser.add_argument("--production", action="store_true", help="refuse to start without API and token keys")
    parser.add_argument("--model", metavar="NAME_OR_PATH", help="a Hugging Face causal LM (default: the tiny one)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
