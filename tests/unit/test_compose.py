"""deploy/compose.yaml and its image, as far as they can be checked without containers: commands, options and names."""

from __future__ import annotations

import base64
import re
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from optimizer.__main__ import _join_parser, join_keys
from optimizer.learning.commands import learn_parser
from optimizer.stream.kafka_url import parse_kafka_url
from serving.__main__ import _parser
from serving.settings import settings_from
from tests.stream_rig import decision

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ROLES = {name: service for name, service in SERVICES.items() if name != "kafka"}
PARSERS = {"serving": _parser, "optimizer join": _join_parser, "optimizer learn": learn_parser}
KEYS = f"k1:{base64.b64encode(bytes(range(32))).decode()}"


def options(name: str) -> Any:
    """A role's command line, read by the parser of its own command; a wrong option ends the test (status 2)."""
    python, flag, module, *rest = shlex.split(ROLES[name]["command"])
    assert (python, flag) == ("python", "-m")
    if module == "optimizer":
        module, rest = f"{module} {rest[0]}", rest[1:]
    return PARSERS[module]().parse_args(rest)


def test_there_are_a_broker_and_the_four_roles() -> None:
    assert set(SERVICES) == {"kafka", "server", "joiner", "learner", "generator"}
    assert (options("server").verb, options("generator").verb) == (None, "generate")


@pytest.mark.parametrize("name", sorted(ROLES))
def test_every_role_reads_the_same_log_and_the_same_folder(name: str) -> None:
    given = options(name)
    config = parse_kafka_url(given.log, {})
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"PLAINTEXT://{config.bootstrap}" == listeners
    assert str(given.data) == "/data"
    assert ROLES[name]["volumes"] == ["data:/data"]
    assert ROLES[name]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert given.log == options("server").log


def test_the_server_starts_with_what_the_environment_gives(tmp_path: Path) -> None:
    given = options("server")
    environment = dict(SERVICES["server"]["environment"])
    assert [environment.pop(name)[:2] for name in ("ADLOOP_API_KEYS", "ADLOOP_TOKEN_KEYS")] == ["${", "${"]
    assert set(environment) == {"ADLOOP_CACHE"}
    given.data = str(tmp_path)
    secrets = {"ADLOOP_API_KEYS": "f3a9c07b51de4286:default:admin", "ADLOOP_TOKEN_KEYS": KEYS}
    settings = settings_from(given, secrets)
    joiner = options("joiner")
    assert [urlsplit(url).netloc for url in settings.joiners] == [f"joiner:{joiner.metrics_port}"]
    assert (joiner.metrics_host, given.host) == ("0.0.0.0", "0.0.0.0")
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:{given.port}:{given.port}"]
    assert f":{given.port}/readyz" in SERVICES["server"]["healthcheck"]["test"][-1]
    # What the server signs the joiner takes.
    assert join_keys(joiner, secrets).verify(settings.token_keys.sign(decision("d1"), 2_000_000_000)).sub == "d1"


def test_volumes_are_declared_and_the_broker_keeps_its_data_in_one() -> None:
    named = {volume.split(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert named == set(COMPOSE["volumes"])
    kafka = SERVICES["kafka"]
    assert kafka["volumes"] == [f"kafka:{kafka['environment']['KAFKA_LOG_DIRS']}"]


def test_versions_are_those_of_the_repository() -> None:
    pom = re.findall(
        r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)<", (DEPLOY / "kafka/pom.xml").read_text()
    )
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{pom[0]}"
    uv = re.findall(r"^UV_VERSION=(\S+)$", (ROOT / "scripts/setup").read_text(), re.MULTILINE)
    assert re.findall(r"uv==(\S+)", (DEPLOY / "Dockerfile").read_text()) == uv


def test_the_image_copies_what_is_there_and_what_is_sent() -> None:
    copied = [
        source
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    ]
    sent = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(copied) == sorted(sent)
    assert all((ROOT / source).exists() for source in copied)
    for role in ROLES.values():
        assert (DEPLOY / role["build"]["context"]).resolve() == ROOT
        assert (ROOT / role["build"]["dockerfile"]).is_file()
