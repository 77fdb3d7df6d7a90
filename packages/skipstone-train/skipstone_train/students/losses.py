"""Distances between clean estimates, weighted by the level of noise."""

from __future__ import annotations

import torch

from .levels import Levels

HUBER_C = 0.001


def weighted_loss(kind: str, weight: str, error: torch.Tensor, index: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Mean loss of an error of the clean estimate.

    Args:
        kind: "l2", or "huber": sqrt(e^2 + c^2) - c (arXiv:2310.14189).
        weight: "x0": the error itself. "v": that of the velocity, SNR + 1 times its square. "snr": max(SNR, 1) times
            its square, the truncated weighting of arXiv:2202.00512.
        error: Student less target, float32.
        index: Level of each sample.
        levels: The levels.
    """
    snr = levels.snr(index, error)
    factors = {"x0": torch.ones_like(snr), "v": snr + 1, "snr": snr.clamp_min(1)}
    scaled = error * factors[weight].sqrt()
    if kind == "huber":
        return ((scaled**2 + HUBER_C**2).sqrt() - HUBER_C).mean()
    return (scaled**2).mean()
