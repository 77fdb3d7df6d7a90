"""Steps of a density that suits denoisers in general, and shorter ones where a sample still moves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from ..engine.contracts import AngleAxis, Attempt, Cached, Full, Plan, Policy, Run
from ..numerics.kriging import expected_change
from ..numerics.parametrize import PREDICTION_TYPES
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings
from .bend import LAST, LINE, measure_bend
from .places import nearest_place

PEAK = 1.5 + math.log(0.5)  # level log(sigma / alpha) of the densest steps
LOUDEST, QUIETEST = 5.0, -6.0  # levels beyond which there are no steps
LEAST_ANGLE, GREATEST_ANGLE = math.exp(QUIETEST), math.atan(math.exp(LOUDEST))  # and the angles of these
USUAL_CHANGE = 0.6  # standard deviation within a picture, over the picture's rms: what `prediction_change` divides by
PACED = 1.75  # r that networks in general show, at which steps are as long as `calls` says
MAX_CHANGE = 16.0  # change over expected change that is believed
EPS_ERROR = 0.018  # error of an output eps, over the rms of a picture: its clean estimate errs by sigma / alpha as much
BENDING = 2.0  # level below which the bend of a network that puts out eps counts: above it, errors of eps hide it
FADE = 0.7  # of an error made early on its way to the picture, per radian; as of `stride`
FLAT = 1e-6  # in place of a slope of 0
SLOPES = (-0.5, 2.0)  # of the density, per unit of the level
LAST_STEPS = 1.3  # steps left of which one is made


class Density(NamedTuple):
    """Steps per unit of the level: exp(-rise (l - PEAK)) above the peak, exp(-fall (PEAK - l)) below."""

    rise: float
    fall: float

    def steps(self, level: float) -> float:
        """Integral of the density from `QUIETEST` to a level."""
        low = min(max(level, QUIETEST), PEAK)
        below = -math.exp(self.fall * (low - PEAK)) * math.expm1(self.fall * (QUIETEST - low)) / self.fall
        return below - math.expm1(-self.rise * max(0.0, min(level, LOUDEST) - PEAK)) / self.rise

    def level(self, steps: float) -> float:
        """The level up to which the integral is `steps`."""
        below = self.steps(PEAK)
        if steps > below:
            return PEAK - math.log(max(1e-12, 1.0 - self.rise * (steps - below))) / self.rise
        return PEAK + math.log(self.fall * steps + math.exp(self.fall * (QUIETEST - PEAK))) / self.fall


# By what the network puts out. An error of eps grows with sigma / alpha in the clean estimate, so that such a network
# needs steps at much noise too; one that puts out the clean sample moves until the end.
DENSITIES = {"eps": Density(FLAT, 0.3), "v": Density(0.2, 0.25), "x0": Density(0.8, 0.1), "flow": Density(0.2, 0.25)}


@register("policy")
@dataclass(frozen=True)
class AdaptiveGrid(Policy):
    """Take about `calls` calls, at noise levels that suit networks in general; more where a sample moves or bends much.

    Steps are even in the integral of a density over l = log(sigma / alpha): exp(-rise (l - p)) above p = 0.8 and
    exp(-fall (p - l)) below, with rise and fall by what the network puts out (eps, v, x0 or flow). They are
    (max(1, r) / 1.75)^adapt times shorter where the clean estimate moved r times as far as usual between the last
    calls. A step of h radians errs by about b h^3, with b measured as in `stride`; it is shortened until that is at
    most bend exp(0.7 u) / calls^3, with u = atan(sigma / alpha). Lands on times of the grid and on `places` - 1 even
    places between two of them; never makes more calls than the grid has steps. Made for `kriging`, and for other
    solvers of one call a step; in a chain it comes first.

    Args:
        calls: Calls of a sample that moves as usual, in 1..10,000. Independent of the number of steps asked for,
            unless that is smaller.
        adapt: Exponent of r, in [0, 2]. 0 does not count how far a sample moves.
        bend: Error of a step that is allowed, times calls^3, in [0, 1e9]. 0 allows any.
        places: Places to land on for each step of the grid, in 1..100. 1 keeps to the grid.
        rise: Fall of the density per unit of l above p, in [-0.5, 2]; None goes by the output.
        fall: The same below p.

    Raises:
        SpecError: a setting out of range.

    References: ours; the densities are chosen in research/frontier.
    """

    calls: int = 15
    adapt: float = 0.4
    bend: float = 40.0
    places: int = 10
    rise: float | None = None
    fall: float | None = None
    name: ClassVar[str] = "adaptive_grid"
    neutral: ClassVar[Mapping[str, Any]] = {"calls": MAX_STEPS}
    solver: ClassVar[str] = "kriging"
    ranges: ClassVar[Ranges] = {
        "calls": (1, MAX_STEPS),
        "adapt": (0, 2),
        "bend": (0, 1e9),
        "places": (1, 100),
        "rise": SLOPES,
        "fall": SLOPES,
    }
    calibration_settings: ClassVar[Sequence[Mapping[str, Any]]] = tuple(
        {"calls": calls} for calls in (30, 27, 24, 22, 20, 18, 16, 15, 13, 12, 11, 10, 9, 8)
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"network_output", "prediction_change", LINE, LAST})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if self.calls == MAX_STEPS or not proposal.is_unamended:
            return proposal
        last = run.pending
        seen = _Seen.of(run)
        # a step that was taken again already stays: by this policy, or by one that must not be overruled
        if last is not None and isinstance(last.plan.evaluate, Full | Cached) and not run.is_retry:
            wanted = self._landing(seen, last.t, self._longest(seen, last))
            if wanted != last.t_next:
                return replace(proposal, evaluate=last.plan.evaluate, accept=False, t_next=wanted)
        if run.next_start <= run.t_end:
            return proposal
        return replace(proposal, t_next=self._landing(seen, run.next_start))

    def _longest(self, seen: _Seen, last: Attempt) -> float:
        """Longest step from the pending call that its bend allows, in radians; infinity where it says nothing."""
        here = seen.axis.angle(last.t)
        noisy = seen.output == "eps" and level_at(here) > BENDING
        if self.bend == 0.0 or noisy:
            return math.inf
        bend, _ = measure_bend(seen.run, last, here)
        allowed = self.bend / self.calls**3 * math.exp(FADE * here)
        return math.inf if bend is None else float((allowed / bend) ** (1 / 3))

    def _landing(self, seen: _Seen, start: float, longest: float = math.inf) -> float:
        """Time at which a step that starts here should land, at most `longest` radians ahead."""
        run, axis = seen.run, seen.axis
        left = self._left(run, start)
        density = self._density(seen.output)
        here = axis.angle(start)
        ahead = density.steps(level_at(here))
        total = max(density.steps(level_at(axis.angle(run.grid[0]))), FLAT)  # 0 where a schedule begins without noise
        wanted = ahead / total * self.calls * self._pace(seen)
        steps = min(max(1, math.ceil(wanted - (LAST_STEPS - 1.0))), left)
        if left <= 1 or (steps <= 1 and here <= longest):
            return run.t_end
        target = math.atan(math.exp(density.level(ahead * (1.0 - 1.0 / max(2, steps)))))
        return nearest_place(axis, start, max(target, here - longest), self.places)

    def _left(self, run: Run, start: float) -> int:
        """Steps that may still be made from here: the grid's, less the calls before `start`."""
        return len(run.grid) - 1 - sum(not a.is_forecast and a.t > start for a in run.accepted_attempts)

    def _density(self, output: str) -> Density:
        """The density for what the network puts out, with the slopes that were set."""
        usual = DENSITIES[output]
        rise, fall = usual.rise if self.rise is None else self.rise, usual.fall if self.fall is None else self.fall
        return Density(*(slope if abs(slope) > FLAT else FLAT for slope in (rise, fall)))

    def _pace(self, seen: _Seen) -> float:
        """Factor by which steps are shorter than usual, from the last two changes of the clean estimate."""
        changes = seen.relative_changes() if self.adapt > 0.0 else ()
        mean = math.exp(sum(map(math.log, changes)) / len(changes)) if changes else PACED
        return float((max(1.0, mean) / PACED) ** self.adapt)


class _Seen(NamedTuple):
    """What a decision looks at.

    Args:
        run: The run so far.
        axis: The angles of its grid.
        output: What the network puts out; "v" before it is known.
        calls: The last three real calls, at different times.
    """

    run: Run
    axis: AngleAxis
    output: str
    calls: tuple[Attempt, ...]

    @classmethod
    def of(cls, run: Run) -> _Seen:
        """Of a run."""
        known = [a for a in run.attempts if "network_output" in a.signals]
        output = PREDICTION_TYPES[round(known[0].signals["network_output"])] if known else "v"
        calls = tuple({a.t: a for a in known if not a.is_forecast}.values())
        return cls(run, run.angles, output, calls[-3:])

    def relative_changes(self) -> list[float]:
        """Changes of the clean estimate between calls over the usual ones; those that are not known are left out."""
        is_noise, found = self.output == "eps", []
        for before, after in itertools.pairwise(self.calls):
            if "prediction_change" in after.signals:
                levels = level_at(self.axis.angle(before.t)), level_at(self.axis.angle(after.t))
                usual = [
                    USUAL_CHANGE * expected_change(*levels),
                    *(EPS_ERROR * is_noise * math.exp(level) for level in levels),
                ]
                found.append(min(MAX_CHANGE, max(1e-3, after.signals["prediction_change"] / math.hypot(*usual))))
        return found


def level_at(angle: float) -> float:
    """log(sigma / alpha) at an angle, within the levels of the density."""
    if angle <= LEAST_ANGLE:
        return QUIETEST
    return LOUDEST if angle >= GREATEST_ANGLE else math.log(math.tan(angle))
