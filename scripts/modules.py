"""Prints docs/modules.md: every module of the three packages with the first sentence of its docstring.

    python scripts/modules.py > docs/modules.md

A test fails where that page and the modules differ.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("optimizer", "serving", "simulators")
HEAD = """# Every module, in a sentence
Made by `python scripts/modules.py > docs/modules.md` from the modules themselves. How they work together:
[architecture.md](architecture.md).
"""


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    said = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    # A full stop ends a sentence before a capital or at the end: those of "e.g." and of file names do not.
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", said)[0].replace("|", "\\|")


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield HEAD.rstrip()
    for package in PACKAGES:
        modules = sorted((ROOT / package).rglob("*.py"), key=lambda path: (path.parent, path.name))
        for folder in dict.fromkeys(path.parent for path in modules):
            about = [first_sentence(path) for path in modules if path == folder / "__init__.py"]
            yield "\n".join(["", f"## {folder.relative_to(ROOT)}/", *about, "", "| module | what |", "|---|---|"])
            for path in modules:
                if path.parent == folder and path.name != "__init__.py":
                    yield f"| `{path.name}` | {first_sentence(path)} |"


if __name__ == "__main__":
    print("\n".join(lines()))
