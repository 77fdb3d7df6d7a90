"""Policies of a Python file: `./mine.py:Mine(tol=0.02)`, wherever a command takes a policy.

The part after the colon is a class or a policy of the file. Other policies can be joined to it as in any spec:
`./mine.py:Mine | early_stop(tol=0.02)`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import operator
import sys
import traceback
from dataclasses import is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import registry
from ..engine.contracts import Policy
from ..errors import SkipstoneError, SpecError
from ..settings import cut

SUFFIX = ".py"
_PREFIX = "skipstone_policy_file_"  # of the names that modules have in `sys.modules`
_FILES: dict[str, str] = {}  # module -> the file, as it was typed first


def is_file_spec(spec: str) -> bool:
    """Whether a spec names a Python file, with or without a class in it."""
    file, colon, _ = spec.partition(f"{SUFFIX}:")
    return bool(colon and file) or spec.endswith(SUFFIX)


def load_policy_from_file(spec: str) -> Policy:
    """The policy of a spec such as `./mine.py:Mine(tol=0.02)`; its file is run.

    Raises:
        SpecError: no such file, an exception while it is run, no such class, or something that is no policy.
    """
    head, colon, rest = spec.partition(f"{SUFFIX}:")
    file = f"{head}{SUFFIX}" if colon else spec
    module = _load(file)
    if not rest.strip():
        raise SpecError(f"Expected a class of {file}, as in {file}:{_listed(module) or 'Mine'}, got {spec!r}.")
    expression = registry.parse_expression(rest, f"{file}:Name or {file}:Name(key=value)")
    parts = registry.split_chain(expression, spec)
    return functools.reduce(operator.or_, (_build(file, module, part, part is parts[0]) for part in parts))


def spell_policy(policy: Any) -> str:
    """As `registry.spell`, but for policies of files, which are spelt as they are loaded."""
    parts = getattr(policy, "parts", (policy,))
    file = next((_FILES[type(part).__module__] for part in parts if type(part).__module__ in _FILES), "")
    if not file:
        return registry.spell(policy)
    return f"{file}:{' | '.join(map(_spell_part, parts))}"


def files_of(policy: Any) -> list[Path]:
    """The Python files that a policy and the parts of a chain come from; empty for those of packages."""
    parts = getattr(policy, "parts", (policy,))
    modules = dict.fromkeys(type(part).__module__ for part in parts)
    return [Path(_FILES[name]).expanduser().resolve() for name in modules if name in _FILES]


def _spell_part(part: Any) -> str:
    text = registry.spell(part)
    if type(part).__module__ not in _FILES:
        return text
    return type(part).__qualname__ + text.removeprefix(part.name)


def _load(file: str) -> ModuleType:
    """The module of a file, run once in a process."""
    missing = SpecError(f"There is no file {cut(file)}. Expected a Python file and a class in it, e.g. ./mine.py:Mine.")
    try:
        path = Path(file).expanduser().resolve()
        there = path.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have; the home of nobody
        raise missing from None
    name = _PREFIX + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    if not there:
        raise missing
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # where dataclasses look for the names in annotations
    try:
        found.loader.exec_module(module)
    except Exception as e:  # whatever a user's file raises
        del sys.modules[name]
        raise SpecError(f"{file}:{_line(e, path)}: {type(e).__name__}: {e}".rstrip(": ")) from e
    _FILES[name] = file
    return module


def _line(e: Exception, path: Path) -> int:
    """The last line of the file that an exception went through."""
    if isinstance(e, SyntaxError) and e.filename == str(path):
        return e.lineno or 1
    lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == str(path)]
    return next((line for line in reversed(lines) if line), 1)


def _build(file: str, module: ModuleType, node: ast.expr, first: bool = False) -> Policy:
    """A policy out of what was written after the colon; only the first name must be of the file."""
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name):
        raise SpecError(f"Expected {file}:Name or {file}:Name(key=value), got {file}:{ast.unparse(node)}.")
    if not first and not hasattr(module, name.id):
        other: Policy = registry.parse("policy", ast.unparse(node))
        return other
    found = getattr(module, name.id, None)
    if found is None:
        known = _policies(module)
        raise SpecError(
            f"{file} has no {name.id!r}.{registry.suggest_spelling(name.id, known)} "
            f"Policies there: {', '.join(known) or 'none'}."
        )
    where = f"{file}:{_definition(module, name.id)}"
    if isinstance(found, Policy) and not isinstance(node, ast.Call):
        return _checked(where, name.id, found)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        got = "already a policy and takes no arguments" if isinstance(found, Policy) else "no policy"
        raise SpecError(f"{where}: {name.id} is {got}. Expected a class derived from Policy, or an instance of one.")
    return _checked(where, name.id, _make(where, found, node))


def _make(where: str, cls: type[Policy], node: ast.expr) -> Policy:
    arguments: dict[str, Any] = {}
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise SpecError(f"Expected {cls.__name__}(key=value), got {ast.unparse(node)}.")
        arguments = registry.read_arguments(cls.__name__, node.keywords)
    known = list(inspect.signature(cls).parameters)
    for key in arguments:
        if key not in known:
            raise SpecError(
                f"{where}: {cls.__name__} has no argument {key!r}.{registry.suggest_spelling(key, known)} It takes: "
                f"{', '.join(known) or 'nothing'}."
            )
    try:
        return cls(**arguments)
    except SkipstoneError:
        raise
    except Exception as e:  # whatever a user's class raises
        raise SpecError(f"{where}: {cls.__name__}: {e}") from e


def _checked(where: str, name: str, policy: Policy) -> Policy:
    """The policy. Raises SpecError where it lacks what tables and records need of every policy."""
    for part in getattr(policy, "parts", (policy,)):
        if not is_dataclass(part):
            raise SpecError(f"{where}: {name} is no dataclass. Write @dataclass(frozen=True) above the class.")
        if not getattr(part, "name", ""):
            raise SpecError(f"{where}: {name} has no name. Add to the class: name: ClassVar[str] = {name.lower()!r}.")
    return policy


def _definition(module: ModuleType, name: str) -> int:
    """The line that gives the name its value, 1 where none is found."""
    for node in ast.parse(inspect.getsource(module)).body:
        names = {getattr(node, "name", "")}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        if name in names:
            return node.lineno
    return 1


def _policies(module: ModuleType) -> list[str]:
    """Names of the policies that the file defines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Policy)
        or (isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module.__name__)
    ]


def _listed(module: ModuleType) -> str:
    return next(iter(_policies(module)), "")
