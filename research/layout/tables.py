"""The tables of the move from 0.1.0 to 0.2.0, as `move.py` and `rename.py` read them."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOMES = {
    "skipstone": "skipstone",
    "skipstone_pebble": "packages/skipstone-pebble/skipstone_pebble",
    "skipstone_bench": "packages/skipstone-bench/skipstone_bench",
    "skipstone_train": "packages/skipstone-train/skipstone_train",
    "skipstone_research": "research/skipstone_research",
}
SOURCES = ("skipstone", "packages", "research", "tests", "benchmarks", "docs", "examples")


def table(name: str, columns: int = 2) -> list[tuple[str, ...]]:
    """The lines of a table, comments left out."""
    found = []
    for line in (HERE / name).read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            cells = line.split("\t")
            found.append(tuple((cells + [""] * columns)[:columns]))
    return found


SECOND = "modules_2.tsv" in sys.argv  # the second pass, over the new layout
MODULES = dict(table("modules_2.tsv" if SECOND else "modules.tsv"))
FILES = {} if SECOND else dict(table("files.tsv"))


def new_module(name: str) -> str:
    """The name of a module of 0.1.0 in 0.2.0; attributes behind it stay."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        if (head := ".".join(parts[:k])) in MODULES:
            return ".".join([MODULES[head], *parts[k:]])
    return name


def path_of(module: str, package: bool = False) -> str:
    """The file of a module of 0.2.0."""
    top, *rest = module.split(".")
    path = "/".join([HOMES[top], *rest])
    return f"{path}/__init__.py" if package else f"{path}.py"


def module_of(path: str) -> str | None:
    """The module that a file is, None of a script or a test."""
    for top, home in HOMES.items():
        if path.startswith(f"{home}/") and path.endswith((".py", ".pyi")):
            inside = path.removeprefix(f"{home}/").removesuffix("i").removesuffix(".py").removesuffix("__init__")
            return f"{top}/{inside}".rstrip("/").replace("/", ".")
    return None


def new_path(path: str) -> str:
    """Where a file of 0.1.0 is in 0.2.0."""
    if (module := module_of(path)) is not None:
        package = path.endswith(("__init__.py", "__init__.pyi"))
        return path_of(new_module(module), package) + ("i" if path.endswith(".pyi") else "")
    parts = path
    for prefix in sorted(FILES, key=len, reverse=True):
        if parts == prefix or parts.startswith((f"{prefix}/", f"{prefix}_", f"{prefix}.")):
            return FILES[prefix] + parts[len(prefix) :]
    return path
