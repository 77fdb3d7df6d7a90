"""Range checks of settings, which all say what was expected, what was got and what to type instead."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from ..engine.contracts import INFINITY, Clock, Forecast, View
from ..errors import SpecError


def _refuse(policy: Any, field: str, wanted: str) -> None:
    default = next(f.default for f in fields(policy) if f.name == field)
    raise SpecError(
        f"{policy.name}: expected {field} to be {wanted}, got {getattr(policy, field)!r}; try {field}={default!r}."
    )


def _span(low: float, high: float) -> str:
    return f">= {low:g}" if high == INFINITY else f"in [{low:g}, {high:g}]"


def number(policy: Any, field: str, low: float, high: float = INFINITY) -> None:
    """Raise SpecError unless the setting is a number in [low, high]."""
    value = getattr(policy, field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        _refuse(policy, field, f"a number {_span(low, high)}")


def whole(policy: Any, field: str, low: int, high: float = INFINITY) -> None:
    """Raise SpecError unless the setting is a whole number in [low, high]."""
    value = getattr(policy, field)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _refuse(policy, field, f"a whole number {_span(low, high)}")


def one_of(policy: Any, field: str, choices: tuple[str, ...]) -> None:
    """Raise SpecError unless the setting is one of these words."""
    if getattr(policy, field) not in choices:
        _refuse(policy, field, f"one of {', '.join(map(repr, choices))}")


def forecast_of(policy: Any) -> Forecast:
    """The forecast that the settings `order`, `of` and `clock` describe, checked."""
    whole(policy, "order", 0, 3)
    one_of(policy, "of", get_args(View))
    one_of(policy, "clock", get_args(Clock))
    return Forecast(policy.order, policy.of, policy.clock)
