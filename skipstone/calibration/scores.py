"""The quality and the calls of settings on samples: drawn once, cached, and drawn no second time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engine.requests import Status
from ..errors import MetricError, SpecError
from ..evaluation.columns import Column
from ..evaluation.files import IDENTICAL_PSNR
from ..evaluation.pixels import flatten_frames
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample, References, RunOutput
from ..evaluation.subject import DrawJob, GeneratedSample, Subject, prefetch
from ..metrics import Metric, Sample, metrics_available
from .cache import Cache, SampleScore

MeasureFunction = Callable[[Sample], float]


@dataclass(frozen=True)
class PictureMeasure:
    """Measurement of a picture.

    Args:
        name: Of the metric.
        measure_sample: Of a sample, the number.
        needs_no_reference: Whether it measures a picture by itself.
        is_cacheable: Whether its values may be written to disk: those of a function may be others tomorrow.
        takes_frames: Whether it is given a video as frames, which other metrics see as one tall picture.
    """

    name: str
    measure_sample: MeasureFunction
    needs_no_reference: bool = False
    is_cacheable: bool = True
    takes_frames: bool = False

    @classmethod
    def of(cls, metric: str, subject: Subject, function: Callable[[Any, Any], float] | None = None) -> PictureMeasure:
        """A registered metric, or a user's function of (picture, reference).

        Raises:
            MetricError: the metric cannot be taken of this model on this machine.
            SpecError: it measures no single picture.
        """
        if function is not None:
            return cls(metric, lambda s: float(function(s.pixels, s.reference)), is_cacheable=False, takes_frames=True)
        found = metrics_available(judge=subject.judge is not None, is_video=subject.is_video)
        if why := dict(found.absent).get(metric):
            raise MetricError(f"{metric} cannot be taken here: {why}")
        usable: dict[str, Metric] = {m.name: m for m in found.metrics if m.name != "cost"}
        if metric not in usable:
            raise SpecError(f"target: {metric} says nothing of one picture. Those that do: {', '.join(usable)}.")
        chosen = usable[metric]
        judged, frames = "judge" in chosen.requires, chosen.of == "video" or chosen.takes_frames
        return cls(metric, chosen.measure, needs_no_reference=judged, takes_frames=frames)


@dataclass
class CachedScores:
    """Draws settings on samples and measures them.

    Args:
        subject: The model, loaded.
        reference: The run that pictures are compared with.
        measure: The metric.
        cache: Where full runs and scores are kept.
        batch: Samples of one call, >= 1.
        on_progress: Called with the progress, in calls.
        total: Calls that the whole calibration is expected to take, for `on_progress`.
        spent: What has been drawn for what: calls.
        seconds: Of drawing them, decoding and measuring included.
    """

    subject: Subject
    reference: Column
    measure: PictureMeasure
    cache: Cache
    batch: int = 8
    on_progress: ProgressCallback = no_progress
    total: float = 1.0
    spent: dict[str, float] = field(default_factory=lambda: {"reference": 0.0, "search": 0.0, "test": 0.0})
    seconds: float = 0.0
    _known: dict[tuple[str, str], SampleScore] = field(init=False)
    _path: Path = field(init=False)
    _references: References = field(init=False)

    def __post_init__(self) -> None:
        self._path = self.cache.path(self.measure.name, "" if self.measure.needs_no_reference else self.reference.spec)
        self._known = self.cache.scores(self._path) if self.measure.is_cacheable else {}
        self._references = References(self.cache.folder, self.reference, ())

    @property
    def done(self) -> float:
        """Total number of calls spent."""
        return sum(self.spent.values())

    def missing(self, eval_samples: Sequence[EvaluationSample]) -> list[EvaluationSample]:
        """Samples whose reference has not been drawn yet."""
        return [] if self.measure.needs_no_reference else self._references.missing(eval_samples, self.reference)

    def of(self, column: Column, eval_samples: Sequence[EvaluationSample], part: str = "search") -> list[SampleScore]:
        """The scores of a setting, made where they are not there.

        Args:
            column: The setting.
            eval_samples: Samples.
            part: What `spent` counts them under.
        """
        missing = [eval_sample for eval_sample in eval_samples if (column.spec, eval_sample.id) not in self._known]
        batches = [missing[i : i + self.batch] for i in range(0, len(missing), self.batch)]
        prefetch(self.subject, [job for batch in batches for job in self._jobs(column, batch)])
        for batch in batches:
            self.on_progress(f"{part.capitalize()}: {column.label}", self.done, max(self.total, self.done))
            began = time.perf_counter()
            self._draw(column, batch, part)
            self.seconds += time.perf_counter() - began
        return [self._known[column.spec, eval_sample.id] for eval_sample in eval_samples]

    def known(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[SampleScore | None]:
        """The scores if all of them are cached, else None."""
        return [self._known.get((column.spec, eval_sample.id)) for eval_sample in eval_samples]

    def _jobs(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> list[DrawJob]:
        """What `_draw` draws, in its order."""
        own = DrawJob([eval_sample.request for eval_sample in eval_samples], column)
        theirs = [] if self.measure.needs_no_reference else self._references.jobs(eval_samples, self.reference)
        return [*theirs, own]

    def _draw(self, column: Column, eval_samples: Sequence[EvaluationSample], part: str) -> None:
        """A batch: its lines appear together, when all of it is measured."""
        theirs: Sequence[RunOutput | None] = [None] * len(eval_samples)
        if not self.measure.needs_no_reference:
            missing = self._references.missing(eval_samples, self.reference)
            theirs = self._references.load_or_draw(self.subject, eval_samples, self.reference)
            self.spent["reference"] += len(missing) * full_calls(self.reference)
        generated, _ = self.subject.draw([eval_sample.request for eval_sample in eval_samples], column)
        self.spent[part] += sum(one.calls for one in generated)
        pictures = self.subject.pictures(generated)
        found = [
            (column.spec, eval_sample.id, SampleScore(self._value(eval_sample, one, pixels, reference), one.calls))
            for eval_sample, one, pixels, reference in zip(eval_samples, generated, pictures, theirs, strict=True)
        ]
        self._known |= {(spec, sample): score for spec, sample, score in found}
        if self.measure.is_cacheable:
            self.cache.add(self._path, found)

    def _shown(self, pixels: Any) -> Any:
        """A picture or video as the metric reads it."""
        return pixels if self.measure.takes_frames else flatten_frames(pixels)

    def _value(
        self, eval_sample: EvaluationSample, generated: GeneratedSample, pixels: Any, theirs: RunOutput | None
    ) -> float:
        """The metric's value, at most IDENTICAL; NaN for a sample that is not finite."""
        import numpy as np

        if generated.status is Status.nonfinite or not np.isfinite(pixels).all():
            return math.nan
        sample = Sample(
            self._shown(pixels),
            eval_sample.prompt.text,
            generated.calls,
            None if theirs is None else self._shown(theirs.pixels),
            self.subject.judge,
            generated.latent,
            None if theirs is None else theirs.latent,
        )
        value = self.measure.measure_sample(sample)
        return math.nan if math.isnan(value) else min(IDENTICAL_PSNR, max(-IDENTICAL_PSNR, value))


def full_calls(column: Column) -> float:
    """Calls of a run without a policy."""
    return float(column.steps * (1 if column.solver is None else column.solver.stages))


def mean_calls(found: Sequence[SampleScore]) -> float:
    """Mean number of calls of a sample."""
    return math.fsum(one.calls for one in found) / len(found)


def format_spent(spent: Mapping[str, float]) -> str:
    """'31,000 calls: 10,000 reference, ...'."""
    parts = ", ".join(f"{calls:,.0f} {part}" for part, calls in spent.items())
    return f"{sum(spent.values()):,.0f} calls ({parts})"
