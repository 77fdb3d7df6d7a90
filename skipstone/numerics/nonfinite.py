"""Infinities and NaN in JSON, which has no such numbers: they are written as texts."""

from __future__ import annotations

import math
from typing import Any

NONFINITE = ("inf", "-inf", "nan")


def spell_nonfinite(value: Any) -> Any:
    """The value, or its text where it is a number that JSON does not have."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_nonfinite(value: Any) -> Any:
    """Inverts `spell_nonfinite`."""
    return float(value) if isinstance(value, str) and value in NONFINITE else value
