"""Dynamic thresholding: a clean estimate brought back into the range that pictures have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError
from .array import array_namespace, cast_like, upcast


@dataclass(frozen=True)
class DynamicThreshold:
    """Clip a clean estimate to [-s, s] and divide by s, s the `quantile` of |x0| but at least 1; a `Problem.x0_filter`.

    One call is one sample: the quantile is over all its elements. Keeps dtype and shape, works in float32 inside,
    and changes nothing but the clipping to [-1, 1] where s = 1. For models of pictures in [-1, 1], not of latents.

    Args:
        quantile: Of |x0|, in (0, 1]; 0.995 as published. At 1 nothing is clipped, only divided.
        limit: Largest s, >= 1 (`sample_max_value` of diffusers, whose 1 is plain clipping). Infinite as published.

    Raises:
        SpecError: a setting out of range.

    References: Saharia et al. 2022, arXiv 2205.11487, section 2.3.
    """

    quantile: float = 0.995
    limit: float = math.inf

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 1.0 or not self.limit >= 1.0:
            raise SpecError(f"DynamicThreshold: expected quantile in (0, 1] and limit >= 1, got {self}.")

    def __call__(self, x0: Any) -> Any:
        """The thresholded estimate."""
        xp, values = array_namespace(x0), upcast(x0)
        size = xp.clip(self._quantile(abs(values).reshape(-1)), 1.0, self.limit)
        return cast_like(xp.clip(values / size, -1.0, 1.0), x0)

    def _quantile(self, flat: Any) -> Any:
        """Linear interpolation between order statistics, as torch.quantile and numpy.quantile have it."""
        xp = array_namespace(flat)
        ordered = flat.sort().values if xp.__name__ == "torch" else xp.sort(flat)
        place = self.quantile * (int(flat.shape[0]) - 1)
        low = math.floor(place)
        below, above = ordered[low], ordered[math.ceil(place)]
        return below + (above - below) * (place - low)
