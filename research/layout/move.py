"""Move every module of 0.1.0 to its place in 0.2.0 and rewrite what imports it: python research/layout/move.py.

With `modules_2.tsv` as its argument it renames single modules of the new layout. Run once, on a tree that has the old
layout. Files move with `git mv`; imports are rewritten from the syntax tree, so
that only they change; dotted names and paths in strings, comments and pages are replaced by the same tables.
"""

from __future__ import annotations

import ast
import re
import subprocess

from tables import FILES, HOMES, MODULES, ROOT, SECOND, SOURCES, module_of, new_module, new_path, path_of, table

TEXTS = (".py", ".pyi", ".md", ".toml", ".yaml", ".yml", ".j2", ".txt")
PUBLIC = {"skipstone.calibrate", "skipstone.peers"}  # a function and an entry point group as well


def listed() -> list[str]:
    """Every file that git follows."""
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in found.splitlines() if not path.startswith("research/layout/")]


def absolute(node: ast.ImportFrom, module: str | None, package: bool) -> str:
    """The full name of what an import is from."""
    if not node.level:
        return node.module or ""
    assert module is not None
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def spelt(target: str, here: str | None, package: bool) -> str:
    """How a module names another: relative within its own distribution."""
    if here is None or target.split(".")[0] != here.split(".")[0]:
        return target
    mine, theirs = here.split("."), target.split(".")
    mine = mine if package else mine[:-1]
    k = 0
    while k < min(len(mine), len(theirs)) and mine[k] == theirs[k]:
        k += 1
    return "." * (len(mine) - k + 1) + ".".join(theirs[k:])


def rewritten(text: str, path: str, modules: set[str]) -> str:
    """A file with its imports as they are in 0.2.0."""
    old, package = module_of(path), path.endswith(("__init__.py", "__init__.pyi"))
    here = new_module(old) if old else None
    lines = text.splitlines(keepends=True)
    for node in sorted(ast.walk(ast.parse(text)), key=lambda n: getattr(n, "lineno", 0), reverse=True):
        if not isinstance(node, ast.ImportFrom) or (node.level and old is None):
            continue
        base = absolute(node, old, package)
        if not base.startswith("skipstone"):
            continue
        indent = " " * node.col_offset
        made = []
        for alias in node.names:
            name = alias.asname or alias.name
            if f"{base}.{alias.name}" in modules and f"{base}.{alias.name}" != "skipstone.calibrate":
                parent, _, last = new_module(f"{base}.{alias.name}").rpartition(".")
            else:
                parent, last = new_module(base), alias.name
            again = f" as {name}" if name != last or alias.asname else ""
            if parent:
                made.append(f"{indent}from {spelt(parent, here, package)} import {last}{again}\n")
            else:
                made.append(f"{indent}import {last}{again}\n")
        end = node.end_lineno or node.lineno
        tail = lines[end - 1][node.end_col_offset :] if lines[end - 1][node.end_col_offset :].strip() else ""
        if tail:
            made[-1] = made[-1].rstrip("\n") + "  " + tail.strip() + "\n"
        lines[node.lineno - 1 : end] = made
    return "".join(lines)


def replaced(text: str) -> str:
    """Dotted names and paths of 0.1.0 in any text."""
    dotted = re.compile(r"(?<![\w./])skipstone(?:_\w+)?(?:\.[a-z_]\w*)+")

    def module(match: re.Match[str]) -> str:
        name = match.group(0)
        if name in PUBLIC or any(name == m or name.startswith(f"{m}.") for m in MODULES.values()):
            return name  # a public name, or rewritten already
        if not any(name == m or name.startswith(f"{m}.") for m in MODULES):
            return name
        return new_module(name)

    text = dotted.sub(module, text)
    paths = sorted(FILES, key=len, reverse=True)
    python = re.compile(r"(?<![\w/-])(?:packages/[\w-]+/|research/)?skipstone[\w/]+\.py")
    text = python.sub(lambda m: new_path(m.group(0)), text)
    if not paths:
        return text
    known = re.compile(r"(?<![\w/-])(" + "|".join(map(re.escape, paths)) + r")(?=[/_.\w`)\s\"']|$)")
    return known.sub(lambda m: FILES[m.group(1)] if "/" in m.group(1) else m.group(1), text)


def packages() -> None:
    """The `__init__.py` of every package that 0.1.0 did not have."""
    for name, about in table("packages.tsv"):
        file = ROOT / path_of(name, package=True)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'"""{about}"""\n', encoding="utf-8")


def main() -> None:
    """Read everything, move it, write it."""
    paths = listed()
    modules = {module for path in paths if (module := module_of(path))}
    for path in paths:
        file, target = ROOT / path, ROOT / new_path(path)
        text = None
        if path.endswith(TEXTS) and not path.startswith(("CHANGELOG", "research/layout")):
            text = file.read_text(encoding="utf-8")
            if path.endswith((".py", ".pyi")):
                text = rewritten(text, path, modules)
            text = replaced(text)
        if target != file:
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["git", "mv", path, str(target.relative_to(ROOT))], cwd=ROOT, check=True)
        if text is not None:
            target.write_text(text, encoding="utf-8")
    if not SECOND:
        packages()
    for folder in (*HOMES.values(), *SOURCES):
        assert (ROOT / folder).is_dir() or folder == "examples", folder


if __name__ == "__main__":
    main()
