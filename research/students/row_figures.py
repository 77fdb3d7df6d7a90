"""Figures of pictures that a row drew: the judge's facts, closeness, distances between and within sets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skipstone.metrics import PSNR, SSIM, Sample
from skipstone.metrics.sets import frechet_distance
from skipstone_pebble.judge import Judge, check_facts

SEEDS = 4  # of a prompt, for diversity
OBJECT_FACTS = ("object", "first", "second")


class JudgeFeatures(nn.Module):
    """The 128 features that the judge reads facts from, of 8-bit pictures (n, 3, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge.load()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features (n, 128)."""
        return torch.stack([self.judge.encode_image(picture) for picture in pictures.float() / 255])


def judge_facts(pictures: Sequence[Any], prompts: Sequence[str]) -> dict[str, float]:
    """The judge's score with its standard error, and the shares of objects and of backgrounds that it confirms.

    `objects` is the mean over pictures of the share of the named objects that are there; `background` the share of
    the pictures, of those whose prompt names one, that have it. Places and sizes count in the score alone.
    """
    readings = Judge.load().read(pictures)
    facts = [check_facts(reading, prompt) for reading, prompt in zip(readings, prompts, strict=True)]
    scores = [np.mean(list(found.values())) for found in facts]
    objects = [np.mean([found[name] for name in OBJECT_FACTS if name in found]) for found in facts]
    grounds = [found["background"] for found in facts if "background" in found]
    return {
        "judge": float(np.mean(scores)),
        "judge_se": float(np.std(scores, ddof=1) / len(scores) ** 0.5),
        "objects": float(np.mean(objects)),
        "background": float(np.mean(grounds)) if grounds else float("nan"),
    }


def closeness(pictures: Sequence[Any], converged: Sequence[Any]) -> dict[str, float]:
    """PSNR in dB and SSIM to the converged pictures: medians and worst tenths."""
    pairs = [Sample(p, reference=r) for p, r in zip(pictures, converged, strict=True)]
    psnr, ssim = ([metric.measure(pair) for pair in pairs] for metric in (PSNR(), SSIM()))
    return {
        "psnr": float(np.median(psnr)),
        "psnr_p10": float(np.quantile(psnr, 0.1)),
        "ssim": float(np.median(ssim)),
        "ssim_p10": float(np.quantile(ssim, 0.1)),
    }


def judge_frechet_distance(pictures: Sequence[Any], references: Sequence[Any]) -> float:
    """Fréchet distance of two sets of 8-bit pictures in the judge's features (arXiv 1706.08500: in Inception's)."""
    ours, theirs = ([np.asarray(p, np.float32) / 255 for p in some] for some in (pictures, references))
    return frechet_distance(JudgeFeatures(), ours, theirs)


def diversity(pictures: Sequence[Any]) -> dict[str, float]:
    """Mean distance of two pictures of one prompt: of their pixels (RMS), and of the judge's features."""
    judge = Judge.load()
    vectors = [judge.encode_image(torch.as_tensor(p).permute(2, 0, 1).float()).numpy() for p in pictures]
    return {"pixels": pairwise_distance(pictures), "features": pairwise_distance(vectors)}


def pairwise_distance(things: Sequence[NDArray[np.float32]]) -> float:
    """Mean RMS distance between those of one prompt, `SEEDS` of each in order."""
    groups = [things[i : i + SEEDS] for i in range(0, len(things), SEEDS)]
    return float(np.mean([np.sqrt(np.mean((a - b) ** 2)) for g in groups for a, b in combinations(g, 2)]))
