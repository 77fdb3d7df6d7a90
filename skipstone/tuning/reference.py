"""The runs that grids are measured against, and others by another solver on another grid that confirm them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from .. import registry
from ..evaluation.files import IDENTICAL_PSNR
from ..evaluation.references import MAX_AGREEMENT_SAMPLES, EvaluationSample
from .cached_runs import FINE_RUNS, CachedRuns
from .grids import Beginning, FineGrid, mse_to_psnr

CONFIRMING_SOLVER = "dpmpp"
MARGIN = 10.0  # dB by which two references must agree beyond what is reported against one of them
MAX_DOUBLINGS = 3  # of the steps of both


class Agreement(NamedTuple):
    """How well two references agree.

    Args:
        psnr: In dB between their pictures, one for each sample.
        steps: Of the reference, by `adams`.
        confirming_steps: Of the other, by `dpmpp` on equal steps of t.
    """

    psnr: tuple[float, ...]
    steps: int
    confirming_steps: int

    @property
    def median(self) -> float:
        """Median over the samples, in dB."""
        return statistics.median(self.psnr)

    @property
    def worst(self) -> float:
        """Of the sample on which they agree least, in dB."""
        return min(self.psnr)

    def confirms(self, psnr: float) -> bool:
        """Whether a median PSNR to the reference may be reported: 10 dB below the agreement, or of equal pictures."""
        return self.median >= min(psnr + MARGIN, IDENTICAL_PSNR)

    @property
    def words(self) -> str:
        """The agreement as a sentence."""
        return (
            f"The two references agree to {self.median:.1f} dB (median; {self.worst:.1f} dB on the worst of "
            f"{len(self.psnr)} samples): adams in {self.steps} steps, and {CONFIRMING_SOLVER} in "
            f"{self.confirming_steps} equal steps of t."
        )


@dataclass(frozen=True)
class ReferenceRuns:
    """Pictures that are taken for exact.

    Args:
        runs: Makes and keeps them.
        beginning: Of the model's runs.
        steps: Of the runs, at most.
    """

    runs: CachedRuns
    beginning: Beginning
    steps: int

    @cached_property
    def grid(self) -> FineGrid:
        """The places of the runs."""
        return self.beginning.fine(self.steps)

    @property
    def name(self) -> str:
        """What the runs are called in the cache: those of as many steps as fine runs have are fine runs."""
        return FINE_RUNS if self.steps == self.runs.steps else f"{FINE_RUNS}-{self.steps}"

    def pictures(self, eval_samples: Sequence[EvaluationSample]) -> list[Any]:
        """The pictures. Raises BenchError for a run that was lost."""
        return self.runs.pictures(eval_samples, self.grid, self.name, range(self.grid.steps + 1))

    def agreement(self, eval_samples: Sequence[EvaluationSample]) -> Agreement:
        """How well runs by another solver on another grid agree, on the first 32 samples. Raises as `pictures`."""
        some, other = eval_samples[:MAX_AGREEMENT_SAMPLES], self.beginning.trailing(self.steps)
        solver = registry.parse("solver", CONFIRMING_SOLVER)
        confirming = self.runs.pictures(some, other, f"confirming-{self.steps}", range(other.steps + 1), solver)
        apart = [float(((a - b) ** 2).mean()) for a, b in zip(self.pictures(some), confirming, strict=True)]
        return Agreement(tuple(map(mse_to_psnr, apart)), self.grid.steps, other.steps)

    def doublings(self) -> Iterator[ReferenceRuns]:
        """These runs, then those of twice as many steps, and so on while the schedule has more places."""
        now = self
        for _ in range(MAX_DOUBLINGS):
            yield now
            finer = replace(now, steps=2 * now.steps)
            if finer.grid.steps <= now.grid.steps:
                return
            now = finer
        yield now
