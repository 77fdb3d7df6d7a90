"""Solver, grid, policy and settings searched together: the dynamic programming first, then searches at equal calls."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from .. import registry
from ..engine.contracts import Policy
from ..evaluation.columns import Column
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import Subject
from .cached_runs import RunScore
from .candidates import Builder, default_space
from .evaluator import Evaluator, Trial, check_budget
from .reference import ReferenceRuns
from .run_cache import RunCache
from .search import TimeGridSearch, TuningResult, TuningRow, TuningSettings
from .searches import Search, run_search
from .slopes import Lead
from .space import Space

DEFAULT_TRIALS = 40  # candidates of the calls that are asked for that a search may make by default
DP, DEFAULT = "dynamic programming", "default"  # rows that every table has
OVER = 0.01  # share of the calls by which the mean on the samples of the check may exceed those that are asked for


@dataclass(frozen=True)
class JointSettings:
    """How searches are run.

    Args:
        searches: Name -> search.
        budget: Calls that each may make for each number of calls; 0 for 40 candidates.
        seed: Of the searches.
        space: What is searched; None is `candidates.default_space`.
    """

    searches: Mapping[str, Search]
    budget: int = 0
    seed: int = 0
    space: Space | None = None


@dataclass(frozen=True)
class SearchOutcome:
    """What one search has found for one number of calls.

    Args:
        name: Of the search.
        trials: All of its candidates.
        best: Of those that ran on all tuning samples within the calls; None where there is none.
        row: `best` on the samples of the check.
        lead: Of `best` over the dynamic programming, there.
    """

    name: str
    trials: Sequence[Trial]
    best: Trial | None
    row: TuningRow | None
    lead: Lead

    @property
    def charged(self) -> float:
        """Calls that it was charged."""
        return self.trials[-1].charged if self.trials else 0.0


@dataclass(frozen=True)
class JointResult:
    """What was found for one number of calls.

    Args:
        calls: That were asked for.
        space: That was searched.
        budget: Calls that each search might make.
        outcomes: Of each search.
        grid: Policy of the dynamic programming.
        rows: Of the check: dynamic programming, default, and the best of each search.
        chosen: The search whose best candidate leads on the tuning samples; None where none found anything.
        policy: What is written: the best of `chosen` where it leads on the samples of the check, else `grid`.
    """

    calls: int
    space: Space
    budget: float
    outcomes: Sequence[SearchOutcome]
    grid: Policy
    rows: Sequence[TuningRow]
    chosen: SearchOutcome | None
    policy: Policy

    @property
    def row(self) -> TuningRow:
        """The row of what is written."""
        if self.chosen is not None and self.chosen.row is not None and self.policy != self.grid:
            return self.chosen.row
        return self.rows[0]

    @property
    def words(self) -> str:
        """What was found, as a sentence."""
        if self.chosen is None or self.chosen.row is None or self.chosen.best is None:
            return f"{self.calls} calls: no search found a candidate within the calls. The grid stays."
        if self.chosen.best.policy == registry.spell(self.grid):
            return f"{self.calls} calls: no search found a candidate better than the dynamic programming's grid."
        figures = f"{self.chosen.lead.mean:+.1f} dB on the check, standard error {self.chosen.lead.error:.1f}"
        found = f"{self.calls} calls: {self.chosen.name} found {self.chosen.best.policy.partition('(')[0]}"
        calls = self.chosen.row.mean_calls
        if self.policy != self.grid:
            return f"{found}, which leads the dynamic programming by {figures}."
        if calls > (1 + OVER) * self.calls:
            return f"{found}, which makes {calls:.1f} calls on the check. The dynamic programming's grid stays."
        return f"{found}, which leads the dynamic programming by {figures}: too little. Its grid stays."


@dataclass
class JointSearch:
    """Searches for one model.

    Args:
        subject: The model.
        settings: Of the dynamic programming, and the numbers of calls.
        joint: Of the searches.
        eval_samples: Tuning prompts and seeds.
        check: Others, on which the winner is decided.
        run_cache: Where runs are kept.
        on_progress: Called with the progress.
        notes: What the user should know, after the run.
    """

    subject: Subject
    settings: TuningSettings
    joint: JointSettings
    eval_samples: Sequence[EvaluationSample]
    check: Sequence[EvaluationSample]
    run_cache: RunCache
    on_progress: ProgressCallback = no_progress
    notes: list[str] = field(default_factory=list)
    _pictures: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def grids(self) -> TuningResult:
        """The dynamic programming's grids for all numbers of calls.

        Raises:
            SpecError, GuestError: the model cannot be run by `adams`, or has too few places for so many calls.
            BenchError: a reference was lost or is not confirmed, or the folder cannot be written.
        """
        settings = replace(self.settings, rivals=False)
        search = TimeGridSearch(
            self.subject, settings, self.eval_samples, self.check, self.run_cache, self.on_progress, self.notes
        )
        return search.run()

    def run(self) -> list[JointResult]:
        """Search for each number of calls, and check. Raises as `grids`, and SpecError for a budget too small."""
        self.check_budgets()
        return [self.search(calls) for calls in self.settings.calls]

    def search(self, calls: int) -> JointResult:
        """Search for one of the numbers of calls, and check."""
        builder = self._builder(calls)
        space = self.joint.space or default_space(builder.beginning, calls, self._is_guided)
        grid = self._row(calls, DP, self.grids.policy(calls))
        outcomes = [self._outcome(name, builder, space, grid) for name in self.joint.searches]
        default: Policy = registry.parse("policy", f"adaptive_grid(calls={calls})")
        rows = [grid, self._row(calls, DEFAULT, default), *(one.row for one in outcomes if one.row is not None)]
        found = [one for one in outcomes if one.best is not None]
        chosen = max(found, key=lambda one: one.best.quality if one.best else 0.0, default=None)
        policy = self.grids.policy(calls)
        if chosen is not None and chosen.best is not None and chosen.row is not None and self._replaces(chosen):
            policy = registry.parse("policy", chosen.best.policy)
        return JointResult(calls, space, self.budget(calls), outcomes, self.grids.policy(calls), rows, chosen, policy)

    def grid_scores(self, calls: int) -> list[RunScore]:
        """Runs of the dynamic programming's grid on the tuning samples."""
        return self._scores(self.grids.policy(calls), self.eval_samples)

    def budget(self, calls: int) -> float:
        """Calls that each search may make for this number of calls. Raises SpecError for too few."""
        return budget_for(self.joint.budget, calls, len(self.eval_samples))

    def check_budgets(self) -> None:
        """Raise SpecError for a budget too small, before anything is drawn."""
        for calls in self.settings.calls:
            self.budget(calls)

    def _replaces(self, found: SearchOutcome) -> bool:
        within = found.row is not None and found.row.mean_calls <= (1 + OVER) * found.row.calls
        return within and found.lead.counts

    def _builder(self, calls: int) -> Builder:
        reference = self._reference
        return Builder(reference.beginning, calls, self.grids.times(calls), self.grids.grids[calls].of)

    def _outcome(self, name: str, builder: Builder, space: Space, grid: TuningRow) -> SearchOutcome:
        budget, samples = self.budget(builder.calls), len(self.eval_samples)
        evaluator = Evaluator(space, builder, self._score_tuning, samples, budget, name, self.on_progress)
        run_search(self.joint.searches[name], evaluator, self.joint.seed)
        best = evaluator.best
        if best is None:
            return SearchOutcome(name, evaluator.trials, None, None, Lead(0.0, float("inf")))
        row = self._row(builder.calls, name, registry.parse("policy", best.policy))
        return SearchOutcome(name, evaluator.trials, best, row, paired_lead(row.scores, grid.scores))

    def _score_tuning(self, policy: Policy, part: slice) -> Sequence[RunScore]:
        return self._scores(policy, self.eval_samples[part])

    def _row(self, calls: int, label: str, policy: Policy) -> TuningRow:
        self.on_progress(f"Checking {label}", 0, 1)
        scores = self._scores(policy, self.check or self.eval_samples)
        return TuningRow(calls, label, registry.spell(policy), label, scores)

    def _scores(self, policy: Policy, eval_samples: Sequence[EvaluationSample]) -> list[RunScore]:
        reference = self._reference
        if missing := [one for one in eval_samples if one.id not in self._pictures]:
            drawn = reference.pictures(missing)
            self._pictures |= {one.id: pixels for one, pixels in zip(missing, drawn, strict=True)}
        pictures = [self._pictures[one.id] for one in eval_samples]
        return reference.runs.score_runs(self._column(policy), eval_samples, reference.name, pictures)

    def _column(self, policy: Policy) -> Column:
        """A policy on the solver that it brings, or on the model's own, on its usual grid and steps."""
        own = self.subject.default_sampler
        solver = registry.parse("solver", policy.solver) if policy.solver else own.solver
        return self.subject.resolve_column(Column(policy, solver, own.grid, own.steps))

    @cached_property
    def _reference(self) -> ReferenceRuns:
        found = self.grids.reference
        assert found is not None
        return replace(found, runs=replace(found.runs, run_cache=self.run_cache))

    @property
    def _is_guided(self) -> bool:
        return self.subject.guidance not in (None, 1.0)


def paired_lead(own: Sequence[RunScore], other: Sequence[RunScore]) -> Lead:
    """By how many dB runs lead others of the same samples, in the mean, and the standard error."""
    differences = [a.psnr - b.psnr for a, b in zip(own, other, strict=True)]
    count = len(differences)
    error = statistics.stdev(differences) / count**0.5 if count > 1 else float("inf")
    return Lead(statistics.fmean(differences), error)


def budget_for(said: int, calls: int, samples: int) -> float:
    """The budget that was said, or 40 candidates of so many calls on so many samples where it is 0.

    Raises:
        SpecError: less than one candidate.
    """
    budget = float(said or DEFAULT_TRIALS * calls * samples)
    check_budget(budget, calls, samples)
    return budget
