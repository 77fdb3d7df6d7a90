"""What a search asks: how good a candidate is on the tuning samples, for a price in network calls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .. import registry
from ..engine.contracts import Policy
from ..errors import BenchError, SkipstoneError, SpecError
from ..evaluation.progress import ProgressCallback, no_progress
from .cached_runs import RunScore
from .candidates import Builder
from .space import Point, Space

FIRST_SAMPLES = 4  # after which it is first decided whether a candidate goes on
ERRORS = 2.0  # standard errors by which a candidate must be behind the best one to be stopped
TOO_MANY = 1.25  # times the calls that are asked for, with which a candidate is stopped
PENALTY = 40.0  # dB of a candidate that makes e times the calls: more than calls ever gain
LOST = 0.0  # dB of a candidate that cannot run
REPEATS = 100  # candidates in a row that were tried before, after which a search has nothing new to ask

ScoreRuns: TypeAlias = Callable[[Policy, slice], Sequence[RunScore]]  # of some of the tuning samples, in their order


class SearchEnded(Exception):
    """The calls of a search are spent, or it asks for nothing new."""


@dataclass(frozen=True)
class Trial:
    """One candidate, as far as it ran.

    Args:
        number: Of the search's candidates, from 0.
        values: Dimension -> value.
        policy: Its spec; "" where the values make none.
        scores: Of the first tuning samples; of all where it was not stopped.
        quality: Mean PSNR in dB; of a stopped one, what its difference to the best suggests.
        calls: Mean calls.
        charged: Calls of the search up to its end.
        best: Quality of the best candidate within the calls so far, in dB.
        state: "complete", "stopped", "repeated", or "failed".
        reason: Why it failed.
    """

    number: int
    values: Mapping[str, Any]
    policy: str
    scores: Sequence[RunScore]
    quality: float
    calls: float
    charged: float
    best: float
    state: str
    reason: str = ""


def check_budget(budget: float, calls: int, samples: int) -> None:
    """Raise SpecError for a budget of less than one candidate.

    Args:
        budget: Calls of a search.
        calls: Of a run.
        samples: That a candidate runs on.
    """
    if budget < calls * samples:
        raise SpecError(
            f"--budget: expected at least {calls * samples:,} calls, one candidate of {calls} calls on {samples} "
            f"samples, got {budget:,.0f}."
        )


@dataclass
class Evaluator:
    """Answers one search, and charges its calls.

    A candidate is charged the calls of its runs the first time that this search asks for it, also where the runs are
    kept from before: so a search is charged what it would make alone. All searches are stopped by the same rule.

    Args:
        space: What is searched.
        builder: Makes policies.
        score_runs: Runs of a policy on some of the tuning samples.
        samples: How many tuning samples there are.
        budget: Calls that the search may make.
        name: Of the search, for the progress.
        on_progress: Called with the progress.

    Raises:
        SpecError: a budget for less than one candidate.
    """

    space: Space
    builder: Builder
    score_runs: ScoreRuns
    samples: int
    budget: float
    name: str = "search"
    on_progress: ProgressCallback = no_progress
    trials: list[Trial] = field(default_factory=list)
    charged: float = 0.0
    _known: dict[str, Trial] = field(default_factory=dict)
    _best: Trial | None = None
    _repeats: int = 0

    def __post_init__(self) -> None:
        check_budget(self.budget, self.builder.calls, self.samples)

    @property
    def calls(self) -> int:
        """Calls that are asked for."""
        return self.builder.calls

    @property
    def best(self) -> Trial | None:
        """The best candidate that ran on all samples within the calls."""
        return self._best

    def ask(self, point: Point) -> Trial:
        """Try a candidate.

        Raises:
            SearchEnded: the calls are spent, or would be by this candidate, or the last hundred were tried before.
        """
        if self.charged + self.calls * self.samples > self.budget:
            raise SearchEnded
        values = self.space.values(point)
        try:
            policy = self.builder.policy(values)
            spec = registry.spell(policy)
        except SkipstoneError as e:
            return self._end(values, "", [], "failed", str(e))
        if spec in self._known:
            known = self._known[spec]
            return self._end(values, spec, known.scores, "repeated", known.reason)
        return self._run(values, policy, spec)

    def objective(self, trial: Trial) -> float:
        """What searches for one number make large: the quality, less a penalty for more calls than asked for."""
        over = max(0.0, math.log(max(trial.calls, 1e-9) / self.calls))
        return trial.quality - PENALTY * over

    def _run(self, values: Mapping[str, Any], policy: Policy, spec: str) -> Trial:
        """Runs a candidate; one that makes so many calls that the budget does not hold it ends the search untold."""
        scores: list[RunScore] = []
        before = self.charged
        for part in self._parts():
            self.on_progress(self._words, self.charged, self.budget)
            try:
                found = self.score_runs(policy, part)
            except BenchError:
                raise
            except SkipstoneError as e:
                return self._end(values, spec, scores, "failed", str(e))
            scores += found
            self.charged += sum(one.calls for one in found)
            if self.charged > self.budget:
                self.charged = before
                raise SearchEnded
            if not all(math.isfinite(one.error) and math.isfinite(one.calls) for one in found):
                return self._end(values, spec, scores, "failed", "Its closeness is no number.")
            if len(scores) < self.samples and self._is_behind(scores):
                return self._end(values, spec, scores, "stopped")
        return self._end(values, spec, scores, "complete")

    def _parts(self) -> Iterator[slice]:
        """The tuning samples: the first four, as many again, and so on."""
        first, size = 0, FIRST_SAMPLES
        while first < self.samples:
            yield slice(first, min(first + size, self.samples))
            first, size = first + size, first + size

    def _is_behind(self, scores: Sequence[RunScore]) -> bool:
        """Whether a candidate need not run on: it makes too many calls, or is surely behind the best one."""
        if statistics.fmean(one.calls for one in scores) > TOO_MANY * self.calls:
            return True
        differences = self._differences(scores)
        if len(differences) < 2:
            return False
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return statistics.fmean(differences) + ERRORS * error < 0.0

    def _differences(self, scores: Sequence[RunScore]) -> list[float]:
        """PSNR less that of the best candidate, on the same samples."""
        theirs = self._best.scores if self._best is not None else ()
        return [own.psnr - best.psnr for own, best in zip(scores, theirs, strict=False)]

    def _end(
        self, values: Mapping[str, Any], spec: str, scores: Sequence[RunScore], state: str, reason: str = ""
    ) -> Trial:
        self._repeats = self._repeats + 1 if state == "repeated" or not scores else 0
        quality = self._known[spec].quality if state == "repeated" else self._quality(scores, state)
        calls = statistics.fmean(one.calls for one in scores) if scores else 0.0
        leads = state == "complete" and calls <= self.calls + 1e-9 and quality > self._best_quality
        best = quality if leads else self._best_quality
        trial = Trial(len(self.trials), values, spec, tuple(scores), quality, calls, self.charged, best, state, reason)
        if leads:
            self._best = trial
        self.trials.append(trial)
        if spec:
            self._known.setdefault(spec, trial)
        if self._repeats >= REPEATS:
            raise SearchEnded
        return trial

    def _quality(self, scores: Sequence[RunScore], state: str) -> float:
        if state == "failed" or not scores:
            return LOST
        if state == "stopped" and (differences := self._differences(scores)):
            return max(LOST, self._best_quality + statistics.fmean(differences))
        return statistics.fmean(one.psnr for one in scores)

    @property
    def _best_quality(self) -> float:
        return -math.inf if self._best is None else self._best.quality

    @property
    def _words(self) -> str:
        best = "" if self._best is None else f", best {self._best.quality:.1f} dB"
        return f"{self.name}, {self.calls} calls: candidate {len(self.trials) + 1}{best}"
