"""The search for grids: fine runs, the errors of all steps, what is left of them, the best paths, and the proof."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..errors import SkipstoneError, SpecError
from ..evaluation.columns import Column, parse_column, spelt
from ..evaluation.progress import Tell, silent
from ..evaluation.references import Shot
from ..evaluation.subject import Subject
from .errors import Errors, local_errors
from .gains import EVERY, interpolated, probes
from .grids import Fine
from .refine import refined
from .run_cache import Kept
from .runs import FINE, Draws, Seen
from .shortest import best_path

CALLS = (10, 15, 20, 25)
LONGEST = 0.35  # of the fine steps that one step may pass
FEWEST, FINEST = 4, 8  # calls, and steps of a fine run
RIVALS = ("fixed @ adams", "fixed @ dpmpp", "fixed @ dpmpp / logsnr", "fixed @ unipc")
FORECASTS = ("pair", "x0")  # of `adams`
QUARTILE = 0.75  # of the gains of all samples, for grids that are not to trust single ones
SLACK = 0.5  # calls by which a rival may exceed


@dataclass(frozen=True)
class Settings:
    """How grids are searched for.

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
        for name, least in (("fine", FINEST), ("refine", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"Expected --{name} >= {least}, got {getattr(self, name)}.")
        for calls in self.calls or (0,):
            if not FEWEST <= calls <= self.fine // 2:
                raise SpecError(
                    f"Expected --calls between {FEWEST} and {self.fine // 2}, half the steps of the fine run, got "
                    f"{calls}."
                )


class Grid(NamedTuple):
    """A grid that was found.

    Args:
        path: Its places on the fine run.
        of: What `adams` forecasts on it.
        weighed: By which gains: each sample's "own", the "upper" quartile of all, or "alike" at all places.
        tuned: Its mean PSNR on the tuning prompts.
    """

    path: tuple[int, ...]
    of: str
    weighed: str
    tuned: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way to make so many calls, as it really ran.

    Args:
        calls: That were asked for.
        label: What tables call it.
        spec: The column in full.
        group: "path", "even", or "rival".
        seen: Of every sample of the check.
    """

    calls: int
    label: str
    spec: str
    group: str
    seen: Sequence[Seen]

    @property
    def spent(self) -> float:
        """Calls in the mean."""
        return statistics.fmean(one.calls for one in self.seen)

    @property
    def decibels(self) -> dict[str, float]:
        """PSNR to the fine run: mean, median, tenth percentile and worst."""
        import numpy as np

        found = np.array([one.psnr for one in self.seen])
        return {
            "mean": float(found.mean()),
            "median": float(np.median(found)),
            "p10": float(np.quantile(found, 0.1)),
            "worst": float(found.min()),
        }


@dataclass(frozen=True, eq=False)
class Found:
    """What a search has found.

    Args:
        fine: The places.
        grids: Number of calls -> the grid that ran best.
        errors: Local errors of the tuning samples, without the gain.
        gain: (samples, places).
        landings: Places where the gain was measured.
        rows: As they ran on the check's prompts.
        agreement: PSNR of runs at every second place to the fine runs, median: what can be told apart at best.
    """

    fine: Fine
    grids: Mapping[int, Grid]
    errors: Errors
    gain: Any
    landings: Sequence[int]
    rows: Sequence[Row] = ()
    agreement: float = 0.0

    def times(self, calls: int) -> tuple[float, ...]:
        """Of the grid of so many calls."""
        return tuple(self.fine.times[k] for k in self.grids[calls].path)

    def policy(self, calls: int) -> Policy:
        """Of so many calls."""
        grid = self.grids[calls]
        return self.fine.policy(grid.path, grid.of)


@dataclass(frozen=True)
class Search:
    """A search for the grids of one model.

    Args:
        subject: The model.
        settings: How.
        shots: Tuning prompts and seeds.
        check: On which the grids run in the end; the tuning prompts where there are none.
        kept: Where runs are kept.
        tell: Of the progress.
    """

    subject: Subject
    settings: Settings
    shots: Sequence[Shot]
    check: Sequence[Shot]
    kept: Kept
    tell: Tell = silent
    notes: list[str] = field(default_factory=list)

    def run(self) -> Found:
        """Search, and check.

        Raises:
            SpecError, GuestError: the model cannot be run by `adams`, or has too few places for so many calls.
            BenchError: a fine run was lost, or the folder cannot be written.
        """
        fine = self.draws.fine(self.shots[0])
        for calls in self.settings.calls:
            if calls > fine.steps // 2:
                raise SpecError(
                    f"{self.subject.name} has {fine.steps} places for {self.settings.fine} fine steps, because its "
                    f"timesteps are whole: expected --calls of at most {fine.steps // 2}, got {calls}."
                )
        errors = self._errors(fine)
        landings, gain, agreement = self._gains(fine, errors)
        grids = self._grids(fine, {"own": errors.times(gain), "upper": errors.times(_upper(gain)), "alike": errors})
        found = Found(fine, grids, errors, gain, landings, agreement=agreement)
        return replace(found, rows=tuple(self._rows(found)))

    @property
    def draws(self) -> Draws:
        """Its runs."""
        s = self.settings
        return Draws(self.subject, self.kept, s.fine, s.batch, s.seed, self.tell)

    def _errors(self, fine: Fine) -> Errors:
        import numpy as np

        grams = self.draws.grams(self.shots, fine)
        self.tell("Errors of all steps", 0, 1)
        return local_errors(np.array(fine.angles), grams, max(2, round(LONGEST * fine.steps)))

    def _gains(self, fine: Fine, errors: Errors) -> tuple[list[int], Any, float]:
        """Landings, the gain at every place, and how well the probes' base agrees with the fine runs."""
        import numpy as np

        draws, base = self.draws, fine.every(EVERY)
        full = draws.pictures(self.shots, fine, FINE, range(fine.steps + 1))
        pictures = draws.pictures(self.shots, fine, "base", base)
        apart = [float(((a - b) ** 2).mean()) for a, b in zip(pictures, full, strict=True)]
        made, already = probes(fine), errors.of(base)
        measured = []
        for k, probe in enumerate(made):
            self.tell("Measuring what is left of an error", k, len(made))
            seen = draws.measured(draws.column(fine.policy(probe.path)), self.shots, "base", pictures)
            added = np.maximum(errors.of(probe.path) - already, 1e-3 * already)
            measured.append([one.error for one in seen] / np.maximum(added, 1e-30))
        landings = [probe.landing for probe in made]
        agreement = statistics.median(Seen(0, error).psnr for error in apart)
        return landings, interpolated(fine, landings, np.array(measured)), agreement

    def _grids(self, fine: Fine, left: Mapping[str, Errors]) -> dict[int, Grid]:
        """For each number of calls the grid that really runs best, out of the best paths by each weighing."""
        found: dict[int, Grid] = {}
        tried = [(calls, name, of) for calls in self.settings.calls for name in left for of in FORECASTS]
        paths: dict[tuple[int, str], tuple[int, ...]] = {}
        for k, (calls, name, of) in enumerate(tried):
            self.tell(f"Trying grids of {calls} calls", k, len(tried))
            if (calls, name) not in paths:
                paths[calls, name] = best_path(left[name], calls)
            grid = Grid(paths[calls, name], of, name)
            grid = grid._replace(tuned=self._score(fine, grid))
            if calls not in found or grid.tuned > found[calls].tuned:
                found[calls] = grid
        if self.settings.refine:
            found = {calls: self._refined(fine, grid) for calls, grid in found.items()}
        return found

    def _score(self, fine: Fine, grid: Grid) -> float:
        """Mean PSNR on the tuning prompts."""
        full = self.draws.pictures(self.shots, fine, FINE, range(fine.steps + 1))
        column = self.draws.column(fine.policy(grid.path, grid.of))
        return statistics.fmean(one.psnr for one in self.draws.measured(column, self.shots, FINE, full))

    def _refined(self, fine: Fine, grid: Grid) -> Grid:
        def score(path: tuple[int, ...]) -> float:
            return self._score(fine, grid._replace(path=path))

        what = f"Refining the grid of {len(grid.path) - 1} calls"
        path = refined(score, grid.path, self.settings.refine, lambda done, total: self.tell(what, done, total))
        return grid._replace(path=path, tuned=score(path))

    # -- the proof --------------------------------------------------------------------------------

    def _rows(self, found: Found) -> Iterator[Row]:
        shots = self.check or self.shots
        full = self.draws.pictures(shots, found.fine, FINE, range(found.fine.steps + 1))
        for k, calls in enumerate(self.settings.calls):
            self.tell("Checking", k, len(self.settings.calls))
            grid = found.grids[calls]
            column = self.draws.column(found.policy(calls))
            yield self._row(calls, f"path-{calls}", "path", column, shots, full)
            column = self.draws.column(found.fine.policy(found.fine.even(calls), grid.of))
            yield self._row(calls, f"even angles @ {spelt(column.solver)}", "even", column, shots, full)
            for spec in RIVALS if self.settings.rivals else ():
                rival = self._admitted(f"{spec} / {calls}")
                if rival is not None:
                    yield self._row(calls, spec, "rival", rival, shots, full)
        if self.settings.rivals:
            yield from self._strides(shots, full)

    def _admitted(self, spec: str) -> Column | None:
        own = self.subject.defaults
        try:
            column = self.subject.admit(parse_column(spec, own.solver, own.grid, own.steps))
            self.subject.load([column])
        except SkipstoneError as e:
            self.notes.append(f"{spec.rpartition(' / ')[0]} is left out: {e}")
            return None
        return column

    def _row(
        self, calls: int, label: str, group: str, column: Column, shots: Sequence[Shot], full: Sequence[Any]
    ) -> Row:
        return Row(calls, label, column.spec, group, self.draws.measured(column, shots, FINE, full))

    def _strides(self, shots: Sequence[Shot], full: Sequence[Any]) -> Iterator[Row]:
        """For each number of calls the rung of its ladder that makes the most calls within it."""
        rungs: list[Row] = []
        for settings in reversed(registry.lookup("policy", "stride").ladder):  # type: ignore[attr-defined]  # a Policy
            column = self._admitted(f"stride(tol={settings['tol']}) @ adams / {self.subject.defaults.steps}")
            if column is None:
                return
            self.tell("Checking stride", len(rungs), len(rungs) + 1)
            rungs.append(self._row(0, f"stride(tol={settings['tol']})", "rival", column, shots, full))
            if rungs[-1].spent > max(self.settings.calls) + SLACK:
                break
        for calls in self.settings.calls:
            within = [rung for rung in rungs if rung.spent <= calls + SLACK]
            if within:
                yield replace(max(within, key=lambda rung: rung.spent), calls=calls)


def _upper(gain: Any) -> Any:
    """The upper quartile of the gains, in place of each sample's own: they are heavy-tailed."""
    import numpy as np

    return np.broadcast_to(np.quantile(gain, QUARTILE, axis=0), gain.shape)
