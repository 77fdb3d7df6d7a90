"""The layout of docs/decisions.md, held by tests: imports point one way, and importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import skipstone

ROOT = Path(skipstone.__file__).parent
LAYERS = [
    ["errors"],
    ["registry"],
    ["numerics"],
    ["engine"],
    ["solvers", "policies", "metrics"],
    ["backbones"],
    ["pebble", "peers"],
    ["testing"],
    ["bench"],
    ["calibrate"],
    ["train"],
    ["cli"],
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
HEAVY = {"torch", "diffusers", "transformers", "mlx", "numpy", "scipy", "matplotlib", "skimage", "gymnasium"}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def place(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """First parts below `skipstone` of everything a module imports, wherever in the file."""
    package = path.relative_to(ROOT.parent).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = (*package[: len(package) - node.level + 1],) if node.level else ()
            full = (*base, *(node.module.split(".") if node.module else ()))
            targets = [full] if len(full) > 1 else [(*full, a.name) for a in node.names]
        elif isinstance(node, ast.Import):
            targets = [tuple(a.name.split(".")) for a in node.names]
        else:
            continue
        found |= {t[1] for t in targets if t[0] == "skipstone" and len(t) > 1}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = LEVEL[place(path)]
    upward = {name for name in imported(path) if LEVEL.get(name, -1) > here}
    assert not upward, f"{path.relative_to(ROOT)} imports upward: {sorted(upward)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 320, f"{path.relative_to(ROOT)} has {lines} lines: split it"


@pytest.mark.parametrize("module", ["skipstone", "skipstone.engine.drivers", "skipstone.policies", "skipstone.cli"])
def test_importing_loads_no_array_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in skipstone.__all__:
        assert getattr(skipstone, name).__doc__, name
