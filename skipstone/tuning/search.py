"""The search for grids: fine runs, the errors of all steps, what is left of them, the best paths, and the proof."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..errors import BenchError, SkipstoneError, SpecError
from ..evaluation.columns import Column, format_component, parse_column
from ..evaluation.files import IDENTICAL_PSNR
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import EvaluationSample
from ..evaluation.subject import Subject
from .cached_runs import CachedRuns, RunScore
from .errors import LocalErrors, local_errors
from .gains import PROBE_STRIDE, interpolate_gains, longest_step, make_probes
from .grids import FineGrid
from .reference import HELPFUL, MARGIN, WANTED_MARGIN, Agreement, ReferenceRuns
from .refine import refine_path
from .run_cache import RunCache
from .shortest_path import best_path

CALLS = (10, 15, 20, 25)
MIN_CALLS, MIN_FINE_STEPS = 4, 8  # calls, and steps of a fine run
RANGES = {"fine": (MIN_FINE_STEPS, 400), "refine": (0, 100), "batch": (1, 10_000)}  # errors of 400 steps take 32 MB
RIVALS = ("fixed @ adams", "fixed @ dpmpp", "fixed @ dpmpp / logsnr", "fixed @ unipc")
FORECASTS = ("pair", "x0")  # of `adams`
QUARTILE = 0.75  # of the gains of all samples, for grids that are not to trust single ones
PILOTS = 4  # samples on which it is seen how many steps references need
SLACK = 0.5  # calls by which a rival may exceed


@dataclass(frozen=True)
class TuningSettings:
    """Settings of the search for grids.

    Args:
        calls: Numbers of calls, each at least 4 and at most half of `fine`.
        fine: Steps of the runs that grids are found in, 8 to 400; references have as many, or more where needed.
        refine: Sweeps of moving single places by the real mean dB of the tuning prompts, 0 to 100.
        batch: Samples of one call, 1 to 10,000.
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
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise SpecError(f"Expected --{name} from {least} to {most}, got {getattr(self, name)}.")
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
        """PSNR to the reference: mean, median, tenth percentile and worst."""
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
        agreement: Of the references that rows are measured against, with those that confirm them.
        reference: These references; None before rows are measured.
    """

    fine: FineGrid
    grids: Mapping[int, TunedGrid]
    errors: LocalErrors
    gain: Any
    landings: Sequence[int]
    agreement: Agreement
    rows: Sequence[TuningRow] = ()
    reference: ReferenceRuns | None = None

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
        general: Number of calls -> grid that was found for more samples: it runs beside, and grids have its solver.
    """

    subject: Subject
    settings: TuningSettings
    eval_samples: Sequence[EvaluationSample]
    check: Sequence[EvaluationSample]
    run_cache: RunCache
    on_progress: ProgressCallback = no_progress
    notes: list[str] = field(default_factory=list)
    general: Mapping[int, TunedGrid] = field(default_factory=dict)

    def run(self) -> TuningResult:
        """Search, and check.

        Raises:
            SpecError, GuestError: the model cannot be run by `adams`, or has too few places for so many calls.
            BenchError: a reference was lost or is not confirmed, or the folder cannot be written.
        """
        beginning = self.cached_runs.beginning(self.eval_samples[0])
        fine = beginning.fine(self.settings.fine)
        self._check_places(fine)
        errors = self._errors(fine)
        landings, gain = self._gains(fine, errors)
        left = {"own": errors.times(gain), "upper": errors.times(_upper_quartile(gain)), "alike": errors}
        found = TuningResult(fine, {}, errors, gain, landings, Agreement((), 0, 0))
        found = self._confirmed(found, left, ReferenceRuns(self.cached_runs, beginning, self.settings.fine))
        if _unconfirmed(found, MARGIN):
            raise BenchError(self._refusal(found))
        self._note_uncertain(found)
        return found

    def _confirmed(
        self, found: TuningResult, left: Mapping[str, LocalErrors], reference: ReferenceRuns
    ) -> TuningResult:
        """Grids and rows by references of as many steps as are needed, or as help."""
        while True:
            finer = None if self._looks_good(found.fine, left, reference) else self._finer(reference)
            if finer is None:
                grids = self._grids(found.fine, left, reference)
                agreement = reference.agreement(self._checked)
                found = replace(found, grids=grids, agreement=agreement, reference=reference)
                found = replace(found, rows=tuple(self._rows(found, reference)))
                finer = self._finer(reference) if _unconfirmed(found, WANTED_MARGIN) else None
            if finer is None:
                return found
            reference = finer

    @property
    def cached_runs(self) -> CachedRuns:
        """Runs of the model, cached as they are made."""
        s = self.settings
        return CachedRuns(self.subject, self.run_cache, s.fine, s.batch, s.seed, self.on_progress)

    @property
    def _checked(self) -> Sequence[EvaluationSample]:
        return self.check or self.eval_samples

    def _check_places(self, fine: FineGrid) -> None:
        for calls in self.settings.calls:
            if calls > fine.steps // 2:
                raise SpecError(
                    f"{self.subject.name} has {fine.steps} places for {self.settings.fine} fine steps, because its "
                    f"timesteps are whole: expected --calls of at most {fine.steps // 2}, got {calls}."
                )

    def _errors(self, fine: FineGrid) -> LocalErrors:
        import numpy as np

        grams = self.cached_runs.grams(self.eval_samples, fine)
        self.on_progress("Errors of all steps", 0, 1)
        return local_errors(np.array(fine.angles), grams, longest_step(fine))

    def _gains(self, fine: FineGrid, errors: LocalErrors) -> tuple[list[int], Any]:
        """Landings, and the gain at every place."""
        import numpy as np

        draws, base = self.cached_runs, fine.every(PROBE_STRIDE)
        pictures = draws.pictures(self.eval_samples, fine, "base", base)
        made, already = make_probes(fine), errors.of(base)
        measured = []
        for k, probe in enumerate(made):
            self.on_progress("Measuring what is left of an error", k, len(made))
            seen = draws.score_runs(draws.column(fine.policy(probe.path)), self.eval_samples, "base", pictures)
            added = np.maximum(errors.of(probe.path) - already, 1e-3 * already)
            measured.append([one.error for one in seen] / np.maximum(added, 1e-30))
        landings = [probe.landing for probe in made]
        return landings, interpolate_gains(fine, landings, np.array(measured))

    def _looks_good(self, fine: FineGrid, left: Mapping[str, LocalErrors], reference: ReferenceRuns) -> bool:
        """Whether a reference is good enough for one grid of the most calls, on a few samples: to be seen at once."""
        some = self._checked[:PILOTS]
        grid = TunedGrid(best_path(left["own"], max(self.settings.calls)), FORECASTS[0], "own")
        scores = self._run_grid(fine, grid, reference, some)
        return reference.agreement(some).confirms(statistics.median(one.psnr for one in scores), WANTED_MARGIN)

    def _finer(self, reference: ReferenceRuns) -> ReferenceRuns | None:
        """References of twice as many steps; None where these agree no better, on a few samples, or cannot be made."""
        finer, some = reference.doubled(), self._checked[:PILOTS]
        if finer is None or finer.agreement(some).median < reference.agreement(some).median + HELPFUL:
            return None
        return finer

    def _grids(self, fine: FineGrid, left: Mapping[str, LocalErrors], reference: ReferenceRuns) -> dict[int, TunedGrid]:
        """For each number of calls the grid that really runs best, out of the best paths by each weighing."""
        found: dict[int, TunedGrid] = {}
        tried = [(calls, name, of) for calls in self.settings.calls for name in left for of in self._forecasts(calls)]
        paths: dict[tuple[int, str], tuple[int, ...]] = {}
        for k, (calls, name, of) in enumerate(tried):
            self.on_progress(f"Trying grids of {calls} calls", k, len(tried))
            if (calls, name) not in paths:
                paths[calls, name] = best_path(left[name], calls)
            grid = TunedGrid(paths[calls, name], of, name)
            grid = grid._replace(tuning_psnr=self._score(fine, grid, reference))
            if calls not in found or grid.tuning_psnr > found[calls].tuning_psnr:
                found[calls] = grid
        if self.settings.refine:
            found = {calls: self._refined(fine, grid, reference) for calls, grid in found.items()}
        return found

    def _forecasts(self, calls: int) -> Sequence[str]:
        """What `adams` may forecast on a grid of this many calls."""
        return (self.general[calls].of,) if calls in self.general else FORECASTS

    def _run_grid(
        self, fine: FineGrid, grid: TunedGrid, reference: ReferenceRuns, eval_samples: Sequence[EvaluationSample]
    ) -> list[RunScore]:
        column = self.cached_runs.column(fine.policy(grid.path, grid.of))
        pictures = reference.pictures(eval_samples)
        return self.cached_runs.score_runs(column, eval_samples, reference.name, pictures)

    def _score(self, fine: FineGrid, grid: TunedGrid, reference: ReferenceRuns) -> float:
        """Mean PSNR on the tuning prompts."""
        return statistics.fmean(one.psnr for one in self._run_grid(fine, grid, reference, self.eval_samples))

    def _refined(self, fine: FineGrid, grid: TunedGrid, reference: ReferenceRuns) -> TunedGrid:
        def score(path: tuple[int, ...]) -> float:
            return self._score(fine, grid._replace(path=path), reference)

        what = f"Refining the grid of {len(grid.path) - 1} calls"
        path = refine_path(
            score, grid.path, self.settings.refine, lambda done, total: self.on_progress(what, done, total)
        )
        return grid._replace(path=path, tuning_psnr=score(path))

    # -- the proof --------------------------------------------------------------------------------

    def _rows(self, found: TuningResult, reference: ReferenceRuns) -> Iterator[TuningRow]:
        for k, calls in enumerate(self.settings.calls):
            self.on_progress("Checking", k, len(self.settings.calls))
            grid = found.grids[calls]
            column = self.cached_runs.column(found.policy(calls))
            yield self._row(calls, f"path-{calls}", "path", column, reference)
            if calls in self.general:
                other = self.general[calls]
                column = self.cached_runs.column(found.fine.policy(other.path, other.of))
                yield self._row(calls, f"general-{calls}", "general", column, reference)
            column = self.cached_runs.column(found.fine.policy(found.fine.even_path(calls), grid.of))
            label = f"even angles @ {format_component(column.solver)}"
            yield self._row(calls, label, "even", column, reference)
            for spec in RIVALS if self.settings.rivals else ():
                rival = self._admitted(f"{spec} / {calls}")
                if rival is not None:
                    yield self._row(calls, spec, "rival", rival, reference)
        if self.settings.rivals:
            yield from self._strides(reference)

    def _admitted(self, spec: str) -> Column | None:
        own = self.subject.default_sampler
        try:
            column = self.subject.resolve_column(parse_column(spec, own.solver, own.grid, own.steps))
            self.subject.load([column])
        except SkipstoneError as e:
            self.notes.append(f"{spec.rpartition(' / ')[0]} is left out: {e}")
            return None
        return column

    def _row(self, calls: int, label: str, group: str, column: Column, reference: ReferenceRuns) -> TuningRow:
        pictures = reference.pictures(self._checked)
        scores = self.cached_runs.score_runs(column, self._checked, reference.name, pictures)
        return TuningRow(calls, label, column.spec, group, scores)

    def _strides(self, reference: ReferenceRuns) -> Iterator[TuningRow]:
        """For each number of calls the setting that makes the most calls within it."""
        rows: list[TuningRow] = []
        for settings in reversed(registry.find_class("policy", "stride").calibration_settings):  # type: ignore[attr-defined]  # a Policy
            column = self._admitted(f"stride(tol={settings['tol']}) @ adams / {self.subject.default_sampler.steps}")
            if column is None:
                return
            self.on_progress("Checking stride", len(rows), len(rows) + 1)
            rows.append(self._row(0, f"stride(tol={settings['tol']})", "rival", column, reference))
            if rows[-1].mean_calls > max(self.settings.calls) + SLACK:
                break
        for calls in self.settings.calls:
            within = [row for row in rows if row.mean_calls <= calls + SLACK]
            if within:
                yield replace(max(within, key=lambda row: row.mean_calls), calls=calls)

    def _note_uncertain(self, found: TuningResult) -> None:
        """Note samples of which the references do not agree well enough for what is reported of them."""
        agreed = found.agreement.psnr
        best = [max(psnrs) for psnrs in zip(*([one.psnr for one in row.scores] for row in found.rows), strict=True)]
        count = sum(a < min(b + MARGIN, IDENTICAL_PSNR) for a, b in zip(agreed, best, strict=False))
        if count:
            self.notes.append(
                f"On {count} of {len(agreed)} samples the references agree to less than {MARGIN:g} dB beyond what is "
                f"reported of them: p10 and worst may be off."
            )

    def _refusal(self, found: TuningResult) -> str:
        """Why no figures are reported, and what to type instead."""
        lost = _unconfirmed(found, MARGIN)
        calls = min(lost)
        good = " ".join(f"--calls {n}" for n in self.settings.calls if n not in lost)
        fewer = good or (f"--calls below {calls}" if calls > MIN_CALLS else "")
        return (
            f"{self.subject.name}: {found.agreement.words} A run of {calls} calls is {lost[calls]:.1f} dB from the "
            f"first of them: expected the references to agree to at least {MARGIN:g} dB more. More steps do not help."
            + (f" Ask for {fewer}: what was drawn is kept." if fewer else "")
        )


def _unconfirmed(found: TuningResult, margin: float) -> dict[int, float]:
    """Numbers of calls whose best row is nearer to the reference than this margin allows, and its median PSNR."""
    best: dict[int, float] = {}
    for row in found.rows:
        best[row.calls] = max(best.get(row.calls, 0.0), row.psnr_statistics["median"])
    return {calls: psnr for calls, psnr in best.items() if not found.agreement.confirms(psnr, margin)}


def _upper_quartile(gain: Any) -> Any:
    """The upper quartile of the gains, in place of each sample's own: they are heavy-tailed."""
    import numpy as np

    return np.broadcast_to(np.quantile(gain, QUARTILE, axis=0), gain.shape)
