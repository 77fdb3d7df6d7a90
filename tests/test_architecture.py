"""The layout of the repository, held by tests: imports point one way, nothing imports in circles, imports are light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import skipstone

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "skipstone"
PACKAGES = {
    "skipstone": LIBRARY,
    **{path.name: path for path in sorted(ROOT.glob("packages/*/skipstone_*")) if path.is_dir()},
    "skipstone_research": ROOT / "research" / "skipstone_research",
}
LAYERS = [
    ["deprecation"],
    ["errors"],
    ["json_files"],
    ["satellites"],
    ["settings"],
    ["registry"],
    ["yaml_settings"],
    ["numerics"],
    ["engine"],
    ["solvers", "policies", "metrics"],
    ["integrations"],
    ["testing", "mlx"],
    ["evaluation"],
    ["tuning", "calibration"],
    ["serving"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
MAY_IMPORT = {  # besides the library, which every satellite imports
    "skipstone_research": {"skipstone_bench", "skipstone_train"},
}
HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "mlx",
    "numpy",
    "scipy",
    "matplotlib",
    "skimage",
    "sklearn",
    "gymnasium",
    "pydantic",
}
LINES, PARAMETERS = 50, 8


def module_of(path: Path, package: str) -> str:
    parts = path.relative_to(PACKAGES[package].parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        found |= {module_of(path, package): path for path in sorted(folder.rglob("*.py"))}
    return found


def imported(module: str) -> Iterator[str]:
    """Every module of ours that a module imports, wherever in the file: late and `TYPE_CHECKING` imports too."""
    path = modules()[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            known = name if name in modules() else name.rpartition(".")[0]
            if known in modules() and known != module:
                yield known


MODULES = sorted(modules())


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "skipstone"])
def test_packages_import_the_library_and_no_other(package: str) -> None:
    allowed = {"skipstone", package} | MAY_IMPORT.get(package, set())
    for module in MODULES:
        if module.split(".")[0] == package:
            assert {name.split(".")[0] for name in imported(module)} <= allowed, module


def test_the_library_imports_no_other_package() -> None:
    for module in MODULES:
        if module.split(".")[0] == "skipstone":
            others = {name for name in imported(module) if not name.startswith("skipstone.") and name != "skipstone"}
            assert not others, f"{module} imports {sorted(others)}: find it by an entry point"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("skipstone.")])
def test_imports_point_one_way(module: str) -> None:
    here = LEVEL[module.split(".")[1]]
    upward = {name for name in imported(module) if "." in name and LEVEL[name.split(".")[1]] > here}
    assert not upward, f"{module} imports upward: {sorted(upward)}"


def test_no_two_modules_import_each_other() -> None:
    """Not even by a third: the modules can be put in an order in which each imports only those before it."""
    left = {module: {name for name in imported(module) if name != module.split(".")[0]} for module in MODULES}
    while ready := {module for module, names in left.items() if not names & set(left)}:
        left = {module: names for module, names in left.items() if module not in ready}
    assert not left, f"these import each other: {sorted(left)}"


@pytest.mark.parametrize("folder", ["research", "benchmarks", "docs", "tests"])
def test_no_two_scripts_import_each_other(folder: str) -> None:
    files = {path.stem: path for path in (ROOT / folder).rglob("*.py") if path.name != "__init__.py"}
    found = {
        stem: {
            name.split(".")[-1]
            for name in re.findall(r"^\s*(?:from|import) \.?([\w.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        }
        for stem, path in files.items()
        if not path.is_relative_to(PACKAGES["skipstone_research"])
    }
    both = {(a, b) for a in found for b in found if a < b and b in found[a] and a in found[b]}
    assert not both


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Functions, and how many parameters each has beside `self` and `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            yield node, len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("module", MODULES)
def test_functions_stay_readable(module: str) -> None:
    for node, parameters in functions(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        assert lines <= LINES, f"{module}.{node.name} has {lines} lines: divide it"
        options = {getattr(one, "id", "") for one in node.decorator_list} == {"register_to_config"}  # of diffusers
        if ".cli" not in module and "command" not in module and not options:
            assert parameters <= PARAMETERS, f"{module}.{node.name} has {parameters} parameters: group them"


@pytest.mark.parametrize("module", MODULES)
def test_documented_arguments_exist(module: str) -> None:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            part = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", ast.get_docstring(node) or "", re.MULTILINE)
            names = re.findall(r"^ {4}(\w+(?:, \w+)*):", part[1] if part else "", re.MULTILINE)
            wrong = {word for name in names for word in name.split(", ")} - argument_names(node)
            for base in getattr(node, "bases", []):
                wrong -= argument_names(classes[base.id]) if getattr(base, "id", "") in classes else set()
            assert not wrong, f"{module}.{node.name} documents {sorted(wrong)}, which it does not have"


def argument_names(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """Arguments of a function; fields of a class and arguments of its `__init__`."""
    if isinstance(node, ast.FunctionDef):
        return {one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)}
    found = {one.target.id for one in node.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)}
    inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    return found.union(*(argument_names(one) for one in inits))


@pytest.mark.parametrize("module", ["skipstone", "skipstone.engine.drivers", "skipstone.policies", "skipstone.cli"])
def test_importing_loads_no_array_library(module: str) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_every_public_name_is_there_and_documented() -> None:
    for name in skipstone.__all__:
        assert getattr(skipstone, name).__doc__, name
