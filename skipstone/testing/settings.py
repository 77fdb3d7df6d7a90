"""A conformance check of settings: every one refuses what is of another type, infinite, or beyond its range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

from ..errors import SpecError
from ..settings import MAX_TEXT, Ranges, field_types

HUGE = 10**30  # beyond every range
INFINITIES = (math.inf, -math.inf, math.nan)


def check_settings_are_bounded(obj: Any) -> None:
    """Raise AssertionError where a setting takes NaN, infinity, another type, or a number without a bound.

    Args:
        obj: An instance; what its fields may be is read off the annotations and `ranges` of its class.
    """
    cls: Any = type(obj)
    if not hasattr(cls, "__dataclass_fields__"):
        return
    ranges: Ranges = getattr(cls, "ranges", {})
    for name, kind in field_types(cls).items():
        for value in _refused(kind, ranges.get(name)):
            if _is_accepted(obj, name, value):
                raise AssertionError(
                    f"{cls.__name__} accepts {name}={value!r:.60}. Write to the class "
                    f"`ranges: ClassVar[Ranges] = {{{name!r}: (least, greatest)}}` and call check_settings(self) in "
                    f"__post_init__ (skipstone.settings)."
                )


def _is_accepted(obj: Any, name: str, value: Any) -> bool:
    arguments = {f.name: getattr(obj, f.name) for f in fields(obj) if f.init}
    try:
        type(obj)(**{**arguments, name: value})
    except SpecError:
        return False
    return True


def _refused(kind: Any, low_high: tuple[float, float] | None) -> Iterator[Any]:
    """Values that a setting of this type must refuse."""
    if get_origin(kind) is UnionType:  # a number or None
        (number,) = (one for one in get_args(kind) if one is not NoneType)
        yield from (value for value in _refused(number, low_high) if value is not None)
    elif get_origin(kind) is tuple:
        yield from (0, None, "text", (None,), ((0,),), [0])
        yield from ((value,) for value in _refused(get_args(kind)[0], low_high))
    elif kind is float or kind is int:
        yield from (*INFINITIES, True, None, "1", (1,), HUGE, -HUGE, 10**5000)
        yield from [0.5] if kind is int else [1e300, -1e300]
        yield from _beyond(kind, *low_high) if low_high else ()
    elif kind is bool:
        yield from (0, 1, None, "True")
    elif kind is str:
        yield from (0, None, (), "x" * (MAX_TEXT + 1))
    elif get_origin(kind) is Literal:
        yield from (0, None, (), "no such word")


def _beyond(kind: Any, low: float, high: float) -> Iterator[float]:
    """The numbers next to a range."""
    yield from (low - 1, high + 1) if kind is int else (math.nextafter(low, -math.inf), math.nextafter(high, math.inf))
