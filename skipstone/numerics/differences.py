"""Finite differences of scalar series: the third-order criterion lives on these."""

from __future__ import annotations

from collections.abc import Sequence


def relative_curvature(d: Sequence[float]) -> float:
    """|(d[-1] + d[-3]) / 2 - d[-2]| / d[-2]: half the second difference of the last three, relative.

    With d the sizes of the latent's changes this is the released third-order criterion of
    AdaptiveDiffusion (Ye et al. 2024, arXiv 2410.09873). Dimensionless; 0 for three equal or evenly
    spaced values. Infinite where d[-2] is 0 and the others are not; 0 where all three are 0.
    """
    bend = abs((d[-1] + d[-3]) / 2 - d[-2])
    if d[-2] == 0.0:
        return 0.0 if bend == 0.0 else float("inf")
    return bend / abs(d[-2])
