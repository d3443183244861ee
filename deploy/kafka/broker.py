"""One Kafka broker (KRaft, a single node) on 127.0.0.1, from the jars in deploy/kafka/lib: for development and tests.

`python -m deploy.kafka.broker start|stop --dir FOLDER [--port N]`, or `run COMMAND ...` for as long as a command takes;
`make kafka`, `make kafka-stop` and `make demo KAFKA=1` call it through scripts/kafka, which sees to Java, Maven and the
jars first. Not meant for production: one node, no replicas.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

HERE: Final = Path(__file__).resolve().parent
HOST: Final = "127.0.0.1"
PLACE: Final = "BROKER"
HEAP_MIB: Final = 384
START_S: Final = 120.0
STOP_S: Final = 60.0
TLS_PASSWORD: Final = "development-only"  # of the throw-away key store that start() makes
# ApiVersions v0, the request that every broker answers: length, API key 18, version 0, correlation id 1, no client id.
_API_VERSIONS: Final = struct.pack(">ihhih", 10, 18, 0, 1, -1)

SETTINGS: Final = """\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
auto.create.topics.enable=false
# A single node can't have replicas, and needs few partitions for its own bookkeeping.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# After a kill the broker is let in again only when its old session has ended.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
group.min.session.timeout.ms=1000
# The defaults are sized for large machines.
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
"""


class BrokerError(Exception):
    """The broker can't be started or stopped; the text says why and where its messages are."""


class Broker:
    """A broker whose data, settings and messages live in `folder`; started again, it goes on with what it had.

    Args:
      folder: made where it is missing. One broker per folder.
      port: of the plaintext listener; None takes a free one, and keeps it over restarts.
      users: name -> password; not empty adds the listeners `sasl` (PLAIN, SCRAM) and, with `tls`, `sasl_ssl`.
      tls: adds the listener `ssl`; its certificate is `ca_file`.
      behind: name -> port; adds a plaintext listener of that name, whose clients are told to come to that port: a
        proxy's, which forwards to the listener.
      quick_start: compile the broker's code quickly rather than well: it is up in two thirds of the time, and slower
        under load. For tests, not for measurements.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        users: Mapping[str, str] | None = None,
        tls: bool = False,
        behind: Mapping[str, int] | None = None,
        quick_start: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.users = dict(users or {})
        self.tls = tls
        self.behind = dict(behind or {})
        self.quick_start = quick_start
        names = ["plaintext", "controller", *(["sasl"] if users else []), *(["ssl"] if tls else [])]
        names += ["sasl_ssl"] if users and tls else []
        names += self.behind
        self._ports = {name: _free_port() for name in names}
        if port is not None:
            self._ports["plaintext"] = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """HOST:PORT of the plaintext listener."""
        return self.address("plaintext")

    @property
    def ca_file(self) -> Path:
        """The certificate (PEM) that the TLS listeners' clients must trust."""
        return self.folder / "ca.pem"

    @property
    def log_file(self) -> Path:
        return self.folder / "broker.log"

    @property
    def pid_file(self) -> Path:
        return self.folder / "pid"

    @property
    def settings_file(self) -> Path:
        return self.folder / "server.properties"

    def address(self, listener: str) -> str:
        """HOST:PORT of a listener: plaintext, sasl, ssl, sasl_ssl, or one that is behind a proxy."""
        return f"{HOST}:{self._ports[listener]}"

    def start(self, timeout_s: float = START_S) -> None:
        """Start and return once it answers. Raises BrokerError with the last lines of its messages."""
        if (pid := self.running()) is not None:
            raise BrokerError(f"a broker (pid {pid}) runs in {self.folder} already; stop it first")
        if _answers(self._ports["plaintext"]):
            raise BrokerError(f"something else listens on {self.bootstrap}; choose another port")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.tls and not self.ca_file.exists():
            self._make_certificate()
        self.settings_file.write_text(self._settings(), encoding="utf-8")
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()
        with self.log_file.open("ab") as messages:
            # A session of its own: Ctrl-C in the terminal that started it is not meant for the broker.
            self._process = subprocess.Popen(
                _java("kafka.Kafka", str(self.settings_file), quick_start=self.quick_start),
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                start_new_session=True,
            )
        self.pid_file.write_text(str(self._process.pid), encoding="ascii")
        deadline = time.monotonic() + timeout_s
        while not _answers(self._ports["plaintext"]):
            if self._process.poll() is not None:
                raise BrokerError(f"the broker ended with status {self._process.returncode}: {self._last_messages()}")
            if time.monotonic() > deadline:
                self.kill()
                raise BrokerError(f"the broker gave no answer within {timeout_s:.0f} s: {self._last_messages()}")
            time.sleep(0.05)

    def stop(self, timeout_s: float = STOP_S) -> bool:
        """Shut down in order (SIGTERM), killing it after `timeout_s`; returns whether one was running."""
        pid = self.running()
        if pid is not None:
            self._signal(pid, signal.SIGTERM, timeout_s)
            if self.running() is not None:
                self._signal(pid, signal.SIGKILL, timeout_s)
        self.pid_file.unlink(missing_ok=True)
        return pid is not None

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        if (pid := self.running()) is not None:
            self._signal(pid, signal.SIGKILL, STOP_S)
        self.pid_file.unlink(missing_ok=True)

    def running(self) -> int | None:
        """The process id of the broker in this folder; None where there is none."""
        if self._process is not None and self._process.poll() is None:
            return self._process.pid
        try:
            pid = int(self.pid_file.read_text(encoding="ascii"))
            # A process id is used again some day: make sure that it is still this folder's broker.
            arguments = subprocess.run(
                ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=True
            ).stdout
        except (OSError, ValueError, subprocess.CalledProcessError):
            return None
        return pid if str(self.settings_file) in arguments else None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _signal(self, pid: int, number: signal.Signals, timeout_s: float) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + timeout_s
        while self.running() is not None and time.monotonic() < deadline:
            time.sleep(0.05)

    def _settings(self) -> str:
        protocols = {
            "plaintext": "PLAINTEXT",
            "controller": "PLAINTEXT",
            "sasl": "SASL_PLAINTEXT",
            "ssl": "SSL",
            "sasl_ssl": "SASL_SSL",
            **dict.fromkeys(self.behind, "PLAINTEXT"),
        }
        listeners = {name.upper(): f"{name.upper()}://{HOST}:{port}" for name, port in self._ports.items()}
        told = listeners | {name.upper(): f"{name.upper()}://{HOST}:{port}" for name, port in self.behind.items()}
        lines = [
            SETTINGS.rstrip(),
            f"controller.quorum.voters=1@{HOST}:{self._ports['controller']}",
            f"listeners={','.join(listeners.values())}",
            f"advertised.listeners={','.join(at for name, at in told.items() if name != 'CONTROLLER')}",
            "listener.security.protocol.map=" + ",".join(f"{name.upper()}:{protocols[name]}" for name in self._ports),
            f"log.dirs={self.folder / 'data'}",
        ]
        for name in ("sasl", "sasl_ssl"):
            if name in self._ports:
                lines += self._accounts(f"listener.name.{name}")
        if self.tls:
            lines += [
                f"ssl.keystore.location={self.folder / 'broker.p12'}",
                "ssl.keystore.type=PKCS12",
                f"ssl.keystore.password={TLS_PASSWORD}",
            ]
        return "\n".join(lines) + "\n"

    def _accounts(self, listener: str) -> list[str]:
        plain = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        module = "org.apache.kafka.common.security"
        return [
            f"{listener}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            f"{listener}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required {plain};",
            *(
                f"{listener}.scram-sha-{bits}.sasl.jaas.config={module}.scram.ScramLoginModule required;"
                for bits in (256, 512)
            ),
        ]

    def _format(self) -> None:
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A")
        told = ("format", "--cluster-id", cluster_id, "--config", str(self.settings_file))
        command = _java("kafka.tools.StorageTool", *told, quick_start=True)
        for name, password in self.users.items():
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512"):
                command += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        _checked(command, "formatting its storage")

    def _make_certificate(self) -> None:
        store = ["-keystore", str(self.folder / "broker.p12"), "-storetype", "PKCS12", "-storepass", TLS_PASSWORD]
        made = ["-genkeypair", "-alias", "broker", "-keyalg", "RSA", "-validity", "3650", "-dname", "CN=localhost"]
        made += ["-ext", f"SAN=DNS:localhost,IP:{HOST}", "-ext", "BC=ca:true"]
        _checked(["keytool", *made, *store], "making its certificate")
        exported = ["-exportcert", "-alias", "broker", "-rfc", "-file", str(self.ca_file)]
        _checked(["keytool", *exported, *store], "exporting its certificate")

    def _last_messages(self) -> str:
        text = self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""
        return f"see {self.log_file}\n" + "\n".join(text.splitlines()[-12:])


def _java(main_class: str, *arguments: str, quick_start: bool) -> list[str]:
    options = [f"-Xmx{HEAP_MIB}m", "-Xms64m", "-XX:+UseSerialGC", "-Djava.awt.headless=true"]
    if quick_start:
        options.append("-XX:TieredStopAtLevel=1")
    options.append(f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}")
    return ["java", *options, "-cp", str(HERE / "lib" / "*"), main_class, *arguments]


def _checked(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BrokerError(f"{what} failed: {error}; run scripts/kafka fetch, which says what is missing") from error
    if done.returncode:
        raise BrokerError(f"{what} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    """True where a broker at this port answers a request, which it does once it has started."""
    try:
        with socket.create_connection((HOST, port), timeout=2.0) as connection:
            connection.sendall(_API_VERSIONS)
            return len(connection.recv(4)) == 4
    except OSError:
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Start or stop, or run a command beside a broker of its own; prints the bootstrap address. Returns the exit
    status."""
    parser = argparse.ArgumentParser(prog="scripts/kafka", description="A Kafka broker on 127.0.0.1, for development.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="start|stop|run")
    for verb, told in (("start", "start one, or tell where it runs"), ("stop", "stop it; what it holds stays")):
        options = verbs.add_parser(verb, help=told)
        options.add_argument("--dir", type=Path, default=Path(".cache/kafka"), help="its folder (%(default)s)")
        options.add_argument("--port", type=int, default=9092, help="127.0.0.1:PORT (%(default)s); 0 takes a free one")
    beside = verbs.add_parser("run", help=f"run a command beside a broker of its own; {PLACE} in it is HOST:PORT")
    beside.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    given = parser.parse_args(argv)
    try:
        if given.verb == "run":
            if not given.command:
                parser.error("run: got no command")
            return run_beside(given.command)
        broker = Broker(given.dir, given.port or None)
        if given.verb == "stop":
            print("kafka: stopped" if broker.stop() else "kafka: none was running", file=sys.stderr)
        elif broker.running() is None:
            broker.start()
            print(broker.bootstrap)
        else:
            print(_address_in(broker.settings_file))
    except BrokerError as error:
        print(f"kafka: {error}", file=sys.stderr)
        return 1
    return 0


def run_beside(command: Sequence[str]) -> int:
    """Run a command beside a broker in a temporary folder, which ends with it; returns the command's exit status."""
    stopped: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def end(number: int, frame: object) -> None:
        # Ctrl-C reaches the command by itself: it stands in the same process group.
        stopped.append(number)
        for child in children:
            if number == signal.SIGTERM and child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with TemporaryDirectory(prefix="adloop-kafka-") as folder:
            broker = Broker(Path(folder))
            print("kafka: starting a broker for this run", file=sys.stderr, flush=True)
            broker.start()
            try:
                if stopped:
                    return 0
                print(f"kafka: it listens on {broker.bootstrap}", file=sys.stderr, flush=True)
                child = subprocess.Popen([part.replace(PLACE, broker.bootstrap) for part in command])
                children.append(child)
                return child.wait()
            finally:
                broker.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _address_in(settings: Path) -> str:
    """HOST:PORT that a running broker was started with."""
    _, _, rest = settings.read_text(encoding="utf-8").partition("advertised.listeners=PLAINTEXT://")
    return rest.split(",", 1)[0].split("\n", 1)[0]


if __name__ == "__main__":
    sys.exit(main())
