"""The oracle schedule: the best of many schedules that were really run, for each sample by itself."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from skipstone.errors import SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.files import write_file
from skipstone.evaluation.fingerprint import fingerprint
from skipstone.evaluation.json_lines import json_roundtrip
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import Subject
from skipstone.evaluation.utility import Utility
from skipstone.tuning.cached_runs import FINE_RUNS, CachedRuns
from skipstone.tuning.errors import local_errors
from skipstone.tuning.gains import longest_step
from skipstone.tuning.grids import FineGrid
from skipstone.tuning.run_cache import RunCache
from skipstone.tuning.search import FORECASTS, MIN_CALLS, MIN_FINE_STEPS
from skipstone.tuning.shortest_path import shortest_paths

from .local_search import climb
from .trials import Trial, TrialRunner
from .utility import ScheduleChoice, TrialResult, best_choice

CALLS = (6, 8, 10, 12, 14, 16, 20, 24)
RESULTS = "oracle.jsonl"
REFERENCE = "reference"


@dataclass(frozen=True)
class OracleSettings:
    """Which schedules are tried on every sample.

    Args:
        calls: Of a sample's own grids, each at least 4 and at most half of `fine`; none tries guides alone.
        guides: Columns that are tried on every sample: 'path(times="...")', 'stride(tol=0.01)', 'fixed @ unipc / 20'.
        forecasts: Of `adams` on own grids: "pair", "x0", or both.
        fine: Steps of the run that a sample's errors are computed from, >= 8.
        gain: (angle, gain) pairs: how much of an error made there is left, as in `TuningResult.gain` of a search;
            own grids are found with it and without. None finds them without.
        reference: The converged run as a column; "" takes the fine run.
        sweeps: Of moving and dropping single places of a sample's best grid by what they really do, >= 0. These are
            made for one utility, and cost some 3 n^2 calls of a grid of n.
        batch: Runs of one batch, >= 1.

    Raises:
        SpecError: a setting out of range.
    """

    calls: Sequence[int] = CALLS
    guides: Sequence[str] = ()
    forecasts: Sequence[str] = FORECASTS
    fine: int = 200
    gain: Sequence[tuple[float, float]] | None = None
    reference: str = ""
    sweeps: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        for name, least in (("fine", MIN_FINE_STEPS), ("sweeps", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"Expected {name} >= {least}, got {getattr(self, name)}.")
        if wrong := [n for n in self.calls if not MIN_CALLS <= n <= self.fine // 2]:
            raise SpecError(f"Expected calls between {MIN_CALLS} and {self.fine // 2}, half of fine, got {wrong[0]}.")
        if not set(self.forecasts) <= set(FORECASTS):
            raise SpecError(f"Expected forecasts among {', '.join(FORECASTS)}, got {', '.join(self.forecasts)}.")
        if not self.guides and not (self.calls and self.forecasts):
            raise SpecError("Expected guides, or calls of own grids: there is nothing to try.")


@dataclass(frozen=True)
class ScheduleOracle:
    """A search for the best schedule of each sample; `run_trials` really runs them, once for all utilities.

    Args:
        subject: The model.
        eval_samples: Prompts and seeds.
        run_cache: Runs that were made before are read from it.
        ladder: What is tried.
        on_progress: Called with the progress.
    """

    subject: Subject
    eval_samples: Sequence[EvaluationSample]
    run_cache: RunCache
    ladder: OracleSettings = field(default_factory=OracleSettings)
    on_progress: ProgressCallback = no_progress

    @classmethod
    def open(
        cls,
        subject: Subject,
        eval_samples: Sequence[EvaluationSample],
        out: Path,
        ladder: OracleSettings | None = None,
        on_progress: ProgressCallback = no_progress,
    ) -> ScheduleOracle:
        """A search that goes on where `out` was left, or begins.

        Raises:
            SpecError: guides that this model cannot run, two samples of one name.
            BenchError: the folder cannot be written.
        """
        ladder = ladder or OracleSettings()
        if len({eval_sample.id for eval_sample in eval_samples}) < len(eval_samples):
            raise SpecError("Expected samples of different prompts or seeds, got one of them twice.")
        subject.check([eval_sample.prompt.text for eval_sample in eval_samples])
        own = subject.default_sampler
        guides = [subject.resolve_column(parse_column(spec, *own)) for spec in ladder.guides]
        subject.load(guides)
        same = {k: v for k, v in fingerprint(subject, eval_samples, ()).items() if "prompts" not in k}
        same |= {"model": subject.name, "guidance": subject.guidance, "settings": subject.settings}
        same |= {"fine": ladder.fine, "reference": ladder.reference}
        return cls(subject, eval_samples, RunCache.open(out, same), ladder, on_progress)

    def run_trials(self, utility: Utility | None = None) -> dict[str, list[TrialResult]]:
        """Sample -> every schedule that ran on it.

        Args:
            utility: That `sweeps` climb by; without one they are left out.

        Raises:
            BenchError: a reference run was lost.
        """
        trials, fine = self._trials(), self._fine
        asked: list[Trial] = []
        for k, eval_sample in enumerate(self.eval_samples):
            self.on_progress("Finding each sample's own grids", k, len(self.eval_samples))
            asked += [Trial(eval_sample, column, "guide") for column in self._guides]
            asked += [Trial(eval_sample, column, "own") for column in self._own(eval_sample, fine)]
        found = trials.run(asked)
        if self.ladder.sweeps and utility is not None:
            climb(found, self.eval_samples, trials, self._draws, fine, utility, self.ladder.sweeps)
        return found

    def choices(self, utility: Utility) -> list[ScheduleChoice]:
        """The best that was tried, of each sample."""
        found = self.run_trials(utility)
        return [best_choice(eval_sample.id, found[eval_sample.id], utility) for eval_sample in self.eval_samples]

    # -- what is tried ----------------------------------------------------------------------------

    @property
    def _draws(self) -> CachedRuns:
        return CachedRuns(
            self.subject, self.run_cache, self.ladder.fine, self.ladder.batch, on_progress=self.on_progress
        )

    @cached_property
    def _fine(self) -> FineGrid:
        return self._draws.fine(self.eval_samples[0])

    @property
    def _guides(self) -> list[Column]:
        own = self.subject.default_sampler
        return [self.subject.resolve_column(parse_column(spec, *own)) for spec in self.ladder.guides]

    def _own(self, eval_sample: EvaluationSample, fine: FineGrid) -> list[Column]:
        """The grids that should be best for this sample, by its own errors."""
        if not (self.ladder.calls and self.ladder.forecasts):
            return []
        what = f"own grids of {sorted(set(self.ladder.calls))} by {self.ladder.gain}"
        known = self.run_cache.arrays(what, eval_sample)
        if known is None:
            known = {str(k): path for k, path in enumerate(self._paths(eval_sample, fine))}
            self.run_cache.save(what, eval_sample, **known)
        paths = [tuple(map(int, known[str(k)])) for k in range(len(known))]
        return [self._draws.column(fine.policy(path, of)) for path in paths for of in self.ladder.forecasts]

    def _paths(self, eval_sample: EvaluationSample, fine: FineGrid) -> list[tuple[int, ...]]:
        """For each number of calls the shortest by this sample's errors, weighed by the gain and not."""
        import numpy as np

        errors = local_errors(np.array(fine.angles), self._draws.grams([eval_sample], fine), longest_step(fine))
        left = [errors, *([] if self.ladder.gain is None else [errors.times(self._gain(fine)[None])])]
        listed = [p for one in left for p in shortest_paths(one.table[0], sorted(set(self.ladder.calls))).values()]
        return list(dict.fromkeys(listed))

    def _gain(self, fine: FineGrid) -> Any:
        """At every place, linear in its logarithm between those of the ladder."""
        import numpy as np

        pairs = sorted(self.ladder.gain or ())
        known, values = [angle for angle, _ in pairs], [max(gain, 1e-9) for _, gain in pairs]
        return np.exp(np.interp(fine.angles, known, np.log(values)))

    def _trials(self) -> TrialRunner:
        fine = self._fine
        pictures = self._draws.pictures(self.eval_samples, fine, FINE_RUNS, range(fine.steps + 1))
        if self.ladder.reference:
            pictures = self._references()
        references = {eval_sample.id: picture for eval_sample, picture in zip(self.eval_samples, pictures, strict=True)}
        against = self.ladder.reference or FINE_RUNS
        return TrialRunner(self.subject, self.run_cache, references, against, self.ladder.batch, self.on_progress)

    def _references(self) -> list[Any]:
        """Pictures of the converged run, from the cache where they are there."""
        own = self.subject.default_sampler
        column = self.subject.resolve_column(parse_column(self.ladder.reference, *own))
        missing = [
            eval_sample for eval_sample in self.eval_samples if self.run_cache.arrays(REFERENCE, eval_sample) is None
        ]
        for first in range(0, len(missing), self.ladder.batch):
            self.on_progress(
                "Drawing converged runs", len(self.eval_samples) - len(missing) + first, len(self.eval_samples)
            )
            some = missing[first : first + self.ladder.batch]
            generated, _ = self.subject.draw([eval_sample.request for eval_sample in some], column)
            for eval_sample, pixels in zip(some, self.subject.pictures(generated), strict=True):
                self.run_cache.save(REFERENCE, eval_sample, pixels=pixels)
        return [
            found["pixels"]
            for eval_sample in self.eval_samples
            if (found := self.run_cache.arrays(REFERENCE, eval_sample)) is not None
        ]


def oracle_schedule(
    subject: Subject,
    eval_samples: Sequence[EvaluationSample],
    out: Path,
    utility: Utility,
    ladder: OracleSettings | None = None,
    on_progress: ProgressCallback = no_progress,
) -> list[ScheduleChoice]:
    """Each sample's best schedule by a utility, out of all that were really run; written to `out/oracle.jsonl`.

    A bound from below on what choosing by sample can reach: the best that was found, and of many tries the luckiest.
    The same command goes on where it was stopped, and other utilities reuse its runs.

    Args:
        subject: The model.
        eval_samples: Prompts and seeds.
        out: A folder.
        utility: What is best.
        ladder: What is tried.
        on_progress: Called with the progress.

    Raises:
        SpecError: guides that this model cannot run.
        BenchError: the folder cannot be written, or a reference run was lost.
    """
    oracle = ScheduleOracle.open(subject, eval_samples, out, ladder, on_progress)
    found = oracle.run_trials(utility)
    chosen = [best_choice(eval_sample.id, found[eval_sample.id], utility) for eval_sample in eval_samples]
    fixed = best_shared_schedule(found, utility)
    lines = []
    for choice in chosen:
        one = choice.result
        line = {"sample": choice.sample, "utility": choice.utility, "calls": one.calls, "psnr": one.psnr}
        line |= {"kind": one.kind, "spec": one.spec, "tried": len(found[choice.sample])}
        if fixed is not None:
            same = next(t for t in found[choice.sample] if t.spec == fixed and t.kind == "guide")
            line |= {"guide": fixed, "guide_utility": float(utility(same.psnr, same.calls)), "guide_calls": same.calls}
        lines.append(line | {"price": utility.price, "floor": utility.floor, "cap": utility.cap})
    text = "".join(json.dumps(json_roundtrip(line), ensure_ascii=False) + "\n" for line in lines)
    write_file(out / RESULTS, text.encode())
    return chosen


def best_shared_schedule(found: Mapping[str, Sequence[TrialResult]], utility: Utility) -> str | None:
    """Spec of the one guide of the highest mean utility over all samples, None where there are no guides.

    Chosen on these very samples, which is generous to it.
    """
    listed: dict[str, list[float]] = {}
    for tried in found.values():
        for one in tried:
            if one.kind == "guide":
                listed.setdefault(one.spec, []).append(float(utility(one.psnr, one.calls)))
    means = {spec: statistics.fmean(values) for spec, values in listed.items() if len(values) == len(found)}
    return max(means, key=means.__getitem__) if means else None
