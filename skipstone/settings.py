"""Checks of settings: a class says once what its fields may be, and is refused anything else.

    ranges: ClassVar[Ranges] = {"tol": (0, MAX_TOLERANCE), "max_skip": (0, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)

The annotation of a field says its type, `ranges` the least and the greatest number. Every number has both: settings
come from web forms and files, and one without a bound takes all memory or never returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from .errors import SpecError

Ranges: TypeAlias = Mapping[str, tuple[float, float]]  # field -> the least and the greatest value, both allowed

MAX_STEPS = 10_000  # steps of a run, and of whatever counts them
MAX_TOLERANCE = 1e9  # of an error that is relative, or in units of the sample: everything is allowed
RTOL_RANGE = (1e-6, 1e3)  # of a step's local error, relative to the sample: float32 measures no smaller one
MAX_PARTS = 32  # policies of a chain
MAX_TEXT = 10_000  # characters of a text, elements of a tuple
SHOWN = 80  # characters of a refused value that a message shows


def check_settings(obj: Any) -> None:
    """Hold every field of a dataclass against its annotation and its range.

    Args:
        obj: An instance whose class has a `name`, and `ranges` where it has numbers.

    Raises:
        SpecError: a field of another type, a number out of its range, NaN or infinite, a text that is too long.
    """
    cls: Any = type(obj)
    ranges: Ranges = getattr(cls, "ranges", {})
    for name, kind in field_types(cls).items():
        low_high = ranges.get(name, (0, 0))
        if not _fits(kind, low_high, getattr(obj, name)):
            raise setting_error(obj, name, _describe(kind, low_high))


def setting_error(obj: Any, name: str, wanted: str) -> SpecError:
    """The error of one setting: what was expected, what was got, what to type instead."""
    default = next(f.default for f in fields(obj) if f.name == name)
    advice = "" if default is MISSING else f"; try {name}={default!r}"
    return SpecError(f"{obj.name}: expected {name} to be {wanted}, got {shorten(getattr(obj, name))}{advice}.")


def shorten(value: Any) -> str:
    """The repr of any value, cut to the length of a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of more digits than Python writes; nested without end
        return f"a {type(value).__name__} that is too large to show"
    return cut(text)


def cut(text: str) -> str:
    """A text cut to the length of a message."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def format_range(kind: Any, low: float, high: float) -> str:
    """A range as messages and docstrings write it: "in [0, 1e9]", "in 0..10,000"."""
    if kind is int:
        return f"in {low:,}..{high:,}"
    return f"in [{_format_number(low)}, {_format_number(high)}]"


def _format_number(value: float) -> str:
    return f"{value:g}".replace("e+0", "e").replace("e-0", "e-")


def describe_setting(cls: type, name: str) -> str:
    """What a setting must be, in the words of error messages: "a whole number in 1..100"."""
    ranges: Ranges = getattr(cls, "ranges", {})
    return _describe(field_types(cls)[name], ranges.get(name, (0, 0)))


@cache
def field_types(cls: type) -> dict[str, Any]:
    """The type of every field that can be set."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if f.init}


def _fits(kind: Any, low_high: tuple[float, float], value: Any) -> bool:
    if kind is float or kind is int:
        number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        return number and low_high[0] <= value <= low_high[1]  # false for NaN
    if kind is str:
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        some = isinstance(value, tuple) and len(value) <= MAX_TEXT
        return some and all(_fits(get_args(kind)[0], low_high, element) for element in value)
    if get_origin(kind) is UnionType:
        return any(_fits(one, low_high, value) for one in get_args(kind))
    return isinstance(value, get_origin(kind) or kind)


def _describe(kind: Any, low_high: tuple[float, float]) -> str:
    """What a setting of this type must be."""
    if kind is float or kind is int:
        return f"a {'whole ' if kind is int else ''}number {format_range(kind, *low_high)}"
    if kind is bool:
        return "True or False"
    if kind is str:
        return f"a text of at most {MAX_TEXT:,} characters"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return f"a tuple, each element {_describe(get_args(kind)[0], low_high)}"
    if get_origin(kind) is UnionType:
        return " or ".join(_describe(one, low_high) for one in get_args(kind))
    return "None" if kind is NoneType else f"a {kind.__name__}"
