"""The search for the density of steps of `adaptive_grid` that suits a model."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import Subject
from .cached_runs import CachedRuns, RunScore
from .reference import HELPFUL, MARGIN, WANTED_MARGIN, Agreement, ReferenceRuns
from .run_cache import RunCache
from .search import PILOTS, TuningRow, TuningSettings

CALLS = (10, 15, 20)  # of the presets
FINALISTS = 4  # pairs that run with every number of calls
AROUND = (0.75, 1.35)  # of the least and the most calls: the default runs with these too, to interpolate between
LEAD = 0.5  # dB, and one standard error, by which slopes must lead the default on other samples to replace it


class Slopes(NamedTuple):
    """Slopes of the density of steps: `rise` and `fall` of `adaptive_grid`; None goes by the network's output."""

    rise: float | None
    fall: float | None


DEFAULT = Slopes(None, None)
# From even steps in log(sigma / alpha) at much noise to steep, so that all densities of `DENSITIES` lie between.
PAIRS = tuple(Slopes(*pair) for pair in itertools.product((-0.1, 0.1, 0.3, 0.6, 1.0), (0.1, 0.25, 0.4)))


class Lead(NamedTuple):
    """By how many dB slopes lead the default with as many calls, in the mean, and the standard error of it."""

    mean: float
    error: float

    @property
    def counts(self) -> bool:
        """Whether it is large enough to replace the default."""
        return self.mean > max(LEAD, self.error)


@dataclass(frozen=True)
class SlopeResult:
    """Result of a search for slopes.

    Args:
        calls: That were asked for.
        measured: Those of them with which leads are measured: whose runs are not too near to the references.
        best: The best pair on the tuning samples.
        tried: Pair -> its lead in dB on the tuning samples; of those that did not run with all calls, with the least.
        lead: Of `best`, on the samples of the check.
        agreement: Of the references that rows are measured against, with those that confirm them.
        rows: Results on the samples of the check: the default, and `best` where that is something else.
        base: What leads are measured against: the default, or slopes that were found before.
    """

    calls: Sequence[int]
    measured: Sequence[int]
    best: Slopes
    tried: Mapping[Slopes, float]
    lead: Lead
    agreement: Agreement
    rows: Sequence[TuningRow]
    base: Slopes = DEFAULT

    @property
    def slopes(self) -> Slopes:
        """What is written: the best pair, or the base where that is as good on the samples of the check."""
        return self.best if self.lead.counts else self.base

    def policy(self, calls: int) -> Policy:
        """Return the policy of this many calls."""
        return slope_policy(self.slopes, calls)

    @property
    def words(self) -> str:
        """What was found, as a sentence."""
        if not self.measured:
            return (
                f"The default stays: with {', '.join(map(str, self.calls))} calls it is less than {MARGIN:g} dB "
                f"farther from the references than they are from each other, so that no lead can be measured."
            )
        found = f"rise={self.best.rise} and fall={self.best.fall}"
        at = f"{', '.join(map(str, self.measured))} calls"
        figures = f"{self.lead.mean:+.1f} dB on other samples at {at}, standard error {self.lead.error:.1f}"
        if self.best == DEFAULT:
            return (
                "The default is as good: no other slopes lead it on the tuning samples. The folders hold the default."
            )
        if self.slopes == DEFAULT:
            return f"The default is as good: {found} lead it by {figures}. The folders hold the default."
        return f"The folders hold {found}. They lead the default by {figures}."


def slope_policy(slopes: Slopes, calls: int) -> Policy:
    """`adaptive_grid` with these slopes and as many calls."""
    given = {"rise": slopes.rise, "fall": slopes.fall}
    said = "".join(f", {name}={value}" for name, value in given.items() if value is not None)
    policy: Policy = registry.parse("policy", f"adaptive_grid(calls={calls}{said})")
    return policy


def around(calls: Sequence[int]) -> tuple[int, ...]:
    """Numbers of calls with which the default runs, to interpolate between: these, some fewer and some more."""
    least, most = min(calls), max(calls)
    return tuple(sorted({*calls, max(1, round(AROUND[0] * least)), round(AROUND[1] * most) + 1}))


def leads(own: Sequence[Sequence[RunScore]], default: Sequence[Sequence[RunScore]]) -> Lead:
    """The lead of runs over the default's with as many calls.

    The default's PSNR of each sample is interpolated in the logarithm of its mean calls.

    Args:
        own: For each number of calls that was asked for, the runs of all samples.
        default: The default's, for numbers of calls around these; the same samples.
    """
    import numpy as np

    def place(runs: Sequence[RunScore]) -> float:
        return float(np.log(max(1e-9, statistics.fmean(one.calls for one in runs))))

    known = sorted(default, key=place)
    places = [place(runs) for runs in known]
    curves = np.array([[one.psnr for one in runs] for runs in known]).T  # a curve for each sample
    ahead = [
        [one.psnr - np.interp(place(runs), places, curve) for one, curve in zip(runs, curves, strict=True)]
        for runs in own
    ]
    each = np.mean(ahead, axis=0)
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else float("inf")
    return Lead(float(each.mean()), error)


@dataclass(frozen=True)
class SlopeSearch:
    """A search for the slopes of one model: all of `PAIRS` with the least calls, the best `FINALISTS` with all.

    Args:
        subject: The model.
        settings: How; `refine` and `rivals` are not read.
        eval_samples: Tuning prompts and seeds.
        check: Others, on which the best pair is compared with the default.
        run_cache: Where runs are kept.
        on_progress: Called with the progress.
        notes: What the user should know, after the run.
        base: What pairs have to lead: the default, or slopes that were found before.
        known: References of a search on more samples, to be used here too; None finds how many steps they need.
    """

    subject: Subject
    settings: TuningSettings
    eval_samples: Sequence[EvaluationSample]
    check: Sequence[EvaluationSample]
    run_cache: RunCache
    on_progress: ProgressCallback = no_progress
    notes: list[str] = field(default_factory=list)
    base: Slopes = DEFAULT
    known: ReferenceRuns | None = None

    def run(self) -> SlopeResult:
        """Search, and check.

        Raises:
            SpecError, GuestError: the model cannot be run by `kriging`.
            BenchError: a reference was lost, or the folder cannot be written.
        """
        reference = self.reference()
        tried = self._tried(reference, self._measurable(self.eval_samples, reference))
        best = max(tried, key=lambda slopes: tried[slopes])
        measured = self._measurable(self.check, reference)
        lead = self._lead(best, measured, self.check, reference) if measured else Lead(0.0, float("inf"))
        return SlopeResult(
            self.settings.calls,
            measured,
            best,
            tried,
            lead,
            reference.agreement(self.check),
            self._rows(best, reference),
            self.base,
        )

    def _rows(self, best: Slopes, reference: ReferenceRuns) -> list[TuningRow]:
        """Results of the base, and of the best pair where that is something else, on the samples of the check."""
        own = "default" if self.base == DEFAULT else "general"
        labels = {self.base: own} if best == self.base else {self.base: own, best: "tuned"}
        return [
            TuningRow(
                n, label, registry.spell(slope_policy(slopes, n)), label, self._runs(slopes, n, self.check, reference)
            )
            for n in self.settings.calls
            for slopes, label in labels.items()
        ]

    def _measurable(self, eval_samples: Sequence[EvaluationSample], reference: ReferenceRuns) -> tuple[int, ...]:
        """Numbers of calls with which the base is so far from the references that their own error does not count."""
        agreement = reference.agreement(eval_samples)
        medians = {
            n: statistics.median(one.psnr for one in self._runs(self.base, n, eval_samples, reference))
            for n in self.settings.calls
        }
        return tuple(n for n, median in medians.items() if agreement.confirms(median, MARGIN))

    @property
    def cached_runs(self) -> CachedRuns:
        """Runs of the model, cached as they are made."""
        s = self.settings
        return CachedRuns(self.subject, self.run_cache, s.fine, s.batch, s.seed, self.on_progress)

    def reference(self) -> ReferenceRuns:
        """References of as many steps as are needed, or as help, as a few samples tell."""
        if self.known is not None:
            return self.known
        some, most = self.eval_samples[:PILOTS], max(self.settings.calls)
        reference = ReferenceRuns(
            self.cached_runs, self.cached_runs.beginning(self.eval_samples[0]), self.settings.fine
        )
        while True:
            median = statistics.median(one.psnr for one in self._runs(self.base, most, some, reference))
            agreement, finer = reference.agreement(some), reference.doubled()
            if agreement.confirms(median, WANTED_MARGIN) or finer is None:
                return reference
            if finer.agreement(some).median < agreement.median + HELPFUL:
                return reference
            reference = finer

    def _tried(self, reference: ReferenceRuns, calls: Sequence[int]) -> dict[Slopes, float]:
        """Pairs and their leads on the tuning samples; only those that ran with all calls may be best."""
        if not calls:
            return {self.base: 0.0}
        least = min(calls)
        first: dict[Slopes, float] = {}
        for k, slopes in enumerate(PAIRS):
            self.on_progress(f"Trying slopes with {least} calls", k, len(PAIRS))
            first[slopes] = self._lead(slopes, (least,), self.eval_samples, reference).mean
        ranked = sorted(PAIRS, key=lambda slopes: -first[slopes])
        found = {self.base: 0.0}
        for k, slopes in enumerate(ranked[:FINALISTS]):
            self.on_progress("Trying the best slopes", k, FINALISTS)
            found[slopes] = self._lead(slopes, calls, self.eval_samples, reference).mean
        # what was left behind with the least calls cannot win, whatever its lead there
        return found | {slopes: min(first[slopes], *found.values()) for slopes in ranked[FINALISTS:]}

    def _lead(
        self,
        slopes: Slopes,
        calls: Sequence[int],
        eval_samples: Sequence[EvaluationSample],
        reference: ReferenceRuns,
    ) -> Lead:
        """The lead over the base with as many calls."""
        return leads(
            [self._runs(slopes, n, eval_samples, reference) for n in calls],
            [self._runs(self.base, n, eval_samples, reference) for n in around(calls)],
        )

    def _runs(
        self, slopes: Slopes, calls: int, eval_samples: Sequence[EvaluationSample], reference: ReferenceRuns
    ) -> list[RunScore]:
        column = self.cached_runs.column(slope_policy(slopes, calls))
        return self.cached_runs.score_runs(column, eval_samples, reference.name, reference.pictures(eval_samples))
