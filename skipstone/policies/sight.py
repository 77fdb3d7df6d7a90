"""What an agent sees of a run: numbers of the trace and of the prompt, the same in training and in use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from ..engine.contracts import Attempt, Run
from ..engine.signals import Disagreement
from ..errors import SpecError
from ..registry import spell
from .moves import Guide

LINE, LAST = (spell(Disagreement(order, "v", "angle")) for order in (1, 0))
BLOCKS = ("place", "trace", "errors", "prompt")
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

    Everything costs nothing beside the calls themselves.

    Args:
        blocks: Those that are seen, out of BLOCKS. A block that is left out is not in the observation at all.
        centre: (width,) subtracted from the text state; empty without a prompt block.
        axes: (k, width) directions that the text state is seen along.

    Raises:
        SpecError: an unknown block, or none.
    """

    blocks: tuple[str, ...] = BLOCKS
    centre: tuple[float, ...] = ()
    axes: tuple[tuple[float, ...], ...] = ()
    _known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        wrong = [b for b in self.blocks if b not in BLOCKS]
        if wrong or not self.blocks:
            raise SpecError(f"Expected blocks among {', '.join(BLOCKS)}, got {', '.join(wrong) or 'none'}.")

    @property
    def needs(self) -> frozenset[str]:
        """Signals that are looked at."""
        return frozenset({LINE, LAST})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the entries, in order."""
        found: list[str] = []
        if "place" in self.blocks:
            found += ["progress", "angle", "steps left", "calls", "ahead", "log price"]
        if "trace" in self.blocks:
            found += [f"{what} {k}" for k in range(LOOKS) for what in ("log line", "log last", "step")]
        if "errors" in self.blocks:
            found += ["log bend", "bend change", "log next error", "log error so far"]
        if "prompt" in self.blocks:
            found += [f"prompt {k}" for k in range(len(self.axes))]
        return tuple(found)

    def observe(self, run: Run, guide: Guide, price: float) -> Any:
        """The observation (len(names),) of a run that is about to decide, float32."""
        import numpy as np

        seen = [a for a in run.kept if not a.skipped]
        angles = [_angle(run.grid, run.clocks, a.t) for a in seen]
        values: list[float] = []
        if "place" in self.blocks:
            values += self._place(guide, seen, angles, price)
        if "trace" in self.blocks:
            values += self._trace(seen, angles)
        if "errors" in self.blocks:
            values += self._errors(run, guide, seen, angles)
        if "prompt" in self.blocks:
            values += self._prompt(run.prompt)
        return np.array(values, np.float32)

    def _place(self, guide: Guide, seen: list[Attempt], angles: list[float], price: float) -> list[float]:
        done = guide.index(seen[-1].t) / (len(guide.places) - 1)
        calls = len(seen) / guide.steps
        return [done, angles[-1] / HALF_PI, (1 - done) * guide.steps, calls, done - calls, math.log(price)]

    def _trace(self, seen: list[Attempt], angles: list[float]) -> list[float]:
        values = []
        for k in range(1, LOOKS + 1):
            if len(seen) < k:
                values += [0.0, 0.0, 0.0]
                continue
            signals = seen[-k].signals
            step = angles[-k - 1] - angles[-k] if len(seen) > k else 0.0
            values += [_log(signals, LINE), _log(signals, LAST), step]
        return values

    def _errors(self, run: Run, guide: Guide, seen: list[Attempt], angles: list[float]) -> list[float]:
        bends = [_bend(seen, angles, k) for k in range(1, len(seen))]
        known = [b for b in bends if b is not None]
        here = known[-1] if known else None
        if here is None:
            return [0.0, 0.0, 0.0, 0.0]
        place = guide.index(seen[-1].t)
        ahead = guide.places[min(place + 4, len(guide.places) - 1)]
        step = angles[-1] - _angle(run.grid, run.clocks, ahead)
        made = [b * (angles[k] - angles[k + 1]) ** 3 for k, b in enumerate(bends) if b is not None]
        sofar = math.sqrt(sum(e * e for e in made))
        before = known[-2] if len(known) > 1 else here
        return [math.log(here), math.log(here / before), math.log(here * step**3 + FAINT), math.log(sofar + FAINT)]

    def _prompt(self, prompt: tuple[float, ...]) -> list[float]:
        if prompt not in self._known:
            import numpy as np

            if len(prompt) != len(self.centre):
                raise SpecError(
                    f"This agent looks at text states of width {len(self.centre)}, and this run has {len(prompt)}: it "
                    f"was trained on another model. Use it there, or train one without the block 'prompt'."
                )
            if len(self._known) > 4096:
                self._known.clear()
            self._known[prompt] = (np.array(self.axes) @ (np.array(prompt) - np.array(self.centre))).tolist()
        found: list[float] = self._known[prompt]
        return found


def _bend(seen: list[Attempt], angles: list[float], k: int) -> float | None:
    """b at a call, see `stride`."""
    signals, h = seen[k].signals, angles[k - 1] - angles[k]
    if LAST not in signals:
        return None
    if LINE not in signals or k < 2:
        return max(2.0 * signals[LAST] / h**2, FAINT)
    return max(signals[LINE] / (h * (h + angles[k - 2] - angles[k - 1])), FAINT)


def _log(signals: Mapping[str, float], name: str) -> float:
    """log of a signal relative to a tenth; 0 where it is not known."""
    return math.log(10.0 * signals[name] + FAINT) if name in signals else 0.0


@lru_cache(maxsize=4096)
def _angle(grid: tuple[float, ...], clocks: tuple[float, ...], t: float) -> float:
    return Run(grid[0], grid[-1], grid, clocks).angle(t)
