"""Who may import whom (docs/architecture.md), over every import in the code, those inside functions included."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(p for package in ("optimizer", "serving", "simulators") for p in (ROOT / package).rglob("*.py"))

# Inside optimizer, from the ground up: a module imports only from its own layer and those below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "optimizer.arguments",
        "optimizer.errors",
        "optimizer.files",
        "optimizer.clock",
        "optimizer.control",
        "optimizer.types",
        "optimizer.metrics",
        "optimizer.ids",
        "optimizer.ranges",
        "optimizer.loop",
        "optimizer.signals",
    ),
    ("optimizer.maths",),
    ("optimizer.stream",),
    ("optimizer.store",),
    ("optimizer.learning",),
    ("optimizer.__main__",),
)
# What the mathematics may use: arrays and plain values, never a clock, a file, a socket, a process or a model.
MATHS_MAY_IMPORT = {
    "__future__", "collections", "dataclasses", "enum", "fractions", "functools", "itertools", "math", "operator",
    "statistics", "sys", "typing", "msgspec", "numpy", "scipy", "torch", "optimizer",
}  # fmt: skip
MATHS_MAY_IMPORT_OF_OURS = ("optimizer.types", "optimizer.errors", "optimizer.ranges", "optimizer.maths")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports: `from a import b` is a.b where that is a module, else a."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            for alias in node.names:
                below = ROOT.joinpath(*module.split("."), alias.name)
                yield f"{module}.{alias.name}" if below.is_dir() or below.with_suffix(".py").is_file() else module


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def layer(module: str) -> int | None:
    return next((i for i, names in enumerate(LAYERS) if any(within(module, name) for name in names)), None)


def test_every_name_in_a_layer_is_there() -> None:
    missing = [name for names in LAYERS for name in names if importlib.util.find_spec(name) is None]
    assert missing == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_goes_up(path: Path) -> None:
    me = name_of(path)
    for other in imports(path):
        if me.startswith("optimizer"):
            assert not within(other, "serving"), f"{me} imports {other}"
        if not me.startswith("simulators"):
            assert not within(other, "simulators"), f"{me} imports {other}"
        assert not within(other, "tests"), f"{me} imports {other}"
        mine, theirs = layer(me), layer(other)
        if me.startswith("optimizer") and me != "optimizer" and within(other, "optimizer"):
            assert mine is not None, f"{me} stands in no layer; name it in LAYERS"
            assert theirs is not None, f"{other}, imported by {me}, stands in no layer; name it in LAYERS"
            assert theirs <= mine, f"{me} imports {other}, which is above it"


@pytest.mark.parametrize("path", sorted((ROOT / "optimizer/maths").glob("*.py")), ids=name_of)
def test_mathematics_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for other in imports(path):
        assert other.split(".")[0] in MATHS_MAY_IMPORT, f"{path.name} imports {other}"
        if within(other, "optimizer"):
            assert any(within(other, ours) for ours in MATHS_MAY_IMPORT_OF_OURS), f"{path.name} imports {other}"
        assert not other.startswith("torch.nn.modules"), f"{path.name} holds a model"
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}
    # Global random state would make equal arguments give unequal results.
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    seeded = {"np.random.Generator", "numpy.random.Generator"}
    assert not {name for name in used if name.startswith(("np.random.", "numpy.random.", "random."))} - seeded


def test_what_is_imported_of_ours_exists() -> None:
    for path in MODULES:
        for other in imports(path):
            if other.split(".")[0] in ("optimizer", "serving", "simulators"):
                assert importlib.util.find_spec(other) is not None, f"{name_of(path)} imports {other}"


def test_a_joiner_starts_without_torch() -> None:
    """The joiner is a small process; torch takes seconds and hundreds of megabytes."""
    heavy = ("torch", "transformers", "fastapi", "plotly", "scipy")
    waiting = ["optimizer.stream.joiner", "optimizer.stream.open"]
    seen: set[str] = set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for parent in (module.rpartition(".")[0], module):
            path = ROOT.joinpath(*parent.split("."))
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if parent and file.is_file():
                waiting += [other for other in imports(file) if other.startswith("optimizer")]
                assert not {other for other in imports(file) if other.split(".")[0] in heavy}, parent
    assert "optimizer.maths.attribution" in seen
