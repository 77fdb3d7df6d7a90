"""Simple prompts first: which samples a learner meets, as its training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skipstone.errors import SpecError

MIN_WEIGHT = 0.02  # chance that a sample too hard for now has, in units of one that is not: none is ever unseen


@dataclass(frozen=True)
class Curriculum:
    """The share c of the samples, simplest first, that are drawn: c = min(1, first + (1 - first) * share / whole).

    Samples of equal complexity come together, with the first of them.

    Args:
        first: c at the start, in (0, 1]. 1 is no curriculum.
        whole: Share of the training after which all samples are drawn alike, in (0, 1].

    Raises:
        SpecError: a setting out of range.

    References: Platanios et al. 2019, arXiv 1903.09848 (competence, linear).
    """

    first: float = 0.34
    whole: float = 0.5

    def __post_init__(self) -> None:
        if not (0 < self.first <= 1 and 0 < self.whole <= 1):
            raise SpecError(f"curriculum: expected first and whole in (0, 1], got {self!r}; try first=0.34, whole=0.5.")

    def weights(self, complexity: Any, share: float) -> Any:
        """(samples,) chances that sum to 1, at this share of the training."""
        complexity = np.asarray(complexity, float)
        c = min(1.0, self.first + (1 - self.first) * max(0.0, share) / self.whole)
        simpler = np.searchsorted(np.sort(complexity), complexity, side="left") / len(complexity)
        weights = np.where(simpler < c, 1.0, MIN_WEIGHT)
        return weights / weights.sum()
