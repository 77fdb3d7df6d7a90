"""Utility of a run: closeness of its picture to the converged one, minus the price of its calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SpecError


@dataclass(frozen=True)
class Utility:
    """U = clip(quality, floor, cap) - price * calls, in dB.

    Args:
        price: Of a call, in dB, >= 0. 0 asks for quality alone.
        floor: Quality below which nothing worse is known, in dB: a ruined picture is ruined.
        cap: Quality above which nobody sees a difference, in dB, > floor.

    Raises:
        SpecError: a setting out of range.
    """

    price: float
    floor: float = 0.0
    cap: float = 100.0

    def __post_init__(self) -> None:
        if not (self.price >= 0 and self.floor < self.cap):
            raise SpecError(
                f"utility: expected price >= 0 and floor < cap, got price={self.price!r}, floor={self.floor!r} "
                f"and cap={self.cap!r}; try price=0.5, floor=10, cap=45."
            )

    def __call__(self, quality: Any, calls: Any) -> Any:
        """Utility of this PSNR (in dB) to the same seed's converged run after this many calls. Accepts arrays."""
        return np.clip(quality, self.floor, self.cap) - self.price * np.asarray(calls)
