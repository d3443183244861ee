"""What README, Makefile and packaging say holds: paths exist, commands run, links resolve."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def path_table() -> list[str]:
    """The paths in the first column of README's table of paths."""
    table = README.split("## Where things are")[1].split("\n## ")[0]
    return [
        path
        for row in table.splitlines()
        if row.startswith("| `")
        for path in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]


def test_readme_gives_every_top_level_path_a_line() -> None:
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked()}
    assert top - set(path_table()) - {"README.md"} == set()


@pytest.mark.parametrize("path", path_table())
def test_every_path_in_readme_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("doc", DOCS, ids=lambda doc: str(doc.relative_to(ROOT)))
def test_relative_links_resolve(doc: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", doc.read_text())
    missing = [link for link in links if not link.startswith("https://") and not (doc.parent / link).exists()]
    assert not missing


def test_every_module_has_its_sentence_in_the_docs() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "modules.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "modules.md").read_text() == made, "python scripts/modules.py > docs/modules.md"
    assert "|  |" not in made


def borders() -> list[tuple[str, str, str, list[str]]]:
    """(module, class or "", function, its parameters' names) of the signatures in docs/architecture.md."""
    block = (ROOT / "docs" / "architecture.md").read_text().split("```python\n")[1].split("```")[0]
    found, module, owner = [], "", ""
    for line in block.splitlines():
        if path := re.match(r"# (\S+)\.py", line):
            module, owner = path[1].replace("/", "."), ""
        elif name := re.match(r"class (\w+)", line):
            owner = name[1]
        elif function := re.match(r"( *)def (\w+)\((.*?)\)(?: ->|:|\s|$)", line):
            inside = re.sub(r"\[[^\]]*\]|\([^)]*\)", "", function[3])
            names = [part.split(":")[0].split("=")[0].strip() for part in inside.split(",")]
            found.append((module, owner if function[1] else "", function[2], [one for one in names if one != "cls"]))
    return found


@pytest.mark.parametrize(("module", "owner", "function", "parameters"), borders(), ids=lambda one: str(one)[:60])
def test_signatures_in_the_architecture_are_the_codes(
    module: str, owner: str, function: str, parameters: list[str]
) -> None:
    place = importlib.import_module(module)
    real = inspect.signature(getattr(getattr(place, owner) if owner else place, function))
    assert list(real.parameters) == parameters


def test_make_targets_named_in_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    named = {name for doc in DOCS for name in re.findall(r"(?:`|^)make ([a-z-]+)", doc.read_text(), re.MULTILINE)}
    assert {"demo", "test", "up", "replay"} <= named <= targets


def test_make_lists_every_target_by_default() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    assert set(re.findall(r"^  make ([a-z-]+)", shown, re.MULTILINE)) == set(phony)


def test_replay_without_data_says_what_it_needs() -> None:
    ready = ["-o", ".venv/.adloop-ready"]  # as if set up: this test installs nothing
    run = subprocess.run(["make", *ready, "replay"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "make replay DATA=PATH" in run.stderr


def test_lock_pins_every_direct_dependency_with_hashes_and_no_host() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    direct = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    pins = re.findall(r"^([a-z0-9._-]+)==\S+[^\n]*\\\n    --hash=sha256:", lock, re.MULTILINE)
    assert {re.split(r"[^A-Za-z0-9._-]", name)[0].lower() for name in direct} <= set(pins)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", lock, re.MULTILINE))
    assert "://" not in lock


def test_set_up_installs_the_uv_it_names() -> None:
    wanted = re.findall(r"^UV_VERSION=(\S+)$", (ROOT / "scripts/setup").read_text(), re.MULTILINE)
    assert len(wanted) == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", wanted[0])


@pytest.mark.parametrize("path", [".ci/run", "scripts/setup", "scripts/browser", "scripts/kafka"])
def test_scripts_are_executable_and_parse(path: str) -> None:
    assert os.access(ROOT / path, os.X_OK)
    shell = "bash" if "bash" in (ROOT / path).read_text().splitlines()[0] else "sh"
    subprocess.run([shell, "-n", path], cwd=ROOT, check=True)


def without_python(folder: Path) -> dict[str, str]:
    """An environment whose python3 is too old: what set-up needs apart from it is there."""
    for tool in ("sh", "dirname", "cut", "id", "env"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    old = folder / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    return {"PATH": str(folder)}


def test_set_up_says_which_python_it_needs(tmp_path: Path) -> None:
    repository, tools = tmp_path / "repository", tmp_path / "tools"
    (repository / "scripts").mkdir(parents=True)
    tools.mkdir()
    shutil.copy(ROOT / "scripts/setup", repository / "scripts/setup")
    run = subprocess.run(
        [repository / "scripts/setup"], env=without_python(tools), capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "needs Python 3.11 or newer; python3 here is: Python 3.9.2" in run.stderr
    assert not (repository / ".venv").exists()


@pytest.mark.parametrize(("user", "apt"), [("1000", ""), ("0", ""), ("0", "exit 100")])
@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("scripts/kafka fetch", "sudo apt-get install openjdk-17-jre-headless"),
        ("scripts/browser", "sudo apt-get install chromium chromium-driver"),
    ],
)
def test_what_cannot_be_installed_is_said(tmp_path: Path, script: str, says: str, user: str, apt: str) -> None:
    env = without_python(tmp_path)
    (tmp_path / "sed").symlink_to(str(shutil.which("sed")))
    for name, does in (("id", f"echo {user}"), *([("apt-get", apt)] if apt else [])):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    command = [str(ROOT / script.split()[0]), *script.split()[1:]]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert says in run.stderr


def test_license_is_apache_2_0_in_full() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert len(text) > 11_000


def test_no_machine_path_in_tracked_text() -> None:
    # Spelt in two parts, so that this file does not hold what it looks for.
    place = re.compile("|".join((r"/wo" + r"rk/", r"/ro" + r"ot/", r"/ho" + r"me/[a-z]")))
    found = []
    for path in tracked():
        file = ROOT / path
        if file.suffix in {".md", ".py", ".toml", ".js", ".css", ".html", ""} and file.is_file():
            found += [path] if place.search(file.read_text(errors="replace")) else []
    assert not found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A real server on a free port, without the background roles: its controls are enough for an ad."""
    command = [sys.executable, "-m", "serving", "--data", str(tmp_path / "data"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        try:
            assert found is not None, server.stderr.read() if server.stderr is not None else ""
            yield found.group().rstrip("/")
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=120)


def test_the_three_calls_of_readme_work_verbatim(served: str) -> None:
    block = README.split("## Point an ad server at it")[1].split("```sh\n")[1].split("```")[0]
    assert block.count("curl ") == 3
    script = block.replace("http://127.0.0.1:8080", served) + '\nprintf "\\n%s" "$AD"\n'
    run = subprocess.run(["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    decoder, answers, rest = json.JSONDecoder(), [], run.stdout.strip()
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers.append(answer)
        rest = rest[end:].lstrip()
    campaign, events, ad = answers
    assert (campaign["campaign_id"], campaign["segments"]) == ("trail-runner", ["hikers", "commuters"])
    assert [result["status"] for result in events["results"]] == ["accepted", "accepted"]
    assert ad["variants"][0]["text"] == "Trail Runner 3: light and waterproof"
