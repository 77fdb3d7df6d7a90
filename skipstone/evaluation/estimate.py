"""What a policy saves in seconds on this machine and model, from a few prompts: comparisons of a batch each, pooled."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ..errors import SpecError
from .columns import Column
from .compare import Comparison, ComparisonProgressCallback, compare
from .progress import ProgressCallback, no_progress
from .subject import SampleRequest, Subject


@dataclass(frozen=True)
class SavingEstimate:
    """What one column costs a picture, beside the full run.

    Args:
        column: As it ran, which may be the fallback of a preset.
        calls, full_calls: Mean network calls of a picture, and those of the full run.
        seconds, full_seconds: Mean seconds of a picture's denoising loop, and those of the full run.
        least, most: Seconds saved a picture in the batch that saved the least, and in that which saved the most.
        psnr: Closeness of each picture to the full run's of the same seed, in dB.
    """

    column: Column
    calls: float
    full_calls: float
    seconds: float
    full_seconds: float
    least: float
    most: float
    psnr: tuple[float, ...] = field(repr=False)

    @property
    def saved(self) -> float:
        """Seconds saved a picture, overhead included; negative where the column takes longer."""
        return self.full_seconds - self.seconds

    @property
    def share(self) -> float:
        """Seconds saved over those of the full run."""
        return self.saved / self.full_seconds

    @property
    def overhead(self) -> float:
        """Seconds of a picture that its calls do not explain, at the full run's seconds a call; below 0 by chance."""
        return self.seconds - self.calls * self.full_seconds / self.full_calls


def estimate_savings(
    subject: Subject,
    items: Sequence[SampleRequest],
    columns: Sequence[Column],
    reference: Column,
    batch: int = 1,
    repeats: int = 3,
    on_progress: ProgressCallback = no_progress,
) -> list[SavingEstimate]:
    """Measure columns beside the full run, a few pictures at a time, and pool what was measured.

    Args:
        subject: The model.
        items: Prompts and seeds.
        columns: What to measure.
        reference: The full run.
        batch: Pictures of one call, >= 1; the last batch may have fewer.
        repeats: Times that each is run for its seconds, >= 1, taking turns.
        on_progress: Called with (what, done, total).

    Raises:
        SpecError: no samples, nothing to measure but the full run, or a column that the model cannot run.
    """
    if all(subject.resolve_column(column) == subject.resolve_column(reference) for column in columns):
        raise SpecError("Expected a policy beside the full run, got the full run itself. Name another one with -p.")
    watch = _Progress(len(items) * (len(columns) + 1) * repeats, on_progress)
    found: list[Comparison] = []
    for first in range(0, len(items), batch):
        part = items[first : first + batch]
        found.append(compare(subject, part, columns, reference, repeats, watch.of_batch()))
    return list(_pool(found))


@dataclass
class _Progress:
    """Samples drawn so far, over all batches."""

    total: float
    on_progress: ProgressCallback
    _shares: dict[tuple[int, int, int, int], float] = field(default_factory=dict)
    _batches: int = 0

    def of_batch(self) -> ComparisonProgressCallback:
        """The callback of the next batch's comparison."""
        self._batches += 1
        number = self._batches

        def watch(column: int, repeat: int, sample: int, share: float) -> None:
            self._shares[number, column, repeat, sample] = share
            self.on_progress("Measuring", sum(self._shares.values()), self.total)

        return watch


def _pool(found: Sequence[Comparison]) -> Iterator[SavingEstimate]:
    """The estimate of each column but the full run; a batch weighs as many pictures as it has."""
    sizes = [len(result.cells[0]) for result in found]

    def mean(values: Iterable[float]) -> float:
        return statistics.fmean(values, sizes)

    for c, column in enumerate(found[0].columns[1:], 1):
        saved = [result.seconds[0] - result.seconds[c] for result in found]
        yield SavingEstimate(
            column=column,
            calls=mean(result.mean_calls(c) for result in found),
            full_calls=mean(result.mean_calls(0) for result in found),
            seconds=mean(result.seconds[c] for result in found),
            full_seconds=mean(result.seconds[0] for result in found),
            least=min(saved),
            most=max(saved),
            psnr=tuple(value for result in found for value in result.values(c, "psnr")),
        )
