"""Which child is trained next: successive halving by Pareto fronts, over proposals of a sampler.

Optuna's pruners, Hyperband among them, refuse studies of several objectives. This is the asynchronous rule of ASHA
(Li et al. 2020, arXiv 1810.05934), one bracket, with fronts in place of one loss: of all that were trained to a rung
the best third may go on to the next one. Optuna proposes new shapes, and is told what the first rung found.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from skipstone.errors import SpecError

from .objectives import FIGURES, Objectives, Values, pareto_front, rank_points
from .space import Candidate, Space

Sampler: TypeAlias = Literal["tpe", "nsga2", "random"]
SAMPLERS: tuple[Sampler, ...] = ("tpe", "nsga2", "random")
ATTEMPTS = 20  # proposals of a sampler that were seen before, after which a shape is drawn at random
STARTUP = 6  # shapes that are drawn at random before the sampler has anything to learn from


@dataclass(frozen=True)
class Job:
    """A candidate and the rung that it is trained to."""

    candidate: Candidate
    rung: int


@dataclass(frozen=True)
class Evaluation:
    """What came of a job.

    Args:
        candidate: That was trained.
        rung: To which.
        values: Its figures; empty where it failed.
        failure: Why.
        seconds: That it took.
        details: More figures, for the report.
    """

    candidate: Candidate
    rung: int
    values: Values
    failure: str = ""
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


class Proposer(Protocol):
    """Says which shape is tried next."""

    def propose(self, space: Space, objectives: Objectives, found: Sequence[Evaluation]) -> Candidate | None:
        """A shape that was not tried before, None where there is none left."""


@dataclass(frozen=True)
class Halving:
    """The order of jobs; it depends on what was found, and on nothing else.

    Args:
        space: Of shapes.
        objectives: By which they are compared.
        rungs: Training steps of each rung, rising; with one there is no halving.
        factor: One in so many of a rung may go on to the next.
        sampler: Of new shapes: "tpe" or "nsga2" of Optuna, or "random".
        seed: Of it.
    """

    space: Space
    objectives: Objectives
    rungs: tuple[int, ...]
    factor: int = 3
    sampler: Sampler = "tpe"
    seed: int = 0

    def next_job(self, found: Sequence[Evaluation]) -> Job | None:
        """The next job after these evaluations: the highest rung that somebody may go on to, or a new shape."""
        for rung in range(len(self.rungs) - 1, 0, -1):
            if (candidate := self._promoted(found, rung - 1)) is not None:
                return Job(candidate, rung)
        proposed = self.propose(found)
        if proposed is not None:
            return Job(proposed, 0)
        return self._leftover(found)

    def _promoted(self, found: Sequence[Evaluation], rung: int) -> Candidate | None:
        """The best of a rung that has not gone on and is among the best part of it.

        Nobody goes on before the rung has as many as in a bracket of successive halving. Of shapes with the same
        figures one goes on, as the others would hardly add to a front.
        """
        here = [one for one in found if one.rung == rung]
        if len(here) < min(self.space.size, self.factor ** (len(self.rungs) - 1 - rung)):
            return None
        tried = {one.candidate for one in found if one.rung == rung + 1}
        taken = {self.objectives.point(one.values) for one in here if one.candidate in tried}
        for one in self.ranked(here)[: len(here) // self.factor]:
            if self.objectives.point(one.values) not in taken:
                return one.candidate
        return None

    def _leftover(self, found: Sequence[Evaluation]) -> Job | None:
        """Where no shape is new: the best that has not gone on, on the highest rung that has one."""
        for rung in range(len(self.rungs) - 2, -1, -1):
            tried = {one.candidate for one in found if one.rung == rung + 1}
            waiting = [one for one in found if one.rung == rung and one.values and one.candidate not in tried]
            if waiting:
                return Job(self.ranked(waiting)[0].candidate, rung + 1)
        return None

    def ranked(self, found: Sequence[Evaluation]) -> list[Evaluation]:
        """Those that did not fail, best first; of several with the same figures all but one come last."""
        whole = [one for one in found if one.values]
        order = rank_points([self.objectives.point(one.values) for one in whole])
        first, again, seen = list[Evaluation](), list[Evaluation](), set[tuple[float, ...]]()
        for one in (whole[i] for i in order):
            point = self.objectives.point(one.values)
            (again if point in seen else first).append(one)
            seen.add(point)
        return [*first, *again]

    def front(self, found: Sequence[Evaluation]) -> list[Evaluation]:
        """The evaluations of the last rung that no other of them dominates; of the highest rung that was reached."""
        for rung in range(len(self.rungs) - 1, -1, -1):
            here = [one for one in found if one.rung == rung and one.values]
            if here:
                points = [self.objectives.point(one.values) for one in here]
                return [here[i] for i in pareto_front(points)]
        return []

    def propose(self, found: Sequence[Evaluation]) -> Candidate | None:
        """A shape that was not tried, by the sampler."""
        tried = {one.candidate for one in found}
        if len(tried) >= self.space.size:
            return None
        rng = random.Random(f"{self.seed}-{len(found)}")
        if self.sampler != "random" and len(tried) >= STARTUP:
            for candidate in self._asked(found, rng):
                if candidate not in tried:
                    return candidate
        if self.space.size <= 4 * len(tried):
            return rng.choice([one for one in self.space.candidates() if one not in tried])
        while (candidate := self.space.draw(rng)) in tried:
            pass
        return candidate

    def _asked(self, found: Sequence[Evaluation], rng: random.Random) -> Iterator[Candidate]:
        """Proposals of Optuna after what the first rung found."""
        study, parts = build_study(self, found, rng.randrange(2**31)), self.space.parts
        distributions = distributions_of(parts)
        for _ in range(ATTEMPTS):
            trial = study.ask(distributions)
            yield Candidate(tuple((name, values[trial.params[name]]) for name, values in parts.items()))
            study.tell(trial, state=_states().FAIL)


def distributions_of(parts: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Optuna's distributions of the places of values: in order where they are numbers."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    return {
        name: CategoricalDistribution(tuple(range(len(values))))
        if isinstance(values[0], str)
        else IntDistribution(0, len(values) - 1)
        for name, values in parts.items()
    }


def build_study(halving: Halving, found: Sequence[Evaluation], seed: int) -> Any:
    """A study of Optuna with what the first rung found."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds: dict[str, Callable[[], Any]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=2 * STARTUP),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }
    directions = ["maximize" for _ in halving.objectives.names]
    study = optuna.create_study(sampler=kinds[halving.sampler](), directions=directions)
    parts = halving.space.parts
    distributions = distributions_of(parts)
    for one in found:
        if one.rung == 0 and one.values:
            chosen = {name: parts[name].index(value) for name, value in one.candidate.choices}
            point = list(halving.objectives.point(one.values))
            study.add_trial(optuna.trial.create_trial(params=chosen, distributions=distributions, values=point))
    return study


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def rungs_for(steps: int, count: int, factor: int) -> tuple[int, ...]:
    """Training steps of each rung, each `factor` times those of the one before, the last with `steps`."""
    rungs = tuple(max(1, math.ceil(steps / factor**power)) for power in range(count - 1, -1, -1))
    if len(set(rungs)) < count:
        raise SpecError(f"Expected at least {factor ** (count - 1)} training steps for {count} rungs, got {steps}.")
    return rungs


def checked(objectives: Objectives, values: Values) -> str:
    """What is wrong with figures: empty where each is a finite number."""
    wrong = [name for name in objectives.names if not math.isfinite(values.get(name, math.nan))]
    return (
        f"{wrong[0]} is {values.get(wrong[0])}, expected a finite number of {FIGURES[wrong[0]].unit}" if wrong else ""
    )
