"""What a command loads before it does anything: help, refusals and HTTP-only serving wait for no machine learning."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "peft", "plotly", "tokenizers")
SEEN = "print('LOADED', sorted(set({names!r}) & set(sys.modules)))"


def loaded(code: str, names: tuple[str, ...] = HEAVY) -> list[str]:
    """What of `names` is loaded once `code` has run in a Python of its own."""
    script = f"import sys\n{code}\n{SEEN.format(names=names)}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    found: list[str] = ast.literal_eval(run.stdout.rsplit("LOADED ", 1)[1].strip())
    return found


@pytest.mark.parametrize(
    "module", ["serving.__main__", "simulators.cli", "simulators.demo", "simulators.compare", "optimizer.__main__"]
)
def test_help_comes_before_anything_heavy(module: str) -> None:
    code = f"import {module} as verb\ntry:\n    verb.main(['--help'])\nexcept SystemExit:\n    pass"
    assert loaded(code, (*HEAVY, "fastapi", "uvicorn")) == []


@pytest.mark.parametrize("verb", ["join", "learn", "pretrain"])
def test_help_of_every_role_comes_before_anything_heavy(verb: str) -> None:
    code = (
        f"import optimizer.__main__ as roles\ntry:\n    roles.main(['{verb}', '--help'])\nexcept SystemExit:\n    pass"
    )
    assert loaded(code) == []


def test_serving_over_http_alone_loads_no_torch() -> None:
    code = (
        "import pathlib, tempfile\n"
        "import serving.process, serving.server, serving.roles, optimizer.learning.view\n"
        "from optimizer.types import PolicyRecord\n"
        "data = pathlib.Path(tempfile.mkdtemp())\n"
        "assert 'not in the store' in serving.roles.files_damage(data)('000001-aaaaaaaaaaaa')"
    )
    assert loaded(code) == []


def test_a_tiny_model_that_is_there_is_told_without_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADLOOP_CACHE", str(tmp_path))
    code = (
        "from optimizer.learning.recipe import *\n"
        "config = PretrainConfig()\n"
        "assert made_already(config) is None\n"
        "folder = tiny_folder(corpus_hash(config, corpus_lines(config.seed, 1_000)))\n"
        "folder.mkdir(parents=True)\n"
        "(folder / MARKER).touch()\n"
        "from optimizer.__main__ import main\n"
        "assert main(['pretrain']) == 0"
    )
    assert loaded(code) == []
