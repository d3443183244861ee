"""Tokens: against PyJWT in both directions, and everything that must not verify."""

from __future__ import annotations

import base64
import json
import stat
import threading
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import ConfigError
from optimizer.stream.tokens import TokenError, TokenKeys
from tests.stream_rig import decision

SECRET = b"0123456789abcdef0123456789abcdef"
OTHER = b"fedcba9876543210fedcba9876543210"
KEYS = TokenKeys({"one": SECRET, "two": OTHER})
EXP = 1_796_000_000
CLAIMS: dict[str, Any] = {"ten": "default", "sub": "d1", "var": "v1", "prp": 0.137, "pol": "pv1", "exp": EXP}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def theirs(claims: dict[str, Any] | None = None, key: bytes = SECRET, **headers: Any) -> str:
    return jwt.encode(CLAIMS if claims is None else claims, key, "HS256", headers={"kid": "one", **headers})


def reason(token: str) -> str:
    with pytest.raises(TokenError) as caught:
        KEYS.verify(token)
    return caught.value.reason


def test_pyjwt_reads_ours() -> None:
    token = KEYS.sign(decision(), EXP)
    assert jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False}) == CLAIMS
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "kid": "one", "typ": "JWT"}


def test_we_read_pyjwts_with_more_claims_and_every_key() -> None:
    for kid, key in (("one", SECRET), ("two", OTHER)):
        claims = KEYS.verify(theirs({**CLAIMS, "iat": 1, "aud": ["x"]}, key, kid=kid, cty="x"))
        assert (claims.ten, claims.sub, claims.var, claims.prp, claims.pol, claims.exp) == tuple(CLAIMS.values())
        assert claims.matches(decision())


@given(st.floats(min_value=0, max_value=1, exclude_min=True, allow_subnormal=True))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_the_propensity_survives_exactly(propensity: float) -> None:
    made = decision(propensity=propensity)
    claims = KEYS.verify(KEYS.sign(made, EXP))
    assert claims.prp == propensity
    assert claims.matches(made)
    written = jwt.decode(KEYS.sign(made, EXP), SECRET, algorithms=["HS256"], options={"verify_exp": False})
    assert written["prp"] == propensity


@pytest.mark.parametrize(
    "changed",
    [{"tenant": "x"}, {"decision_id": "x"}, {"variant_id": "x"}, {"propensity": 0.1371}, {"policy_version": "x"}],
)
def test_a_token_is_for_one_decision_only(changed: dict[str, Any]) -> None:
    assert not KEYS.verify(KEYS.sign(decision(), EXP)).matches(decision(**changed))


@pytest.mark.parametrize("name", list(CLAIMS))
@pytest.mark.parametrize("wrong", [None, True, [], {}, "absent"])
def test_every_claim_must_be_there_and_of_its_kind(name: str, wrong: object) -> None:
    claims = {**CLAIMS, name: wrong}
    if wrong == "absent":
        del claims[name]
    # PyJWT would not make a token whose `sub` is no string, so it is signed as plain bytes.
    token = jwt.api_jws.encode(json.dumps(claims).encode(), SECRET, "HS256", headers={"kid": "one"})
    assert reason(token) == "bad_token"


@pytest.mark.parametrize("exp", ["1796000000", 1796000000.5, 1e10])
def test_exp_is_an_integer(exp: object) -> None:
    assert (
        reason(theirs({**CLAIMS, "exp": exp}) if not isinstance(exp, str) else _signed({**CLAIMS, "exp": exp}))
        == "bad_token"
    )


def _signed(claims: object, **header: Any) -> str:
    return jwt.api_jws.encode(json.dumps(claims).encode(), SECRET, "HS256", headers={"kid": "one", **header})


def test_claims_that_are_nested_too_deep_are_refused_and_no_fault() -> None:
    nested = json.dumps(CLAIMS)[:-1].encode() + b', "x": ' + b"[" * 2_500 + b"]" * 2_500 + b"}"
    token = jwt.api_jws.encode(nested, SECRET, "HS256", headers={"kid": "one"})
    assert reason(token) == "bad_token"


def test_other_algorithms_and_extensions_do_not_verify() -> None:
    assert reason(jwt.encode(CLAIMS, "", "none", headers={"kid": "one"})) == "bad_token"
    assert reason(jwt.encode(CLAIMS, SECRET * 2, "HS512", headers={"kid": "one"})) == "bad_token"
    _, payload, mac = KEYS.sign(decision(), EXP).split(".")
    headers: list[object] = [
        {"alg": "HS256", "kid": "one", "crit": ["exp"]},
        {"alg": "hs256", "kid": "one"},
        {"kid": "one"},
        [],
        1,
    ]
    for header in headers:
        assert reason(f"{b64(json.dumps(header).encode())}.{payload}.{mac}") == "bad_token"
    with_crit = _signed(CLAIMS, crit=["exp"], exp=EXP)
    assert reason(with_crit) == "bad_token"


def test_unknown_and_missing_key_ids() -> None:
    assert reason(theirs(kid="three")) == "unknown_key"
    head = b64(json.dumps({"alg": "HS256"}).encode())
    assert reason(f"{head}.{theirs().split('.', 1)[1]}") == "bad_token"
    assert reason(theirs(key=OTHER)) == "bad_token"


def test_every_flipped_character_is_caught() -> None:
    token = KEYS.sign(decision(), EXP)
    for i, character in enumerate(token):
        flipped = token[:i] + ("A" if character != "A" else "B") + token[i + 1 :]
        assert reason(flipped) in ("bad_token", "unknown_key")


@pytest.mark.parametrize(
    "token", ["", ".", "..", "a.b", "a.b.c.d", "é.b.c", "\ud800.b.c", "x" * 9000, " ".join("abc"), "====.====.===="]
)
def test_what_is_no_token_at_all(token: str) -> None:
    assert reason(token) == "bad_token"


def test_only_the_canonical_encoding_verifies() -> None:
    token = theirs()
    head, payload, mac = token.split(".")
    # 32 bytes leave four unused bits in the last of 43 characters: all other spellings of them name the same bytes.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(mac[-1])
    other = mac[:-1] + alphabet[last ^ 1]
    assert base64.urlsafe_b64decode(other + "=") == base64.urlsafe_b64decode(mac + "=")
    KEYS.verify(token)
    assert reason(f"{head}.{payload}.{other}") == "bad_token"
    assert reason(f"{token}=") == "bad_token"
    assert reason(f"{token}\n") == "bad_token"


def test_keys_are_parsed_from_the_environments_form() -> None:
    text = f"a:b:{base64.b64encode(SECRET).decode()}, two:{base64.b64encode(OTHER).decode()}"
    keys = TokenKeys.parse(text)
    assert jwt.get_unverified_header(keys.sign(decision(), EXP))["kid"] == "a:b"
    assert keys.verify(theirs(kid="two", key=OTHER)).sub == "d1"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no key"),
        (",", "no key"),
        ("justtext", "without ':'"),
        ("a:c2hvcnQ=", "5 bytes"),
        ("a:" + base64.b64encode(b"x" * 31).decode(), "31 bytes"),
        ("a:not base64!", "base64"),
        ("a:\u00e9" + base64.b64encode(SECRET).decode(), "base64"),
        ("a b:" + base64.b64encode(SECRET).decode(), "key id"),
        (":" + base64.b64encode(SECRET).decode(), "key id"),
        ("a:{0},a:{0}".format(base64.b64encode(SECRET).decode()), "twice"),
    ],
)
def test_bad_keys_refuse_to_start(text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TokenKeys.parse(text)


def test_no_error_shows_key_material() -> None:
    with pytest.raises(ConfigError) as caught:
        TokenKeys.parse("a:c2VjcmV0LXNlY3JldA==")
    assert "c2VjcmV0" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_data_folder_gets_its_keys_once(tmp_path: Path) -> None:
    made: list[TokenKeys] = []
    threads = [
        threading.Thread(target=lambda: made.append(TokenKeys.load_or_create(tmp_path / "data"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({keys.sign(decision(), EXP) for keys in made}) == 1
    file = tmp_path / "data" / "token_keys"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["token_keys"]
    assert TokenKeys.parse(file.read_text()).sign(decision(), EXP) == made[0].sign(decision(), EXP)


def test_an_unreadable_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "token_keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="token_keys"):
        TokenKeys.load_or_create(tmp_path)
