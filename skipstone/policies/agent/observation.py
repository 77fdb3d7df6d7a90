"""What an agent sees of a run: numbers of the trace and of the prompt, the same in training and in use.

Features of pictures too, where its blocks ask for them: see `published.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from ...engine.contracts import Run
from ...engine.signals import Disagreement
from ...errors import SpecError
from ...registry import spell
from .actions import PLACES_PER_STEP, BaseSchedule
from .addiffusion_observation import PARTS as PUBLISHED
from .addiffusion_observation import ObservationBatch as ObservationBatch
from .addiffusion_observation import PublishedObservation

LINEAR_ERROR_SIGNAL, REPEAT_ERROR_SIGNAL = (spell(Disagreement(order, "v", "angle")) for order in (1, 0))
BLOCKS = ("place", "trace", "errors", "prompt")  # those that cost nothing
ALL_PUBLISHED = "published"  # short for all of PUBLISHED
NO_IMAGES = PublishedObservation()  # needs nothing
HISTORY_LENGTH = 3  # calls whose signals are seen: this one and the two before
LOG_FLOOR = 1e-6
HALF_PI = math.pi / 2


@dataclass(frozen=True)
class Observation:
    """The observation of an agent, block by block.

    - place: where the run is, on the base schedule and on the angle; calls made, and how far that is ahead of the base
      schedule; what a call costs.
    - trace: how far each of the last calls has left the line through the two before it, and the one before it; how
      long the steps were.
    - errors: the bend of the path as `stride` measures it, the error that the next step of the base
      schedule would make by it, and that of the steps so far.
    - prompt: the mean text state, on `axes`.
    - image, text, timestep, quality: the observation that AdDiffusion published, see `PublishedObservation`;
      "published" is all four.

    The first four, which are the default, cost nothing beside the calls themselves. Features of pictures
    cost `published.fee` calls each time.

    Args:
        blocks: Those that are seen. A block that is left out is not in the observation at all, and not computed.
        centre: (width,) subtracted from the text state; empty without a prompt block.
        axes: (k, width) directions that the text state is seen along.
        published: What makes features of pictures and prompts, how wide they are, and what they cost.

    Raises:
        SpecError: an unknown block, or none.
    """

    blocks: tuple[str, ...] = BLOCKS
    centre: tuple[float, ...] = ()
    axes: tuple[tuple[float, ...], ...] = ()
    published: PublishedObservation = NO_IMAGES

    def __post_init__(self) -> None:
        known = (*BLOCKS, *PUBLISHED, ALL_PUBLISHED)
        wrong = [b for b in self.blocks if b not in known]
        if wrong or not self.blocks:
            raise SpecError(f"Expected blocks among {', '.join(known)}, got {', '.join(wrong) or 'none'}.")
        if any(len(axis) != len(self.centre) for axis in self.axes):
            raise SpecError(f"Expected axes of width {len(self.centre)}, as the centre has, got others.")

    @cached_property
    def published_blocks(self) -> frozenset[str]:
        """The blocks of the published observation that are seen."""
        return frozenset(PUBLISHED if ALL_PUBLISHED in self.blocks else set(PUBLISHED) & set(self.blocks))

    @property
    def needs(self) -> frozenset[str]:
        """Signals that the observation is made of."""
        return frozenset({LINEAR_ERROR_SIGNAL, REPEAT_ERROR_SIGNAL}) | self.published.needs(self.published_blocks)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the entries, in order."""
        found: list[str] = []
        if "place" in self.blocks:
            found += ["progress", "angle", "steps left", "calls", "ahead", "log price"]
        if "trace" in self.blocks:
            found += [f"{what} {k}" for k in range(HISTORY_LENGTH) for what in ("log line", "log last", "step")]
        if "errors" in self.blocks:
            found += ["log bend", "bend change", "log next error", "log made error"]
        if "prompt" in self.blocks:
            found += [f"prompt {k}" for k in range(len(self.axes))]
        for part in PUBLISHED:
            if part in self.published_blocks:
                found += self.published.names(part, "place" in self.blocks)
        return tuple(found)

    def observe(self, run: Run, schedule: BaseSchedule, price: float) -> Any:
        """The observation (len(names),) of a run that is about to decide, float32."""
        batch = observe_run(run, schedule, price)
        if self.published_blocks:
            batch = batch._replace(**self.published.observe(run, self.published_blocks))
        return self.features(batch)[0]

    def fee(self, run: Run) -> float:
        """Cost of a run's picture features, in calls; not counted among the calls of the network."""
        return self.published.fee * self.published.count_images(run)

    def features(self, batch: ObservationBatch) -> Any:
        """The observations (n, len(names)) of runs, float32."""
        import numpy as np

        blocks = {"place": self._place, "trace": self._trace, "errors": self._errors, "prompt": self._prompt}
        columns = [column for name in BLOCKS if name in self.blocks for column in blocks[name](batch)]
        found = [np.stack(columns, 1)] if columns else []
        found += [self.published.features(part, batch) for part in PUBLISHED if part in self.published_blocks]
        return np.concatenate(found, 1).astype(np.float32)

    def _place(self, batch: ObservationBatch) -> list[Any]:
        import numpy as np

        steps, done = (batch.places - 1) / PLACES_PER_STEP, batch.place / (batch.places - 1)
        calls = batch.calls / steps
        return [done, batch.angles[:, 0] / HALF_PI, (1 - done) * steps, calls, done - calls, np.log(batch.price)]

    def _trace(self, batch: ObservationBatch) -> list[Any]:
        import numpy as np

        columns = []
        for k in range(HISTORY_LENGTH):
            lengths = batch.angles[:, k + 1] - batch.angles[:, k]
            columns += [_log(batch.linear_errors[:, k]), _log(batch.repeat_errors[:, k]), np.nan_to_num(lengths)]
        return columns

    def _errors(self, batch: ObservationBatch) -> list[Any]:
        import numpy as np

        here, before = (path_curvature(batch.angles, batch.linear_errors, batch.repeat_errors, k) for k in (0, 1))
        known = ~np.isnan(here)
        last = np.where(known, here, 1.0)
        first = np.where(np.isnan(before), last, before)
        step = batch.angles[:, 0] - batch.ahead
        columns = [
            np.log(last),
            np.log(last / first),
            np.log(last * step**3 + LOG_FLOOR),
            0.5 * np.log(batch.accumulated_error + LOG_FLOOR**2),
        ]
        return [np.where(known, column, 0.0) for column in columns]

    def _prompt(self, batch: ObservationBatch) -> list[Any]:
        import numpy as np

        if not self.axes:
            return []
        if not batch.prompt.shape[1]:  # nobody gave one: as of the mean prompt
            return [np.zeros(len(batch.prompt))] * len(self.axes)
        if batch.prompt.shape[1] != len(self.centre):
            raise SpecError(
                f"This agent needs text states of width {len(self.centre)}, and this run has one of "
                f"{batch.prompt.shape[1]}: it was trained on another model. Train one there, or without 'prompt'."
            )
        centre, axes = self._arrays
        return list(((batch.prompt - centre) @ axes.T).T)

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        import numpy as np

        return np.array(self.centre), np.array(self.axes)


def path_curvature(angles: Any, lines: Any, lasts: Any, k: int) -> Any:
    """(n,) how the path bends at the k-th last call, as `stride` measures it; nan where that is not known.

    e / (h (h + h_1)) of a line through the two calls before, 2 e / h^2 where there was but one.
    """
    import numpy as np

    h, before = angles[:, k + 1] - angles[:, k], angles[:, k + 2] - angles[:, k + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        line, last = lines[:, k] / (h * (h + before)), 2.0 * lasts[:, k] / h**2
    return np.maximum(np.where(np.isnan(line), last, line), LOG_FLOOR)


def observe_run(run: Run, schedule: BaseSchedule, price: float) -> ObservationBatch:
    """A run as a batch of one row."""
    import numpy as np

    calls = [a for a in run.accepted_attempts if not a.is_forecast]
    angles = [grid_angle(run.grid, run.clocks, a.t) for a in calls]
    lines, lasts = (
        [a.signals.get(name, math.nan) for a in calls] for name in (LINEAR_ERROR_SIGNAL, REPEAT_ERROR_SIGNAL)
    )
    place = schedule.index(calls[-1].t)
    ahead = grid_angle(run.grid, run.clocks, schedule.places[min(place + PLACES_PER_STEP, len(schedule.places) - 1)])
    tables = [np.array([_newest(values, k + 1) for k in range(len(calls))]) for values in (angles, lines, lasts)]
    spoilt = accumulated_error(*tables)
    found = (place, len(schedule.places), len(calls), price)
    place_, places, count, cost = (np.array([v], float) for v in found)
    known, lined, lasted = (table[-1:] for table in tables)
    prompt = np.array(run.prompt, float)[None]
    return ObservationBatch(place_, places, count, cost, known, lined, lasted, np.array([ahead]), spoilt, prompt)


def accumulated_error(angles: Any, lines: Any, lasts: Any) -> Any:
    """(1,) sum of squares of b h^3 over calls, a row each: the curvature b at one gives the error of the step to it."""
    import numpy as np

    return np.nansum((path_curvature(angles, lines, lasts, 0) * (angles[:, 1] - angles[:, 0]) ** 3) ** 2)[None]


def _newest(values: list[float], count: int) -> list[float]:
    """The last of the first `count` values, newest first, HISTORY_LENGTH + 2 of them."""
    newest = values[max(0, count - HISTORY_LENGTH - 2) : count][::-1]
    return newest + [math.nan] * (HISTORY_LENGTH + 2 - len(newest))


def _log(signal: Any) -> Any:
    """log of a signal relative to a tenth; 0 where it is not known."""
    import numpy as np

    return np.where(np.isnan(signal), 0.0, np.log(10.0 * np.nan_to_num(signal) + LOG_FLOOR))


@lru_cache(maxsize=65536)
def grid_angle(grid: tuple[float, ...], clocks: tuple[float, ...], t: float) -> float:
    """`Run.angle` of a run on this grid: all that a policy knows of the schedule."""
    return Run(grid[0], grid[-1], grid, clocks).angle(t)
