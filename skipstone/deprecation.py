"""Old names that keep working for one release: a `FutureWarning` says the new one.

@old_keywords(renamed={"tell": "on_progress"}, moved={"options": (CalibrationOptions, ("seed", "batch"))})
def calibrate(pipe, *, on_progress=no_progress, options=CalibrationOptions()): ...

__getattr__ = old_names(__name__, {"UnknownName": "UnknownNameError"})
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Moved = Mapping[str, tuple[type, Sequence[str]]]


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that `old` is written as `new` from now on."""
    warnings.warn(f"{old} is now {new}; the old form works for one more release.", FutureWarning, stacklevel)


def old_keywords(
    renamed: Mapping[str, str] | None = None, moved: Moved | None = None
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: accept keyword arguments that were renamed, or that a dataclass holds now.

    Args:
        renamed: Old keyword -> new one.
        moved: Argument that is a dataclass -> the dataclass, and those of its fields that were keywords.
    """
    homes = {name: (group, cls) for group, (cls, names) in (moved or {}).items() for name in names}

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        title = f"skipstone.{function.__name__}"

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given: dict[str, Any] = kwargs
            for old in [name for name in given if name in (renamed or {})]:
                new = (renamed or {})[old]
                if new in given:
                    raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}.")
                warn_renamed(f"{title}({old}=...)", f"{new}=...")
                given[new] = given.pop(old)
            for name in [name for name in given if name in homes]:
                group, cls = homes[name]
                warn_renamed(f"{title}({name}=...)", f"{group}={cls.__name__}({name}=...)")
                given[group] = replace(given.get(group) or cls(), **{name: given.pop(name)})
            return function(*args, **given)

        return call

    return decorate


def old_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module some of whose public names were renamed: old name -> new one."""

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", f"{module}.{renamed[name]}")
        return getattr(sys.modules[module], renamed[name])

    return find


def old_attributes(cls: type, renamed: Mapping[str, str]) -> None:
    """Let a class answer to attributes and methods that were renamed: old name -> new one."""
    for old, new in renamed.items():
        setattr(cls, old, property(functools.partial(_renamed_attribute, f"skipstone.{cls.__name__}", old, new)))


def adopt_old_declarations(cls: type, renamed: Mapping[str, str]) -> None:
    """Let a subclass declare class attributes and methods under their old names: old name -> new one."""
    for old, new in renamed.items():
        if old in vars(cls) and new not in vars(cls):
            warn_renamed(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}", stacklevel=4)
            setattr(cls, new, vars(cls)[old])


def _renamed_attribute(owner: str, old: str, new: str, instance: Any) -> Any:
    warn_renamed(f"{owner}.{old}", f"{owner}.{new}")
    return getattr(instance, new)


# Package of 0.1.0 -> where its modules are now, to be tried in turn. `skipstone.calibrate` is a function today.
MOVED_PACKAGES = {
    "skipstone.backbones": ("skipstone.testing.backbones", "skipstone.integrations"),
    "skipstone.bench": ("skipstone_bench", "skipstone.evaluation"),
    "skipstone.peers": ("skipstone_bench.peers", "skipstone.evaluation.peers"),
    "skipstone.pebble": ("skipstone_pebble", "skipstone_pebble.recipe"),
    "skipstone.train": ("skipstone_train.agents",),
}


class MovedModules(MetaPathFinder):
    """Finds modules of 0.1.0 under their old names, where the last part of the name is as it was."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module of today under an old name, with a FutureWarning; None of any other name."""
        for old, homes in MOVED_PACKAGES.items():
            if fullname == old and _exists(homes[0]):
                warn_renamed(fullname, homes[0])
                return ModuleSpec(fullname, _Package(homes), is_package=True)
            for home in homes:
                name = home + fullname.removeprefix(old)
                if fullname.startswith(f"{old}.") and _exists(name):
                    warn_renamed(fullname, name)
                    return ModuleSpec(fullname, _Alias(name))
        return None


class _Package(Loader):
    """Loader of a 0.1.0 package: attribute access is forwarded to the current package or a moved module."""

    def __init__(self, homes: Sequence[str]) -> None:
        self.homes = homes

    def exec_module(self, module: ModuleType) -> None:
        def find(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            for home in filter(_exists, self.homes):
                if (found := getattr(importlib.import_module(home), name, None)) is not None:
                    return found
            return importlib.import_module(f"{module.__name__}.{name}")

        setattr(module, "__getattr__", find)  # noqa: B010


class _Alias(Loader):
    """Loads a module that has another name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put that of the old name there


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package is not installed
        return False


def install_moved_modules() -> None:
    """Let `import skipstone.pebble` and the like find what has moved; once in a process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
