"""Closeness of a comparison's columns to the converged solution, besides that to the full run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..metrics import PSNR, Sample
from .columns import Column
from .files import IDENTICAL_PSNR
from .pixels import flatten_frames
from .subject import SampleRequest, Subject


@dataclass(frozen=True)
class ConvergedCloseness:
    """PSNR in dB of every sample to the converged solution of its prompt and seed.

    Args:
        spec: Of the run that stands for the solution.
        confirmed_by: Of the run, by another solver, that confirms it.
        agreement: PSNR between these two, at the median sample: closer than that nothing can be told apart.
        values: By column and sample.
    """

    spec: str
    confirmed_by: str
    agreement: float
    values: tuple[tuple[float, ...], ...]

    def median(self, column: int) -> float:
        """Of a column's samples."""
        return statistics.median(self.values[column])

    def worst(self, column: int) -> float:
        """Of a column's samples."""
        return min(self.values[column])


def measure_converged(
    subject: Subject,
    items: Sequence[SampleRequest],
    pictures: Sequence[Sequence[Any]],
    converged: Sequence[Column],
) -> ConvergedCloseness:
    """Draw the samples under two columns that have converged, and measure all pictures against the first.

    Args:
        subject: The model.
        items: The samples.
        pictures: By column and sample.
        converged: Two columns, as `references.converged_columns` chooses them.
    """
    first, second = (subject.pictures(subject.draw(items, column)[0]) for column in converged)
    agreement = statistics.median(_psnr(b, a) for a, b in zip(first, second, strict=True))
    values = tuple(tuple(_psnr(ours, a) for ours, a in zip(row, first, strict=True)) for row in pictures)
    return ConvergedCloseness(converged[0].spec, converged[1].spec, agreement, values)


def _psnr(ours: Any, theirs: Any) -> float:
    return min(IDENTICAL_PSNR, PSNR().measure(Sample(flatten_frames(ours), reference=flatten_frames(theirs))))
