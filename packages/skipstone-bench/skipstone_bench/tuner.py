"""Candidates tried on prompts of their own: the best fixed sampler, the best blind mask of so many calls."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from skipstone.errors import SkipstoneError
from skipstone.evaluation.columns import OWN, OWN_SAMPLER_SPEC, Column, parse_column
from skipstone.evaluation.files import IDENTICAL_PSNR
from skipstone.evaluation.pixels import flatten_frames
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.references import EvaluationSample, References
from skipstone.evaluation.subject import Subject
from skipstone.metrics import PSNR, Sample

from .store import Store

SOLVERS = (
    OWN,
    "dpmpp",
    "dpmpp(order=3, released=True)",
    "unipc",
    "unipc(order=3)",
    "adams",
    "adams(of='x0')",
    "ddim",
    "euler",
    "heun",
)
GRIDS = (OWN, "trailing", "leading", "uniform", "uniform(open=True)", "logsnr", "karras")
SLACK = 0.5  # calls by which a candidate may exceed a budget


@dataclass(frozen=True)
class TuningScore:
    """A candidate on the tuning prompts: mean calls, and PSNR to the converged solution in dB."""

    calls: float
    median: float
    mean: float


@dataclass
class Tuner:
    """Tries candidates on tuning prompts, each once: the folder has what was measured.

    Args:
        subject: The model.
        references: The converged solution on these prompts.
        store: The folder.
        eval_samples: Tuning prompts and seeds.
        on_progress: Called with the progress.
    """

    subject: Subject
    references: References
    store: Store
    eval_samples: Sequence[EvaluationSample]
    on_progress: ProgressCallback = no_progress
    _known: dict[tuple[str, str], tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._known = {(m["spec"], m["sample"]): (m["calls"], m["psnr_converged"]) for m in self.store.tuning}

    def score(self, column: Column) -> TuningScore | None:
        """How a candidate does, None where the model cannot run it."""
        missing = [eval_sample for eval_sample in self.eval_samples if (column.spec, eval_sample.id) not in self._known]
        try:
            if missing:
                self._measure(column, missing)
        except SkipstoneError:
            return None
        found = [self._known[column.spec, eval_sample.id] for eval_sample in self.eval_samples]
        values = [value for _, value in found]
        return TuningScore(
            statistics.fmean(calls for calls, _ in found), statistics.median(values), statistics.fmean(values)
        )

    def best(self, candidates: Iterable[Column], calls: float, what: str) -> Column | None:
        """The candidate of the best median within a budget of calls (and half a call), None where there is none."""
        listed = list(dict.fromkeys(candidates))
        scores: dict[Column, float] = {}
        for k, column in enumerate(listed):
            self.on_progress(f"Tuning {what}: {column.label}", k, len(listed))
            score = self.score(column)
            if score is not None and score.calls <= calls + SLACK:
                scores[column] = score.median
        return max(scores, key=scores.__getitem__) if scores else None

    def _measure(self, column: Column, eval_samples: Sequence[EvaluationSample]) -> None:
        column = self.subject.resolve_column(column)
        generated, _ = self.subject.draw([eval_sample.request for eval_sample in eval_samples], column)
        exact = self.references.load_or_draw(self.subject, eval_samples, self.references.converged[0])
        lines = []
        for eval_sample, one, pixels, reference in zip(
            eval_samples, generated, self.subject.pictures(generated), exact, strict=True
        ):
            value = PSNR().measure(Sample(flatten_frames(pixels), reference=flatten_frames(reference.pixels)))
            value = min(IDENTICAL_PSNR, value)
            self._known[column.spec, eval_sample.id] = one.calls, value
            lines.append({"spec": column.spec, "sample": eval_sample.id, "calls": one.calls, "psnr_converged": value})
        self.store.append_tuning(lines)


def sampler_for_calls(way: str, calls: int) -> Column:
    """A fixed sampler with as many steps as make so many calls; those of two stages save one at the end."""
    column = parse_column(f"fixed @ {way} / {calls}", None, None, calls)
    stages = 1 if column.solver is None else column.solver.stages
    return parse_column(f"fixed @ {way} / {max(1, (calls + stages - 1) // stages)}", None, None, calls)


def samplers_for_calls(subject: Subject, calls: int) -> list[Column]:
    """Every solver on every grid that the model has, making so many calls."""
    found = []
    for solver in SOLVERS:
        for grid in GRIDS:
            try:
                found.append(subject.resolve_column(sampler_for_calls(f"{solver} / {grid}", calls)))
            except SkipstoneError:
                continue
    return found


def sampler_spec_of(column: Column) -> str:
    """Solver and grid of a column."""
    way = column.spec.partition(" @ ")[2].rpartition(" / ")[0]
    return OWN if way == OWN_SAMPLER_SPEC else way


def find_greedy_masks(
    score: Callable[[frozenset[int]], float | None],
    steps: int,
    targets: Sequence[int],
    warmup: int = 2,
    tail: int = 1,
    take: float = 0.1,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, frozenset[int]]:
    """The steps to skip for each number of calls, found by skipping more and more of them.

    Every round tries to skip each further step, and skips those that cost least; a share of the candidates at a
    time, no two of them neighbours, which is coarser than one by one and as many times faster.

    Args:
        score: Of a set of skipped steps, higher is better; None where there is none.
        steps: Of the grid.
        targets: Numbers of calls.
        warmup, tail: Steps at the start and at the end that are always called, >= 1 and >= 0.
        take: Share of the candidates that is skipped in a round, in (0, 1]; at least one is.
        on_progress: Called with (skips, skips in the end).
    """
    goals = sorted({steps - calls for calls in targets if 0 < calls < steps})
    found: dict[int, frozenset[int]] = {}
    skips: frozenset[int] = frozenset()
    for goal in goals:
        while len(skips) < goal:
            on_progress(len(skips), goals[-1])
            free = [i for i in range(warmup, steps - tail) if i not in skips]
            ranked = {i: value for i in free if (value := score(skips | {i})) is not None}
            if not ranked:
                return found
            count = min(goal - len(skips), max(1, round(take * len(ranked))))
            skips |= _pick_non_adjacent(sorted(ranked, key=ranked.__getitem__, reverse=True), count)
        found[steps - goal] = skips
    return found


def improve_mask(
    score: Callable[[frozenset[int]], float | None],
    starts: Iterable[frozenset[int]],
    steps: int,
    warmup: int = 2,
    tail: int = 1,
) -> frozenset[int]:
    """The best of several masks after one sweep in which each of its skips may move to a free neighbour.

    Greedy choices are short-sighted; a mask that is regular to begin with is often better. With this the search is
    never worse than its starts on the prompts that it looks at.
    """
    scored = {skips: value for skips in starts if (value := score(skips)) is not None}
    best = max(scored, key=scored.__getitem__)
    value = scored[best]
    for step in sorted(best):
        for other in (step - 1, step + 1):
            if step in best and other not in best and warmup <= other < steps - tail:
                moved = best - {step} | {other}
                found = score(moved)
                if found is not None and found > value:
                    best, value = moved, found
    return best


def _pick_non_adjacent(ranked: Sequence[int], count: int) -> frozenset[int]:
    """The first of these steps that are not next to each other, at most so many."""
    chosen: set[int] = set()
    for step in ranked:
        if len(chosen) < count and not {step - 1, step + 1} & chosen:
            chosen.add(step)
    return frozenset(chosen)
