"""What an agent sees of a run: numbers of the trace and of the prompt, the same in training and in use.

Pictures too, where it is told to look at them: see `published.py`.
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
from .actions import PARTS, Guide
from .observation_batch import View as View
from .published import PARTS as PUBLISHED
from .published import Published

LINE, LAST = (spell(Disagreement(order, "v", "angle")) for order in (1, 0))
BLOCKS = ("place", "trace", "errors", "prompt")  # those that cost nothing
WHOLE = "published"  # short for all of PUBLISHED
NOTHING = Published()  # looks at nothing
LOOKS = 3  # calls whose signals are seen: this one and the two before
FAINT = 1e-6
HALF_PI = math.pi / 2


@dataclass(frozen=True)
class Sight:
    """The observation of an agent, block by block.

    - place: where the run is, on the guide and on the angle; calls made, and how far that is ahead of the guide; what
      a call costs.
    - trace: how far each of the last calls has left the line through the two before it, and the one before it; how
      long the steps were.
    - errors: the bend of the path as `stride` measures it, what the next step of the guide would spoil by it, and
      what the steps so far have.
    - prompt: the mean text state, on `axes`.
    - image, text, timestep, quality: the observation that AdDiffusion published, see `Published`; "published" is all
      four.

    The first four, which are the default, cost nothing beside the calls themselves. Looking at pictures costs
    `published.fee` calls each time.

    Args:
        blocks: Those that are seen. A block that is left out is not in the observation at all, and not computed.
        centre: (width,) subtracted from the text state; empty without a prompt block.
        axes: (k, width) directions that the text state is seen along.
        published: What looks at pictures and prompts, how wide its features are, and what a look costs.

    Raises:
        SpecError: an unknown block, or none.
    """

    blocks: tuple[str, ...] = BLOCKS
    centre: tuple[float, ...] = ()
    axes: tuple[tuple[float, ...], ...] = ()
    published: Published = NOTHING

    def __post_init__(self) -> None:
        known = (*BLOCKS, *PUBLISHED, WHOLE)
        wrong = [b for b in self.blocks if b not in known]
        if wrong or not self.blocks:
            raise SpecError(f"Expected blocks among {', '.join(known)}, got {', '.join(wrong) or 'none'}.")
        if any(len(axis) != len(self.centre) for axis in self.axes):
            raise SpecError(f"Expected axes of width {len(self.centre)}, as the centre has, got others.")

    @cached_property
    def looking(self) -> frozenset[str]:
        """The blocks of the published observation that are seen."""
        return frozenset(PUBLISHED if WHOLE in self.blocks else set(PUBLISHED) & set(self.blocks))

    @property
    def needs(self) -> frozenset[str]:
        """Signals that are looked at."""
        return frozenset({LINE, LAST}) | self.published.needs(self.looking)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the entries, in order."""
        found: list[str] = []
        if "place" in self.blocks:
            found += ["progress", "angle", "steps left", "calls", "ahead", "log price"]
        if "trace" in self.blocks:
            found += [f"{what} {k}" for k in range(LOOKS) for what in ("log line", "log last", "step")]
        if "errors" in self.blocks:
            found += ["log bend", "bend change", "log next error", "log made error"]
        if "prompt" in self.blocks:
            found += [f"prompt {k}" for k in range(len(self.axes))]
        for part in PUBLISHED:
            if part in self.looking:
                found += self.published.names(part, "place" in self.blocks)
        return tuple(found)

    def observe(self, run: Run, guide: Guide, price: float) -> Any:
        """The observation (len(names),) of a run that is about to decide, float32."""
        seen = view(run, guide, price)
        if self.looking:
            seen = seen._replace(**self.published.seen(run, self.looking))
        return self.features(seen)[0]

    def fee(self, run: Run) -> float:
        """What was paid for looking at a run, in calls; not among the calls of the network."""
        return self.published.fee * self.published.looks(run)

    def features(self, seen: View) -> Any:
        """The observations (n, len(names)) of runs, float32."""
        import numpy as np

        blocks = {"place": self._place, "trace": self._trace, "errors": self._errors, "prompt": self._prompt}
        columns = [column for name in BLOCKS if name in self.blocks for column in blocks[name](seen)]
        found = [np.stack(columns, 1)] if columns else []
        found += [self.published.features(part, seen) for part in PUBLISHED if part in self.looking]
        return np.concatenate(found, 1).astype(np.float32)

    def _place(self, seen: View) -> list[Any]:
        import numpy as np

        steps, done = (seen.places - 1) / PARTS, seen.place / (seen.places - 1)
        calls = seen.calls / steps
        return [done, seen.angles[:, 0] / HALF_PI, (1 - done) * steps, calls, done - calls, np.log(seen.price)]

    def _trace(self, seen: View) -> list[Any]:
        import numpy as np

        columns = []
        for k in range(LOOKS):
            lengths = seen.angles[:, k + 1] - seen.angles[:, k]
            columns += [_log(seen.lines[:, k]), _log(seen.lasts[:, k]), np.nan_to_num(lengths)]
        return columns

    def _errors(self, seen: View) -> list[Any]:
        import numpy as np

        here, before = (bend(seen.angles, seen.lines, seen.lasts, k) for k in (0, 1))
        known = ~np.isnan(here)
        last = np.where(known, here, 1.0)
        first = np.where(np.isnan(before), last, before)
        step = seen.angles[:, 0] - seen.ahead
        columns = [
            np.log(last),
            np.log(last / first),
            np.log(last * step**3 + FAINT),
            0.5 * np.log(seen.made + FAINT**2),
        ]
        return [np.where(known, column, 0.0) for column in columns]

    def _prompt(self, seen: View) -> list[Any]:
        import numpy as np

        if not self.axes:
            return []
        if not seen.prompt.shape[1]:  # nobody gave one: as of the mean prompt
            return [np.zeros(len(seen.prompt))] * len(self.axes)
        if seen.prompt.shape[1] != len(self.centre):
            raise SpecError(
                f"This agent looks at text states of width {len(self.centre)}, and this run has one of "
                f"{seen.prompt.shape[1]}: it was trained on another model. Train one there, or without 'prompt'."
            )
        centre, axes = self._arrays
        return list(((seen.prompt - centre) @ axes.T).T)

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        import numpy as np

        return np.array(self.centre), np.array(self.axes)


def bend(angles: Any, lines: Any, lasts: Any, k: int) -> Any:
    """(n,) how the path bends at the k-th last call, as `stride` measures it; nan where that is not known.

    e / (h (h + h_1)) of a line through the two calls before, 2 e / h^2 where there was but one.
    """
    import numpy as np

    h, before = angles[:, k + 1] - angles[:, k], angles[:, k + 2] - angles[:, k + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        line, last = lines[:, k] / (h * (h + before)), 2.0 * lasts[:, k] / h**2
    return np.maximum(np.where(np.isnan(line), last, line), FAINT)


def view(run: Run, guide: Guide, price: float) -> View:
    """A run as a view of one row."""
    import numpy as np

    calls = [a for a in run.kept if not a.skipped]
    angles = [angle(run.grid, run.clocks, a.t) for a in calls]
    lines, lasts = ([a.signals.get(name, math.nan) for a in calls] for name in (LINE, LAST))
    place = guide.index(calls[-1].t)
    ahead = angle(run.grid, run.clocks, guide.places[min(place + PARTS, len(guide.places) - 1)])
    tables = [np.array([_newest(values, k + 1) for k in range(len(calls))]) for values in (angles, lines, lasts)]
    spoilt = made(*tables)
    found = (place, len(guide.places), len(calls), price)
    place_, places, count, cost = (np.array([v], float) for v in found)
    known, lined, lasted = (table[-1:] for table in tables)
    prompt = np.array(run.prompt, float)[None]
    return View(place_, places, count, cost, known, lined, lasted, np.array([ahead]), spoilt, prompt)


def made(angles: Any, lines: Any, lasts: Any) -> Any:
    """(1,) sum of squares of b h^3 over calls, a row each: the bend at a call tells what the step to it has spoilt."""
    import numpy as np

    return np.nansum((bend(angles, lines, lasts, 0) * (angles[:, 1] - angles[:, 0]) ** 3) ** 2)[None]


def _newest(values: list[float], count: int) -> list[float]:
    """The last of the first `count` values, newest first, LOOKS + 2 of them."""
    newest = values[max(0, count - LOOKS - 2) : count][::-1]
    return newest + [math.nan] * (LOOKS + 2 - len(newest))


def _log(signal: Any) -> Any:
    """log of a signal relative to a tenth; 0 where it is not known."""
    import numpy as np

    return np.where(np.isnan(signal), 0.0, np.log(10.0 * np.nan_to_num(signal) + FAINT))


@lru_cache(maxsize=65536)
def angle(grid: tuple[float, ...], clocks: tuple[float, ...], t: float) -> float:
    """`Run.angle` of a run on this grid: all that a policy knows of the schedule."""
    return Run(grid[0], grid[-1], grid, clocks).angle(t)
