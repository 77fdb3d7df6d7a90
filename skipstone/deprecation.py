"""Old names that keep working for one release: a `FutureWarning` says the new one.

@old_keywords(renamed={"tell": "on_progress"}, moved={"options": (CalibrationOptions, ("seed", "batch"))})
def calibrate(pipe, *, on_progress=no_progress, options=CalibrationOptions()): ...

__getattr__ = old_names(__name__, {"UnknownName": "UnknownNameError"})
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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


def _renamed_attribute(owner: str, old: str, new: str, instance: Any) -> Any:
    warn_renamed(f"{owner}.{old}", f"{owner}.{new}")
    return getattr(instance, new)
