"""Range checks of settings, which all say what was expected, what was got and what to type instead."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from ..engine.contracts import INFINITY, Clock, Forecast, PredictionType
from ..errors import SpecError


def _raise_out_of_range(policy: Any, field: str, wanted: str) -> None:
    default = next(f.default for f in fields(policy) if f.name == field)
    raise SpecError(
        f"{policy.name}: expected {field} to be {wanted}, got {getattr(policy, field)!r}; try {field}={default!r}."
    )


def _format_range(low: float, high: float) -> str:
    return f">= {low:g}" if high == INFINITY else f"in [{low:g}, {high:g}]"


def check_number(policy: Any, field: str, low: float, high: float = INFINITY) -> None:
    """Raise SpecError unless the setting is a number in [low, high]."""
    value = getattr(policy, field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        _raise_out_of_range(policy, field, f"a number {_format_range(low, high)}")


def check_integer(policy: Any, field: str, low: int, high: float = INFINITY) -> None:
    """Raise SpecError unless the setting is a whole number in [low, high]."""
    value = getattr(policy, field)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        _raise_out_of_range(policy, field, f"a whole number {_format_range(low, high)}")


def check_choice(policy: Any, field: str, choices: tuple[str, ...]) -> None:
    """Raise SpecError unless the setting is one of these words."""
    if getattr(policy, field) not in choices:
        _raise_out_of_range(policy, field, f"one of {', '.join(map(repr, choices))}")


def build_forecast(policy: Any) -> Forecast:
    """The forecast that the settings `order`, `of` and `clock` describe, checked."""
    check_integer(policy, "order", 0, 3)
    check_choice(policy, "of", get_args(PredictionType))
    check_choice(policy, "clock", get_args(Clock))
    return Forecast(policy.order, policy.of, policy.clock)
