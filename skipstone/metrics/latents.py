"""Closeness of the latent to the full run's, which leaves out what the decoder adds or hides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import SpecError
from ..registry import register
from .base import Metric, Sample


@register("metric")
@dataclass(frozen=True)
class LatentError(Metric):
    """Relative error of the latent: rms of the difference to the full run's, over the rms of that.

    0 for identical latents, about 1.4 for unrelated ones.

    Raises:
        SpecError: a sample without latents, or latents of two shapes.
    """

    name: ClassVar[str] = "latent_error"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    span: ClassVar[tuple[float, float]] = (0.0, math.inf)
    requires: ClassVar[tuple[Literal["judge", "latent"], ...]] = ("latent",)
    by_default: ClassVar[bool] = False

    def measure(self, sample: Sample) -> float:
        import numpy as np

        if sample.latent is None or sample.reference_latent is None:
            raise SpecError(f"{self.name} compares with the full run's latent; this sample lacks one of them.")
        ours, theirs = _array(sample.latent), _array(sample.reference_latent)
        if ours.shape != theirs.shape:
            raise SpecError(f"{self.name}: the latent is {ours.shape}, its reference {theirs.shape}.")
        error, size = (float(np.sqrt((a**2).mean())) for a in (ours - theirs, theirs))
        return error / size if size else (0.0 if error == 0.0 else float("inf"))


def _array(latent: Any) -> Any:
    """Return a tensor, on any device, as a float64 array."""
    import numpy as np

    if hasattr(latent, "detach"):
        latent = latent.detach().double().cpu().numpy()
    return np.asarray(latent, np.float64)
