"""Names for policies, solvers, grids ...: one spelling in Python, shell, YAML and URLs.

    "third_order(tol=0.02) | budget(calls=20)"  <->  ThirdOrder(tol=0.02) | Budget(calls=20)

A class enters with `@register("policy")` above it; another package enters by an entry point of the
group `skipstone`, whose module is imported the first time a name is looked up.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import inspect
import operator
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .errors import SpecError, UnknownNameError
from .satellites import list_entry_points
from .settings import MAX_PARTS, cut, shorten

T = TypeVar("T", bound=type)
KIND_MODULES = {
    "policy": "skipstone.policies",
    "solver": "skipstone.solvers",
    "schedule": "skipstone.numerics.tables",
    "grid": "skipstone.numerics.grid",
    "signal": "skipstone.engine.signals",
    "metric": "skipstone.metrics",
    "backbone": "skipstone.testing.backbones",
    "peer": "",  # all of them are brought by packages: entry points of the group `skipstone.peers`
}
_KINDS: dict[str, dict[str, type]] = {kind: {} for kind in KIND_MODULES}
_PRESETS: dict[str, dict[str, tuple[str, str]]] = {kind: {} for kind in KIND_MODULES}
_FALLBACKS: dict[str, dict[str, str]] = {kind: {} for kind in KIND_MODULES}
_loaded: set[str] = set()
MAX_SPEC = 100_000  # characters of a spec
FACTORIES = {"policy": {"auto": "skipstone.policies.storage"}}  # names that a function builds, from more than settings


def register(kind: str) -> Callable[[T], T]:
    """Class decorator: enter a class under its `name`. Raises SpecError when the name is taken."""

    def add(cls: T) -> T:
        name: str = getattr(cls, "name")  # noqa: B009  (T is bound to type, which has no `name`)
        taken = _KINDS[kind].get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise SpecError(f"The {kind} name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        _KINDS[kind][name] = cls
        return cls

    return add


def register_preset(kind: str, name: str, spec: str, about: str, fallback: str = "") -> None:
    """Give a spec a short name, which is read as that spec everywhere.

    Args:
        kind: Of what it names.
        name: The short name.
        spec: What it stands for.
        about: Its help text.
        fallback: Spec of a policy for pipelines whose loop the one of `spec` cannot take over; "" for none.
    """
    _PRESETS[kind][name] = spec, about
    _FALLBACKS[kind][name] = fallback


def find_fallback(kind: str, name: str) -> str:
    """The spec that stands in for a preset where it cannot take a pipeline's loop over; "" where there is none."""
    _load(kind)
    return _FALLBACKS[kind].get(name, "")


def list_presets(kind: str) -> dict[str, tuple[str, str]]:
    """Short names of a kind -> what each stands for, and what it is good for."""
    _load(kind)
    return dict(_PRESETS[kind])


def mentions_preset(kind: str, spec: str) -> bool:
    """Whether a spec, or a part of a chain, is the short name of another one. Raises SpecError where it is no spec."""
    presets = list_presets(kind)
    return any(isinstance(p, ast.Name) and p.id in presets for p in split_chain(parse_expression(spec), spec))


def _load(kind: str) -> dict[str, type]:
    if kind not in KIND_MODULES:
        raise UnknownNameError(f"Expected a kind among {', '.join(KIND_MODULES)}, got {kind!r}.")
    if kind not in _loaded:
        _loaded.add(kind)
        if KIND_MODULES[kind]:
            importlib.import_module(KIND_MODULES[kind])
        else:
            for point in list_entry_points(f"{kind}s"):
                point.load()
        load_plugins()
    return _KINDS[kind]


@functools.cache
def load_plugins() -> None:
    """Import what other packages bring: the modules named by entry points of the group `skipstone`."""
    for point in entry_points(group="skipstone"):
        point.load()


def names(kind: str) -> tuple[str, ...]:
    """Every registered name of a kind, sorted."""
    return tuple(sorted(_load(kind)))


def suggest_spelling(wrong: str, known: tuple[str, ...] | list[str]) -> str:
    """' Did you mean ...?' for a misspelt word, or nothing."""
    close = difflib.get_close_matches(wrong, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def find_class(kind: str, name: str) -> type:
    """The class of that name. Raises UnknownNameError with the nearest known name."""
    known = _load(kind)
    if name not in known:
        listed = (*names(kind), *_PRESETS[kind])
        raise UnknownNameError(
            f"No {kind} is called {shorten(name)}.{_tell_kind(name) or suggest_spelling(name, listed)} Known: "
            f"{', '.join(listed)}."
        )
    return known[name]


def _tell_kind(name: str) -> str:
    """' It is a solver.' where a name is one of another kind that specs are made of, or nothing."""
    kinds = [kind for kind in ("policy", "solver", "grid") if name in (*names(kind), *_PRESETS[kind])]
    return f" It is a {kinds[0]}." if kinds else ""


def first_doc_line(cls: type) -> str:
    """First line of a class's docstring: its help text everywhere."""
    return inspect.cleandoc(cls.__doc__ or "").split("\n")[0]


def parse(kind: str, spec: str) -> Any:
    """Build an object from its spec string; `spell` inverts it.

    Args:
        kind: What it is: policy, solver, grid ...
        spec: At most 100,000 characters; policies are joined by "|", at most 32 of them.

    Raises:
        SpecError: a spec that cannot be understood, a setting that is given twice or is out of range.
        UnknownNameError: no such name.
    """
    parts = [_build(kind, node, spec) for node in split_chain(parse_expression(spec), spec)]
    if kind != "policy" and len(parts) > 1:
        raise grammar_error(spec)
    return functools.reduce(operator.or_, parts)


GRAMMAR = "'name', 'name(key=value)' or several of them joined by '|'"


def grammar_error(spec: Any, expected: str = GRAMMAR) -> SpecError:
    """The error of a spec that is none."""
    return SpecError(f"Expected {expected}, got {shorten(spec)}.")


def parse_expression(spec: str, expected: str = GRAMMAR) -> ast.expr:
    """The syntax tree of a spec. Raises SpecError, with what was expected in words."""
    if not isinstance(spec, str):
        raise grammar_error(spec, expected)
    if len(spec) > MAX_SPEC:
        raise SpecError(f"Expected a spec of at most {MAX_SPEC:,} characters, got {len(spec):,}: {shorten(spec)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python about its own literals, such as an unknown escape
            return ast.parse(spec.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise grammar_error(spec, expected) from None


def split_chain(node: ast.expr, spec: str) -> list[ast.expr]:
    """The parts of `a | b | c`, from left to right. Raises SpecError where they are too many."""
    parts = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts.append(node.right)
        node = node.left
    if len(parts) >= MAX_PARTS:
        raise SpecError(f"Expected at most {MAX_PARTS} policies in a chain, got {len(parts) + 1}: {shorten(spec)}.")
    return [node, *reversed(parts)]


def _build(kind: str, node: ast.expr, spec: str) -> Any:
    match node:
        case ast.Name(name) if name in list_presets(kind):
            return parse(kind, _PRESETS[kind][name][0])
        case ast.Name(name):
            return _instantiate(kind, name, [])
        case ast.Call(ast.Name(name), [], keywords):
            return _instantiate(kind, name, keywords)
    raise grammar_error(spec)


def read_arguments(name: str, keywords: list[ast.keyword]) -> dict[str, Any]:
    """The arguments of `name(key=value)`. Raises SpecError where one is no literal, or is given twice."""
    arguments: dict[str, Any] = {}
    for keyword in keywords:
        key = str(keyword.arg)
        if key in arguments:
            raise SpecError(f"{name}: {shorten(key)} is given twice. Say it once.")
        arguments[key] = _read_literal(name, key, keyword.value)
    return arguments


def _read_literal(name: str, key: str, node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    try:
        got = ast.unparse(node)
    except (ValueError, RecursionError):
        got = "a long expression"
    quoted = f"{key}='{got}'"
    raise SpecError(
        f"{name}: expected a number, a quoted text or a tuple for {shorten(key)}, got {cut(got)}. "
        f"Texts need quotes: {cut(quoted)}."
    )


def _instantiate(kind: str, name: str, keywords: list[ast.keyword]) -> Any:
    cls: Callable[..., Any]
    if name in FACTORIES.get(kind, {}):
        cls = getattr(importlib.import_module(FACTORIES[kind][name]), name)
        known = list(inspect.signature(cls).parameters)
    else:
        cls = find_class(kind, name)
        known = [f.name for f in fields(cls) if f.init]
    arguments = read_arguments(name, keywords)
    for key in arguments:
        if key not in known:
            raise SpecError(
                f"{name} has no argument {shorten(key)}.{suggest_spelling(key, known)} It takes: "
                f"{', '.join(known) or 'nothing'}."
            )
    try:
        return cls(**arguments)
    except (TypeError, OSError) as e:  # an argument is missing; a path that is none
        raise SpecError(f"{name}: {cut(str(e))}") from None


def spell(obj: Any) -> str:
    """The spec string of an object, settings at their defaults left out; `parse` inverts it."""
    if hasattr(obj, "parts"):
        return " | ".join(map(spell, obj.parts))
    settings = [
        f"{f.name}={_spell_value(getattr(obj, f.name))}"
        for f in fields(obj)
        if f.default is MISSING or getattr(obj, f.name) != f.default
    ]
    return f"{obj.name}({', '.join(settings)})" if settings else str(obj.name)


def _spell_value(value: Any) -> str:
    """The literal of a setting; numbers of NumPy that are Python's floats too are written as these."""
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_spell_value, value))}{',' * (len(value) == 1)})"
    return repr(value)
