"""The quality and the calls of settings on samples: drawn once, kept, and drawn no second time."""

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
from ..evaluation.files import IDENTICAL
from ..evaluation.pixels import flat
from ..evaluation.progress import Tell, silent
from ..evaluation.references import Picture, References, Shot
from ..evaluation.subject import Made, Subject
from ..metrics import Metric, Sample, metrics_available
from .cache import Cache, Score

Measured = Callable[[Sample], float]


@dataclass(frozen=True)
class Gauge:
    """How a picture is measured.

    Args:
        name: Of the metric.
        take: Of a sample, the number.
        alone: Whether it looks at the picture without a reference.
        kept: Whether its values may be kept on disk: those of a function may be others tomorrow.
    """

    name: str
    take: Measured
    alone: bool = False
    kept: bool = True

    @classmethod
    def of(cls, metric: str, subject: Subject, function: Callable[[Any, Any], float] | None = None) -> Gauge:
        """A registered metric, or a user's function of (picture, reference).

        Raises:
            MetricError: the metric cannot be taken of this model on this machine.
            SpecError: it measures no single picture.
        """
        if function is not None:
            return cls(metric, lambda s: float(function(s.pixels, s.reference)), kept=False)
        found = metrics_available(judge=subject.judge is not None, moving=subject.moving)
        if why := dict(found.absent).get(metric):
            raise MetricError(f"{metric} cannot be taken here: {why}")
        usable: dict[str, Metric] = {m.name: m for m in found.metrics if m.name != "cost"}
        if metric not in usable:
            raise SpecError(f"target: {metric} says nothing of one picture. Those that do: {', '.join(usable)}.")
        return cls(metric, usable[metric].measure, alone="judge" in usable[metric].wants)


@dataclass
class Scores:
    """Draws settings on samples and measures them.

    Args:
        subject: The model, loaded.
        reference: The run that pictures are compared with.
        gauge: The metric.
        cache: Where full runs and scores are kept.
        batch: Samples of one call, >= 1.
        tell: Of the progress, in calls.
        total: Calls that the whole calibration is expected to take, for `tell`.
        spent: What has been drawn for what: calls.
        seconds: Of drawing them, decoding and measuring included.
    """

    subject: Subject
    reference: Column
    gauge: Gauge
    cache: Cache
    batch: int = 8
    tell: Tell = silent
    total: float = 1.0
    spent: dict[str, float] = field(default_factory=lambda: {"reference": 0.0, "search": 0.0, "test": 0.0})
    seconds: float = 0.0
    _known: dict[tuple[str, str], Score] = field(init=False)
    _path: Path = field(init=False)
    _references: References = field(init=False)

    def __post_init__(self) -> None:
        self._path = self.cache.path(self.gauge.name, "" if self.gauge.alone else self.reference.spec)
        self._known = self.cache.scores(self._path) if self.gauge.kept else {}
        self._references = References(self.cache.folder, self.reference, ())

    @property
    def done(self) -> float:
        """Calls spent in all."""
        return sum(self.spent.values())

    def missing(self, shots: Sequence[Shot]) -> list[Shot]:
        """Samples whose reference is not there yet."""
        return [] if self.gauge.alone else self._references.missing(shots, self.reference)

    def of(self, column: Column, shots: Sequence[Shot], part: str = "search") -> list[Score]:
        """The scores of a setting, made where they are not there.

        Args:
            column: The setting.
            shots: Samples.
            part: What `spent` counts them under.
        """
        missing = [shot for shot in shots if (column.spec, shot.id) not in self._known]
        for i in range(0, len(missing), self.batch):
            self.tell(f"{part.capitalize()}: {column.label}", self.done, max(self.total, self.done))
            began = time.perf_counter()
            self._draw(column, missing[i : i + self.batch], part)
            self.seconds += time.perf_counter() - began
        return [self._known[column.spec, shot.id] for shot in shots]

    def known(self, column: Column, shots: Sequence[Shot]) -> list[Score | None]:
        """The scores that are there already; None where one is not."""
        return [self._known.get((column.spec, shot.id)) for shot in shots]

    def _draw(self, column: Column, shots: Sequence[Shot], part: str) -> None:
        """A batch: its lines appear together, when all of it is measured."""
        theirs: Sequence[Picture | None] = [None] * len(shots)
        if not self.gauge.alone:
            missing = self._references.missing(shots, self.reference)
            theirs = self._references.ready(self.subject, shots, self.reference)
            self.spent["reference"] += len(missing) * full_calls(self.reference)
        made, _ = self.subject.draw([shot.item for shot in shots], column)
        self.spent[part] += sum(one.calls for one in made)
        pictures = self.subject.pictures(made)
        found = [
            (column.spec, shot.id, Score(self._value(shot, one, pixels, reference), one.calls))
            for shot, one, pixels, reference in zip(shots, made, pictures, theirs, strict=True)
        ]
        self._known |= {(spec, sample): score for spec, sample, score in found}
        if self.gauge.kept:
            self.cache.add(self._path, found)

    def _value(self, shot: Shot, made: Made, pixels: Any, theirs: Picture | None) -> float:
        """The metric, at most IDENTICAL; NaN of a sample that is spoilt."""
        import numpy as np

        if made.status is Status.nonfinite or not np.isfinite(pixels).all():
            return math.nan
        sample = Sample(
            flat(pixels),
            shot.prompt.text,
            made.calls,
            None if theirs is None else flat(theirs.pixels),
            self.subject.judge,
            made.latent,
            None if theirs is None else theirs.latent,
        )
        value = self.gauge.take(sample)
        return math.nan if math.isnan(value) else min(IDENTICAL, max(-IDENTICAL, value))


def full_calls(column: Column) -> float:
    """Calls of a run without a policy."""
    return float(column.steps * (1 if column.solver is None else column.solver.stages))


def mean_calls(found: Sequence[Score]) -> float:
    """Calls of a sample."""
    return math.fsum(one.calls for one in found) / len(found)


def spent_in_words(spent: Mapping[str, float]) -> str:
    """'31,000 calls: 10,000 reference, ...'."""
    parts = ", ".join(f"{calls:,.0f} {part}" for part, calls in spent.items())
    return f"{sum(spent.values()):,.0f} calls ({parts})"
