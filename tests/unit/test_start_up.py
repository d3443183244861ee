"""Start-up: what is refused, with one sentence on stderr and the right exit status (bad-inputs 45)."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from optimizer.clock import ManualClock
from optimizer.errors import ConfigError
from optimizer.maths.attribution import expiry_s
from optimizer.stream.open import open_log
from optimizer.types import Attribution
from serving.__main__ import _parser, main
from serving.auth import KeyRing
from serving.joiners import Joining
from serving.process import Process
from serving.schemas import CampaignIn, GenerateIn
from serving.settings import settings_from
from serving.wire import convert
from tests.serving_rig import MINIMAL

GOOD_KEY = "Zk3vQ9rT1xLw7bNc"
GOOD = {"ADLOOP_API_KEYS": f"{GOOD_KEY}:a:admin"}


def encoded(secret: bytes) -> str:
    return base64.b64encode(secret).decode()


SECRET = encoded(hashlib.sha256(b"any").digest())


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ADLOOP_")]:
        monkeypatch.delenv(name)


def start(tmp_path: Path, *options: str) -> int:
    """Start a server that is expected to refuse; returns the exit status."""
    try:
        return main(["--data", str(tmp_path / "data"), "--port", "0", *options])
    except SystemExit as end:
        return int(str(end.code))


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        (["--production"], {}, "ADLOOP_API_KEYS"),
        (["--host", "0.0.0.0"], {}, "ADLOOP_API_KEYS"),
        (["--host", "0.0.0.0"], {"ADLOOP_API_KEYS": "short:acme:admin"}, "16"),
        (["--production"], {"ADLOOP_API_KEYS": "password-password:acme:admin"}, "default"),
        (["--production"], {"ADLOOP_API_KEYS": "aaaaaaaaaaaaaaaaaaaa:acme:admin"}, "default"),
        (["--production"], {"ADLOOP_API_KEYS": "your-secret-test-key-01:acme:admin"}, "default"),
        (["--production"], {"ADLOOP_API_KEYS": ":acme:admin"}, "empty"),
        ([], {"ADLOOP_API_KEYS": ":acme:admin"}, "empty"),
        (["--production"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:acme:root"}, "role"),
        (["--production"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:ac me:admin"}, "tenant"),
        (["--production"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:acme"}, "KEY:TENANT:ROLE"),
        (["--production"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:a:admin,{GOOD_KEY}:b:admin"}, "twice"),
        (["--production"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:acme:admin"}, "ADLOOP_TOKEN_KEYS"),
        (["--production"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:a:admin", "ADLOOP_TOKEN_KEYS": "k1:c2hvcnQ="}, "32"),
        ([], {"ADLOOP_TOKEN_KEYS": ""}, "ADLOOP_TOKEN_KEYS"),
        ([], {"ADLOOP_TOKEN_KEYS": "k:é"}, "ADLOOP_TOKEN_KEYS"),
        ([], {"ADLOOP_API_KEYS": "kéy-of-somebody-4711:acme:admin"}, "visible ASCII"),
        ([], {"ADLOOP_API_KEYS": "key of somebody 4711:acme:admin"}, "visible ASCII"),
        ([], {"ADLOOP_API_KEYS": "key\tof-somebody-4711:acme:admin"}, "visible ASCII"),
        (["--host", "0.0.0.0"], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:a:admin"}, "ADLOOP_TOKEN_KEYS"),
        *(
            ([*options], {"ADLOOP_API_KEYS": f"{GOOD_KEY}:a:admin", "ADLOOP_TOKEN_KEYS": f"k1:{weak}"}, "looks like")
            for options in (["--production"], ["--host", "0.0.0.0"])
            for weak in (encoded(b"change-me-" * 3 + b"32"), encoded(b"your-secret-goes-here-Password-1"))
        ),
        (["--log", "mysql://x"], {}, "log"),
        (["--data", "/dev/null/x"], {}, "--data"),
        (["--host", "no.such.host.invalid"], {**GOOD, "ADLOOP_TOKEN_KEYS": f"k1:{SECRET}"}, "--host"),
    ],
)
def test_line_45_start_up_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    environment: dict[str, str],
    told: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert start(tmp_path, *options) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("adloop: ")
    assert err.count("\n") == 1
    assert told in err
    assert GOOD_KEY not in err


@pytest.mark.parametrize(
    ("key", "weak", "passes"),
    [
        ("short", True, True),
        ("password-password", True, True),
        ("short", False, False),
        ("password-password", False, False),
        # A word of a placeholder in a key that is none.
        ("test-key-admin-0123456789abcdef", False, True),
        ("tenant-a-secret-Zk3vQ9rT1xLw7bNc", False, True),
    ],
)
def test_which_keys_are_strong_enough(key: str, weak: bool, passes: bool) -> None:
    if passes:
        assert KeyRing.parse(f"{key}:acme:reader", weak=weak).identify(f"Bearer {key}").tenant == "acme"
    else:
        with pytest.raises(ConfigError, match="ADLOOP_API_KEYS"):
            KeyRing.parse(f"{key}:acme:reader", weak=weak)


def test_a_secret_of_few_different_bytes_is_told_of_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = _parser().parse_args(["--data", str(tmp_path), "--production"])
    for secret, warned in ((b"abcdefgh" * 4, True), (hashlib.sha256(b"any").digest(), False)):
        caplog.clear()
        settings_from(options, {**GOOD, "ADLOOP_TOKEN_KEYS": f"k1:{encoded(secret)}"})
        assert ("few different bytes" in caplog.text) == warned
        assert secret.decode("latin-1") not in caplog.text


@pytest.mark.parametrize("secret", [hashlib.sha256(b"any").digest(), hashlib.sha256(b"any").hexdigest().encode()])
def test_secrets_pass_as_bytes_and_in_hexadecimal(tmp_path: Path, secret: bytes) -> None:
    options = _parser().parse_args(["--data", str(tmp_path), "--production"])
    assert settings_from(options, {**GOOD, "ADLOOP_TOKEN_KEYS": f"k1:{encoded(secret)}"}).token_keys is not None
    (tmp_path / "token_keys").write_text(f"k1:{encoded(secret)}\n")
    assert settings_from(options, GOOD).token_keys is not None
    (tmp_path / "token_keys").write_text(f"k1:{encoded(b'change-me-' * 3 + b'32')}\n")
    with pytest.raises(ConfigError, match="looks like"):
        settings_from(options, GOOD)


def test_token_keys_are_made_in_development_mode_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ADLOOP_TOKEN_KEYS: got none"):
        settings_from(_parser().parse_args(["--data", str(tmp_path), "--host", "0.0.0.0"]), GOOD)
    assert list(tmp_path.iterdir()) == []
    settings_from(_parser().parse_args(["--data", str(tmp_path)]), {})
    assert (tmp_path / "token_keys").exists()


@pytest.mark.parametrize("name", ["a%20b", "50%", "what?", "a?partitions=2", "a#b", "a b"])
def test_the_log_stands_in_the_data_folder_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    settings = settings_from(_parser().parse_args(["--data", str(tmp_path / name)]), {})
    open_log(settings.log_url).close()
    assert (tmp_path / name / "log.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://[::1",
            "http://h:abc",
            "http://h:70000",
            "http://h:0",
            "http://",
            "http://:9101",
            "h:9101",
            "ftp://h",
        ),
        *(
            "http://h /x",
            "http://h\n:1",
            "http://é:1",
            "http://h:1/?a=b",
            "http://h:1/?",
            "http://h:1#a",
            "http://[x]:1",
        ),
    ],
)
def test_a_joiner_that_is_no_url_is_refused(tmp_path: Path, url: str) -> None:
    options = _parser().parse_args(["--data", str(tmp_path), "--joiner", url])
    with pytest.raises(ConfigError, match="--joiner: got "):
        settings_from(options, {})


@pytest.mark.parametrize(
    "url", ["http://h:9101", "http://[::1]:9101/metrics", "https://a.b/c/", "http://h:9101/metrics/"]
)
def test_a_joiner_that_is_one_passes(tmp_path: Path, url: str) -> None:
    (base,) = settings_from(_parser().parse_args(["--data", str(tmp_path), "--joiner", url]), {}).joiners
    assert base in ("http://h:9101", "http://[::1]:9101", "https://a.b/c")


def test_the_retention_is_that_of_tokens_and_joiner(tmp_path: Path) -> None:
    given = ["--data", str(tmp_path), "--all", "--extra-retention-ms", "5000"]
    settings = settings_from(_parser().parse_args(given), {})
    clock = ManualClock()
    with closing(open_log(settings.log_url, clock)) as log:
        process = Process(settings, log, clock)
        process.service.put_campaign("default", "c1", convert(MINIMAL, CampaignIn))
        token = process.service.generate("default", GenerateIn("c1")).variants[0].token
        process._add_background()
        joiner = next(role for role in process._roles if role.name == "joiner")._make()
        assert isinstance(joiner, Joining)
        assert joiner._joiner is not None
        assert joiner._joiner._rules.extra_retention_ms == 5000
        joiner.close()
        process.parts.close()
        process.views.close()
    assert settings.token_keys.verify(token).exp == expiry_s(clock.now_ms(), Attribution(), 5000)


@pytest.mark.parametrize(
    "options",
    [
        *(["--port", "70000"], ["--no-such-option"], ["--port", "x"], ["nonsense"]),
        *(["--extra-retention-ms", "-1"], ["--extra-retention-ms", "x"], ["--extra-retention-ms", "9" * 30]),
    ],
)
def test_wrong_usage_is_status_2(tmp_path: Path, options: list[str]) -> None:
    assert start(tmp_path, *options) == 2


def test_a_port_in_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert start(tmp_path, "--port", str(taken.getsockname()[1])) == 1
    assert "--port" in capsys.readouterr().err
