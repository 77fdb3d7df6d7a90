"""The search for grids: fine runs, the errors of all steps, what is left of them, the best paths, and the proof."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..errors import SkipstoneError, SpecError
from ..evaluation.columns import Column, format_component, parse_column
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import Subject
from .cached_runs import FINE_RUNS, CachedRuns, RunScore
from .errors import LocalErrors, local_errors
from .gains import PROBE_STRIDE, interpolate_gains, make_probes
from .grids import FineGrid
from .refine import refine_path
from .run_cache import RunCache
from .shortest_path import best_path

CALLS = (10, 15, 20, 25)
MAX_STEP_SHARE = 0.35  # of the fine steps that one step may pass
MIN_CALLS, MIN_FINE_STEPS = 4, 8  # calls, and steps of a fine run
RIVALS = ("fixed @ adams", "fixed @ dpmpp", "fixed @ dpmpp / logsnr", "fixed @ unipc")
FORECASTS = ("pair", "x0")  # of `adams`
QUARTILE = 0.75  # of the gains of all samples, for grids that are not to trust single ones
SLACK = 0.5  # calls by which a rival may exceed


@dataclass(frozen=True)
class TuningSettings:
    """Settings of the search for grids.

    Args:
        calls: Numbers of calls, each at least 4 and at most half of `fine`.
        fine: Steps of the runs that are taken for the exact solution, >= 8.
        refine: Sweeps of moving single places by the real mean dB of the tuning prompts, >= 0.
        batch: Samples of one call, >= 1.
        seed: Of the positions that are looked at in large latents.
        rivals: Whether fixed samplers and `stride` run beside.

    Raises:
        SpecError: a setting out of range.
    """

    calls: Sequence[int] = CALLS
    fine: int = 200
    refine: int = 0
    batch: int = 8
    seed: int = 0
    rivals: bool = True

    def __post_init__(self) -> None:
        for name, least in (("fine", MIN_FINE_STEPS), ("refine", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"Expected --{name} >= {least}, got {getattr(self, name)}.")
        for calls in self.calls or (0,):
            if not MIN_CALLS <= calls <= self.fine // 2:
                raise SpecError(
                    f"Expected --calls between {MIN_CALLS} and {self.fine // 2}, half the steps of the fine run, got "
                    f"{calls}."
                )


class TunedGrid(NamedTuple):
    """A grid that was found.

    Args:
        path: Its places on the fine run.
        of: What `adams` forecasts on it.
        weighting: By which gains: each sample's "own", the "upper" quartile of all, or "alike" at all places.
        tuning_psnr: Its mean PSNR on the tuning prompts.
    """

    path: tuple[int, ...]
    of: str
    weighting: str
    tuning_psnr: float = 0.0


@dataclass(frozen=True)
class TuningRow:
    """One way to make so many calls, as it really ran.

    Args:
        calls: That were asked for.
        label: What tables call it.
        spec: The column in full.
        group: "path", "even", or "rival".
        scores: Of every sample of the check.
    """

    calls: int
    label: str
    spec: str
    group: str
    scores: Sequence[RunScore]

    @property
    def mean_calls(self) -> float:
        """Mean calls per sample."""
        return statistics.fmean(one.calls for one in self.scores)

    @property
    def psnr_statistics(self) -> dict[str, float]:
        """PSNR to the fine run: mean, median, tenth percentile and worst."""
        import numpy as np

        found = np.array([one.psnr for one in self.scores])
        return {
            "mean": float(found.mean()),
            "median": float(np.median(found)),
            "p10": float(np.quantile(found, 0.1)),
            "worst": float(found.min()),
        }


@dataclass(frozen=True, eq=False)
class TuningResult:
    """Result of a search.

    Args:
        fine: The places.
        grids: Number of calls -> the grid that ran best.
        errors: Local errors of the tuning samples, without the gain.
        gain: (samples, places).
        landings: Places where the gain was measured.
        rows: Results on the check's prompts.
        agreement: PSNR of runs at every second place to the fine runs, median; a PSNR to the
            fine runs above this value is not meaningful.
    """

    fine: FineGrid
    grids: Mapping[int, TunedGrid]
    errors: LocalErrors
    gain: Any
    landings: Sequence[int]
    rows: Sequence[TuningRow] = ()
    agreement: float = 0.0

    def times(self, calls: int) -> tuple[float, ...]:
        """Return the times of the grid of this many calls."""
        return tuple(self.fine.times[k] for k in self.grids[calls].path)

    def policy(self, calls: int) -> Policy:
        """Return the policy of this many calls."""
        grid = self.grids[calls]
        return self.fine.policy(grid.path, grid.of)


@dataclass(frozen=True)
class TimeGridSearch:
    """A search for the grids of one model.

    Args:
        subject: The model.
        settings: How.
        eval_samples: Tuning prompts and seeds.
        check: On which the grids run in the end; the tuning prompts where there are none.
        run_cache: Where runs are kept.
        on_progress: Called with the progress.
        notes: What the user should know, after the run.
    """

    subject: Subject
    settings: TuningSettings
    eval_samples: Sequence[EvaluationSample]
    check: Sequence[EvaluationSample]
    run_cache: RunCache
    on_progress: ProgressCallback = no_progress
    notes: list[str] = field(default_factory=list)

    def run(self) -> TuningResult:
        """Search, and check.

        Raises:
            SpecError, GuestError: the model cannot be run by `adams`, or has too few places for so many calls.
            BenchError: a fine run was lost, or the folder cannot be written.
        """
        fine = self.cached_runs.fine(self.eval_samples[0])
        for calls in self.settings.calls:
            if calls > fine.steps // 2:
                raise SpecError(
                    f"{self.subject.name} has {fine.steps} places for {self.settings.fine} fine steps, because its "
                    f"timesteps are whole: expected --calls of at most {fine.steps // 2}, got {calls}."
                )
        errors = self._errors(fine)
        landings, gain, agreement = self._gains(fine, errors)
        grids = self._grids(
            fine, {"own": errors.times(gain), "upper": errors.times(_upper_quartile(gain)), "alike": errors}
        )
        found = TuningResult(fine, grids, errors, gain, landings, agreement=agreement)
        return replace(found, rows=tuple(self._rows(found)))

    @property
    def cached_runs(self) -> CachedRuns:
        """Runs of the model, cached as they are made."""
        s = self.settings
        return CachedRuns(self.subject, self.run_cache, s.fine, s.batch, s.seed, self.on_progress)

    def _errors(self, fine: FineGrid) -> LocalErrors:
        import numpy as np

        grams = self.cached_runs.grams(self.eval_samples, fine)
        self.on_progress("Errors of all steps", 0, 1)
        return local_errors(np.array(fine.angles), grams, max(2, round(MAX_STEP_SHARE * fine.steps)))

    def _gains(self, fine: FineGrid, errors: LocalErrors) -> tuple[list[int], Any, float]:
        """Landings, the gain at every place, and how well the probes' base agrees with the fine runs."""
        import numpy as np

        draws, base = self.cached_runs, fine.every(PROBE_STRIDE)
        full = draws.pictures(self.eval_samples, fine, FINE_RUNS, range(fine.steps + 1))
        pictures = draws.pictures(self.eval_samples, fine, "base", base)
        apart = [float(((a - b) ** 2).mean()) for a, b in zip(pictures, full, strict=True)]
        made, already = make_probes(fine), errors.of(base)
        measured = []
        for k, probe in enumerate(made):
            self.on_progress("Measuring what is left of an error", k, len(made))
            seen = draws.score_runs(draws.column(fine.policy(probe.path)), self.eval_samples, "base", pictures)
            added = np.maximum(errors.of(probe.path) - already, 1e-3 * already)
            measured.append([one.error for one in seen] / np.maximum(added, 1e-30))
        landings = [probe.landing for probe in made]
        agreement = statistics.median(RunScore(0, error).psnr for error in apart)
        return landings, interpolate_gains(fine, landings, np.array(measured)), agreement

    def _grids(self, fine: FineGrid, left: Mapping[str, LocalErrors]) -> dict[int, TunedGrid]:
        """For each number of calls the grid that really runs best, out of the best paths by each weighing."""
        found: dict[int, TunedGrid] = {}
        tried = [(calls, name, of) for calls in self.settings.calls for name in left for of in FORECASTS]
        paths: dict[tuple[int, str], tuple[int, ...]] = {}
        for k, (calls, name, of) in enumerate(tried):
            self.on_progress(f"Trying grids of {calls} calls", k, len(tried))
            if (calls, name) not in paths:
                paths[calls, name] = best_path(left[name], calls)
            grid = TunedGrid(paths[calls, name], of, name)
            grid = grid._replace(tuning_psnr=self._score(fine, grid))
            if calls not in found or grid.tuning_psnr > found[calls].tuning_psnr:
                found[calls] = grid
        if self.settings.refine:
            found = {calls: self._refined(fine, grid) for calls, grid in found.items()}
        return found

    def _score(self, fine: FineGrid, grid: TunedGrid) -> float:
        """Mean PSNR on the tuning prompts."""
        full = self.cached_runs.pictures(self.eval_samples, fine, FINE_RUNS, range(fine.steps + 1))
        column = self.cached_runs.column(fine.policy(grid.path, grid.of))
        return statistics.fmean(
            one.psnr for one in self.cached_runs.score_runs(column, self.eval_samples, FINE_RUNS, full)
        )

    def _refined(self, fine: FineGrid, grid: TunedGrid) -> TunedGrid:
        def score(path: tuple[int, ...]) -> float:
            return self._score(fine, grid._replace(path=path))

        what = f"Refining the grid of {len(grid.path) - 1} calls"
        path = refine_path(
            score, grid.path, self.settings.refine, lambda done, total: self.on_progress(what, done, total)
        )
        return grid._replace(path=path, tuning_psnr=score(path))

    # -- the proof --------------------------------------------------------------------------------

    def _rows(self, found: TuningResult) -> Iterator[TuningRow]:
        eval_samples = self.check or self.eval_samples
        full = self.cached_runs.pictures(eval_samples, found.fine, FINE_RUNS, range(found.fine.steps + 1))
        for k, calls in enumerate(self.settings.calls):
            self.on_progress("Checking", k, len(self.settings.calls))
            grid = found.grids[calls]
            column = self.cached_runs.column(found.policy(calls))
            yield self._row(calls, f"path-{calls}", "path", column, eval_samples, full)
            column = self.cached_runs.column(found.fine.policy(found.fine.even_path(calls), grid.of))
            yield self._row(
                calls, f"even angles @ {format_component(column.solver)}", "even", column, eval_samples, full
            )
            for spec in RIVALS if self.settings.rivals else ():
                rival = self._admitted(f"{spec} / {calls}")
                if rival is not None:
                    yield self._row(calls, spec, "rival", rival, eval_samples, full)
        if self.settings.rivals:
            yield from self._strides(eval_samples, full)

    def _admitted(self, spec: str) -> Column | None:
        own = self.subject.default_sampler
        try:
            column = self.subject.resolve_column(parse_column(spec, own.solver, own.grid, own.steps))
            self.subject.load([column])
        except SkipstoneError as e:
            self.notes.append(f"{spec.rpartition(' / ')[0]} is left out: {e}")
            return None
        return column

    def _row(
        self,
        calls: int,
        label: str,
        group: str,
        column: Column,
        eval_samples: Sequence[EvaluationSample],
        full: Sequence[Any],
    ) -> TuningRow:
        return TuningRow(
            calls, label, column.spec, group, self.cached_runs.score_runs(column, eval_samples, FINE_RUNS, full)
        )

    def _strides(self, eval_samples: Sequence[EvaluationSample], full: Sequence[Any]) -> Iterator[TuningRow]:
        """For each number of calls the setting that makes the most calls within it."""
        rows: list[TuningRow] = []
        for settings in reversed(registry.find_class("policy", "stride").calibration_settings):  # type: ignore[attr-defined]  # a Policy
            column = self._admitted(f"stride(tol={settings['tol']}) @ adams / {self.subject.default_sampler.steps}")
            if column is None:
                return
            self.on_progress("Checking stride", len(rows), len(rows) + 1)
            rows.append(self._row(0, f"stride(tol={settings['tol']})", "rival", column, eval_samples, full))
            if rows[-1].mean_calls > max(self.settings.calls) + SLACK:
                break
        for calls in self.settings.calls:
            within = [row for row in rows if row.mean_calls <= calls + SLACK]
            if within:
                yield replace(max(within, key=lambda row: row.mean_calls), calls=calls)


def _upper_quartile(gain: Any) -> Any:
    """The upper quartile of the gains, in place of each sample's own: they are heavy-tailed."""
    import numpy as np

    return np.broadcast_to(np.quantile(gain, QUARTILE, axis=0), gain.shape)
