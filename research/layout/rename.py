"""Give names of 0.1.0 the words of 0.2.0: python research/layout/rename.py renames.tsv [--check].

A line of the table is one rename; modules and globs are those of 0.1.0, and are looked up by the tables of the move:

    symbol  module:name          new             a top-level name, wherever it is imported
    member  module:Class.name    new   globs     a method, property, attribute, field or keyword argument
    local   globs                old   new       every such token in these files
    text    globs                old   new       a name in a string

Nothing inside strings is renamed but what stands in backticks and in the braces of f-strings.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from tables import ROOT, SOURCES, new_module, new_path, table
from tokens import Token, tokens_of

KINDS = ("symbol", "member", "local", "text")
PLACES = {f"packages/{d}/": "" for d in ("skipstone-pebble", "skipstone-bench", "skipstone-train")} | {"research/": ""}


class Module:
    """A file under change: its tokens, and what the syntax tree says of names in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text(encoding="utf-8")
        self.tree, self.tokens = ast.parse(self.text), tokens_of(self.text)
        name = str(path.relative_to(ROOT).with_suffix(""))
        for place in PLACES:
            if name.startswith(f"{place}skipstone"):
                name = name.removeprefix(place)
        self.package = path.name == "__init__.py"
        self.name = name.removesuffix("/__init__").replace("/", ".")
        self.new: dict[int, str] = {}

    @cached_property
    def starts(self) -> list[int]:
        """Offset of every line."""
        found = [0]
        for line in self.text.splitlines(keepends=True):
            found.append(found[-1] + len(line))
        return found

    @cached_property
    def imports(self) -> list[tuple[str, str, str]]:
        """(module, name, local name) of everything that is imported from somewhere."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                parts = self.name.split(".") if self.package else self.name.split(".")[:-1]
                base = parts[: len(parts) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                found += [(source, alias.name, alias.asname or alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                found += [(alias.name, "", alias.asname or alias.name) for alias in node.names]
        return found

    @cached_property
    def top(self) -> set[str]:
        """Names that are defined at the top."""
        found = set()
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                found |= {n.id for n in ast.walk(target) if isinstance(n, ast.Name)} if target is not None else set()
        return found

    @cached_property
    def members(self) -> set[tuple[str, int]]:
        """(name, line) of every definition in the body of a class."""
        found = set()
        for node in ast.walk(self.tree):
            for child in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                    found.add((child.name, child.lineno))
                for target in getattr(child, "targets", [getattr(child, "target", None)]):
                    if target is not None:
                        found |= {(n.id, n.lineno) for n in ast.walk(target) if isinstance(n, ast.Name)}
        return found

    @cached_property
    def imported_lines(self) -> set[int]:
        """Lines of import statements."""
        nodes = [n for n in ast.walk(self.tree) if isinstance(n, ast.Import | ast.ImportFrom)]
        return {line for n in nodes for line in range(n.lineno, (n.end_lineno or n.lineno) + 1)}

    @cached_property
    def bracketed(self) -> set[int]:
        """Indices of tokens inside call brackets, where `name=` is a keyword argument."""
        found, stack = set(), []
        for i, token in enumerate(self.tokens):
            if token.text in ("(", "[", "{"):
                stack.append(token.text)
            elif token.text in (")", "]", "}") and stack:
                stack.pop()
            elif stack and stack[-1] == "(":
                found.add(i)
        return found

    def line(self, token: Token) -> int:
        """Line of a token."""
        from bisect import bisect_right

        return bisect_right(self.starts, token.start)

    def find(self, name: str) -> Iterator[int]:
        """Indices of the tokens of that name."""
        return (i for i, t in enumerate(self.tokens) if t.kind == tokenize.NAME and t.text == name)

    def before(self, i: int) -> str:
        """Text of the token before."""
        return self.tokens[i - 1].text if i else ""

    def is_member(self, i: int) -> bool:
        """Whether a token is an attribute, a definition in a class body, or a keyword argument."""
        token, before = self.tokens[i], self.before(i)
        line = self.line(token)
        if line in self.imported_lines:
            return False
        if before == ".":
            return True
        if (token.text, line) in self.members:
            first = before == "def" or self.text[self.starts[line - 1] : token.start].strip() in ("", "async def", "(")
            return first or before == ","
        after = self.tokens[i + 1].text if i + 1 < len(self.tokens) else ""
        return after == "=" and before in ("(", ",") and i in self.bracketed

    def put(self, i: int, new: str, why: str) -> None:
        """Rename one token; two different renames of it are an error."""
        if self.new.setdefault(i, new) != new:
            print(f"conflict: {self.path.relative_to(ROOT)}:{self.line(self.tokens[i])} {self.new[i]} / {new} ({why})")

    def written(self, classes: dict[str, str]) -> str:
        """The file with its renames; in backticks, names of classes and those that it renames wherever they stand."""
        kept = {t.text for i, t in enumerate(self.tokens) if i not in self.new}
        own = {self.tokens[i].text: new for i, new in self.new.items() if self.tokens[i].text not in kept}
        backticks = classes | own
        parts, last = [], 0
        for i in sorted(self.new, key=lambda i: self.tokens[i].start):
            token = self.tokens[i]
            parts += [self.text[last : token.start], self.new[i]]
            last = token.end
        text = "".join([*parts, self.text[last:]])
        return quoted(text, backticks)


def quoted(text: str, backticks: dict[str, str]) -> str:
    """A text in which names in backticks are renamed."""
    return re.sub(r"(?<=`)([A-Za-z_]\w*)(?=[`.(])", lambda m: backticks.get(m.group(1), m.group(1)), text)


class Tree:
    """All files, and the renames of a table."""

    def __init__(self) -> None:
        files = [p for folder in SOURCES for p in sorted((ROOT / folder).rglob("*.py"))]
        self.modules = [Module(p) for p in files if "research/layout" not in str(p)]
        self.by_name = {m.name: m for m in self.modules}
        self.by_path = {m.path: m for m in self.modules}
        old = subprocess.run(["git", "ls-tree", "-r", "--name-only", BASE], cwd=ROOT, capture_output=True, text=True)
        self.moved = {path: ROOT / new_path(path) for path in old.stdout.splitlines() if path.endswith(".py")}
        self.backticks: dict[str, str] = {}
        self.texts: list[tuple[Module, str, str]] = []

    def matching(self, globs: str) -> list[Module]:
        """The files that globs over the old tree name, where they are now."""
        wanted = globs.split()
        if "*" in wanted:
            return self.modules
        paths = {new for old, new in self.moved.items() if any(fnmatch.fnmatch(old, g) for g in wanted)}
        return [m for m in self.modules if m.path in paths]

    def home(self, module: str, name: str) -> Module | None:
        """Where a symbol is defined now."""
        if not module.startswith("skipstone"):  # a script or a test
            return self.by_path.get(self.moved.get(f"{module.replace('.', '/')}.py", ROOT))
        found = self.by_name.get(new_module(module))
        if found is not None and name in found.top:
            return found
        others = [m for m in self.modules if name in m.top and m.name.startswith("skipstone")]
        return others[0] if len(others) == 1 else None  # it was moved by hand

    def exporters(self, home: str, name: str) -> set[str]:
        """Modules that a symbol can be imported from."""
        found = {home} if home.startswith("skipstone") else {home, home.rpartition(".")[2]}  # tests import by stem
        while True:
            more = {m.name for m in self.modules for s, n, a in m.imports if s in found and n == name and a == name}
            if more <= found:
                return found
            found |= more

    def symbol(self, what: str, new: str) -> None:
        """Rename a top-level name."""
        module, _, name = what.partition(":")
        home = self.home(module, name)
        if home is None:
            print(f"missing: {what}")
            return
        homes = self.exporters(home.name, name)
        for m in self.modules:
            direct = m is home or any(s in homes and n == name and a == name for s, n, a in m.imports)
            aliased = any(s in homes and n == name and a != name for s, n, a in m.imports)
            local = {a: f"{s}.{n}" if n else s for s, n, a in m.imports}
            for i in m.find(name):
                before = m.before(i)
                line = m.line(m.tokens[i])
                imported = line in m.imported_lines
                if before == ".":
                    owner = m.tokens[i - 2].text
                    if local.get(owner) in homes and not imported and (i < 3 or m.tokens[i - 3].text != "."):
                        m.put(i, new, what)
                elif (name, line) in m.members and m.is_member(i):
                    continue
                elif (direct and (not imported or self._names(m, i))) or (
                    aliased and imported and m.tokens[i + 1].text == "as"
                ):
                    m.put(i, new, what)
        if name[0].isupper() and not name.isupper():
            self.backticks[name] = new

    @staticmethod
    def _names(m: Module, i: int) -> bool:
        """Whether a token on an import line is the name imported, not a part of a module's path."""
        k = i
        while k and m.tokens[k].text not in ("import", "from"):
            k -= 1
        return m.tokens[k].text == "import"

    def member(self, name: str, new: str, globs: str) -> None:
        """Rename a member."""
        hits = 0
        for m in self.matching(globs):
            for i in m.find(name):
                if m.is_member(i):
                    m.put(i, new, name)
                    hits += 1
        if not hits:
            print(f"nothing: member {name} in {globs}")

    def local(self, globs: str, name: str, new: str) -> None:
        """Rename every token."""
        hits = 0
        for m in self.matching(globs):
            for i in m.find(name):
                if m.line(m.tokens[i]) not in m.imported_lines or self._names(m, i):
                    m.put(i, new, name)
                    hits += 1
        if not hits:
            print(f"nothing: local {name} in {globs}")

    def apply(self, lines: list[tuple[str, ...]]) -> None:
        """Symbols first, then members and locals, which may say the same of a token."""
        for kind, a, b, c in sorted(lines, key=lambda line: KINDS.index(line[0])):
            if kind == "symbol":
                self.symbol(a, b)
            elif kind == "member":
                self.member(a.rpartition(".")[2], b, c)
            elif kind == "local":
                self.local(a, b, c)
            else:
                self.texts += [(m, b, c) for m in self.matching(a)]

    def write(self) -> None:
        """Every file that has changed; Markdown too, where names stand in backticks."""
        for m in self.modules:
            text = m.written(self.backticks)
            for _, old, new in (line for line in self.texts if line[0] is m):
                if old not in text:
                    print(f"nothing: {old} in {m.path.relative_to(ROOT)}")
                text = text.replace(old, new)
            m.path.write_text(text, encoding="utf-8")


BASE = sys.argv[2] if len(sys.argv) > 2 and not sys.argv[2].startswith("-") else "HEAD"


def main() -> None:
    """Read the table, rename, write."""
    tree = Tree()
    tree.apply([line for line in table(sys.argv[1], 4) if line[0] in KINDS])
    if "--check" not in sys.argv:
        tree.write()
    print(sum(len(m.new) for m in tree.modules), "tokens in", sum(bool(m.new) for m in tree.modules), "files")


if __name__ == "__main__":
    main()
