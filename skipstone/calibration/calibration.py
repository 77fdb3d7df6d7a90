"""A calibration, all of it understood and held against the model before anything is drawn, and run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import GuestWarning, SpecError, TargetMissed
from ..evaluation.columns import Column, Sampler, parse_column
from ..evaluation.progress import Tell, silent
from ..evaluation.references import converged_columns
from ..evaluation.subject import Subject, common
from ..policies.certified import Certificate, Certified, Point
from . import certificate as papers
from .cache import Cache, Score
from .control import choose
from .ladder import Rung, rungs, runnable
from .planning import enough, prompts_needed
from .plot import front
from .risk import by_group
from .samples import Prompts, Samples, divide
from .scores import Gauge, Scores, full_calls
from .search import FIRST, Bar, expected_calls, search
from .target import Known, Target

FULL: str = "full"
CONVERGED: str = "converged"
TESTED = 4  # settings that the final test is expected to draw
Say = Callable[[str], None]


def warned(what: str) -> None:
    """Say it as a warning of Python's."""
    warnings.warn(what, GuestWarning, stacklevel=5)


def unsaid(what: str) -> None:
    """Say it to nobody."""


@dataclass(frozen=True)
class Options:
    """What `calibrate` is told, in the words of its arguments."""

    confidence: float | None = 0.9
    settings: tuple[str, ...] = ()
    samplers: bool = False
    reference: str = FULL
    groups: str | None = None
    solver: str | None = None
    grid: str | None = None
    steps: int | None = None
    seed: int = 0
    batch: int = 8
    limit: int | None = None
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """A calibration, all of it understood and held against the model; `run` makes it.

    Args:
        subject: The model.
        target: What is asked for.
        options: How.
        samples: Prompts and seeds.
        sampler: Solver, grid and steps of the full run.
        full: The full run.
        rungs: Settings to choose from.
        gauge: The metric.
    """

    subject: Subject
    target: Target
    options: Options
    samples: Samples
    sampler: Sampler
    full: Column
    rungs: Sequence[Rung]
    gauge: Gauge

    @classmethod
    def of(
        cls,
        subject: Subject,
        prompts: Prompts,
        target: str,
        options: Options,
        metric: Callable[[Any, Any], float] | None = None,
        better: str = "higher",
    ) -> Calibration:
        """Understand all that is asked for, before anything is drawn. Raises as `calibrate`."""
        known = {}
        if metric is not None:
            if better not in ("higher", "lower"):
                raise SpecError(f"better: expected 'higher' or 'lower', got {better!r}.")
            known = {getattr(metric, "__name__", "metric"): Known(better)}  # type: ignore[arg-type]  # just checked
        wanted = Target.parse(target, known)
        confidence = _confidence(wanted, options.confidence)
        samples = divide(prompts, wanted, confidence, groups=options.groups, limit=options.limit, seed=options.seed)
        if confidence is not None:
            enough(wanted, confidence, len(samples.test), samples.groups(samples.test))
        subject.check([shot.prompt.text for shot in (*samples.search, *samples.test)])
        sampler = common(subject, options.solver, options.grid, options.steps)
        full = subject.admit(parse_column("fixed", *sampler))
        ladder = rungs(subject, sampler, options.settings, options.samplers)
        gauge = Gauge.of(wanted.metric, subject, metric if wanted.metric in known else None)
        return cls(subject, wanted, options, samples, sampler, full, ladder, gauge)

    @property
    def doubled(self) -> str:
        """What is said of prompts that were there more than once."""
        return f"{self.samples.doubles} of the prompts were there before; each is counted once."

    @property
    def plan(self) -> list[str]:
        """What is going to be done, and what it takes, said beforehand."""
        test, searching = len(self.samples.test), len(self.samples.search)
        confidence = self.options.confidence
        sure = "in the mean over calibrations" if confidence is None else f"with confidence {confidence:.0%}"
        lines = [f"Asked for: {self.target.words}, {sure}."]
        lines.append(f"{searching} prompts order {len(self.rungs)} settings, {test} others test them.")
        if confidence is not None:
            lines.append(self._price(confidence))
        return lines

    def _price(self, confidence: float) -> str:
        """How many prompts it takes, over all groups."""
        groups = self.samples.groups(self.samples.test)
        found = prompts_needed(self.target, confidence, groups=len(set(groups or ("",))))
        of = f" over {found.groups} groups, each of which is proved by itself" if groups else ""
        fraction = self.target.fraction
        better = f"is better by {found.slack:.3g}" if fraction is None else f"meets it on {fraction + found.slack:.1%}"
        likely = "more than 20,000 in a group" if found.likely is None else f"{found.likely:,}"
        return (
            f"The test needs at least {found.fewest} prompts{of}: with so few, only a setting that never fails is "
            f"accepted. To accept one that {better} with chance {found.power:.0%} takes {likely}."
        )

    def run(self, root: Path, tell: Tell = silent, say: Say = warned, note: Say = unsaid) -> Certified:
        """Draw, search, test. Raises TargetMissed where no setting is accepted.

        Args:
            root: Of the cache.
            tell: Of the progress.
            say: Of what a user should know: families that do not run here, caches that are ignored.
            note: Of how long it takes.
        """
        self.subject.load([self.full])
        reference = self._reference()
        kept, ignored = Cache.open(root, papers.configuration(self.subject, self.full))
        if ignored:
            say(ignored)
        scores = Scores(self.subject, reference, self.gauge, kept, self.options.batch, tell)
        ready, left_out = runnable(self.subject, self.rungs, self.samples.search[0].item)
        for why in left_out:
            say(why)
        scores.total = self._expected(len(ready), scores)
        if said := self._estimate(ready[0].column, scores):
            note(said)
        bar = Bar(self.target, self._delta, self._smallest)
        order = search(ready, self.samples.search, scores, bar, self.samples.groups(self.samples.search))
        tested = self._test(order, scores)
        return self._conclude(ready, tested, scores)

    def _reference(self) -> Column:
        said = self.options.reference
        if said == FULL:
            return self.full
        if said == CONVERGED:
            return converged_columns(self.subject)[0]
        return self.subject.admit(parse_column(said, *self.sampler))

    @property
    def _delta(self) -> float | None:
        return None if self.options.confidence is None else 1 - self.options.confidence

    @property
    def _smallest(self) -> int:
        """Prompts of the test, of its smallest group."""
        groups = self.samples.groups(self.samples.test)
        return len(self.samples.test) if groups is None else min(groups.count(name) for name in set(groups))

    def _expected(self, ready: int, scores: Scores) -> float:
        """Calls that are still to be made, guessed."""
        full, test, searching = full_calls(self.full), self.samples.test, self.samples.search
        references = full_calls(scores.reference) * len(scores.missing((*searching, *test)))
        return references + expected_calls(ready, len(searching), full) + TESTED * len(test) * 0.35 * full

    def _estimate(self, column: Column, scores: Scores) -> str:
        """How long it takes, from the first samples that it needs anyway; nothing where those are there already."""
        scores.of(column, self.samples.search[:FIRST])
        if not scores.done:
            return ""
        minutes = (scores.total - scores.done) * scores.seconds / scores.done / 60
        took = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{max(1.0, 60 * minutes):.0f} seconds"
        return (
            f"About {scores.total:,.0f} calls, {took} here. Full runs that are cached and settings that fall "
            f"out early make it less."
        )

    def _test(self, order: Sequence[Rung], scores: Scores) -> list[tuple[Rung, list[Score]]]:
        """Draw settings on the test's prompts until one fails, that one included."""
        tested: list[tuple[Rung, list[Score]]] = []
        groups = self.samples.groups(self.samples.test)
        for rung in order:
            found = scores.of(rung.column, self.samples.test, "test")
            tested.append((rung, found))
            if not self._passes(tested, groups):
                break
        return tested

    def _passes(self, tested: Sequence[tuple[Rung, list[Score]]], groups: list[str] | None) -> bool:
        """Whether the latest setting is accepted, and the next may be looked at."""
        delta = self._delta
        if delta is None:
            table = [[one.value for one in found] for _, found in tested]
            picked = choose(self.target, table, [0.0] * len(table), None, groups, "conformal")
            return len(tested) - 1 in picked.accepted
        values = [one.value for one in tested[-1][1]]
        return max(by_group(self.target, values, groups).values()) <= delta

    def _conclude(self, ready: Sequence[Rung], tested: Sequence[tuple[Rung, list[Score]]], scores: Scores) -> Certified:
        groups = self.samples.groups(self.samples.test)
        table = [[one.value for one in found] for _, found in tested]
        calls = [sum(one.calls for one in found) / len(found) for _, found in tested]
        method = "conformal" if self._delta is None else "fixed_sequence"
        choice = choose(self.target, table, calls, self._delta, groups, method)  # type: ignore[arg-type]  # a Method
        points = [
            self._point(rung, found, True, i in choice.accepted, groups) for i, (rung, found) in enumerate(tested)
        ]
        if choice.index is None:
            raise TargetMissed(self._missed(points[choice.nearest]))
        looked = {rung.column.spec for rung, _ in tested}
        for rung in ready:
            seen = [one for one in scores.known(rung.column, self.samples.search) if one is not None]
            if rung.column.spec not in looked and seen:
                points.append(self._point(rung, seen, False, False, None))
        points.sort(key=lambda p: p.calls)
        return self._certified(points, scores)

    def _point(self, rung: Rung, found: list[Score], tested: bool, accepted: bool, groups: list[str] | None) -> Point:
        scheduler = papers.scheduler_under(self.subject, rung.column)
        confidence = self.options.confidence
        return papers.point(rung, found, self.target, confidence, scheduler, tested, accepted, groups)

    def _missed(self, nearest: Point) -> str:
        found = papers.measured(nearest, self.target)
        p = "" if nearest.p is None else f" (p = {nearest.p:.2g})"
        return (
            f"None of {len(self.rungs)} settings can be promised to meet '{self.target.spell()}'. The nearest is "
            f"{nearest.label} with {nearest.calls:.1f} calls: {found}{p}. Ask for less, give more prompts, or "
            f"offer safer settings."
        )

    def _certified(self, points: Sequence[Point], scores: Scores) -> Certified:
        certificate = Certificate(
            target=self.target.spell(),
            promise=self.target.words,
            confidence=self.options.confidence,
            method=self._method,
            reference="" if self.gauge.alone else scores.reference.spec,
            full=self.full.spec,
            points=tuple(points),
            full_calls=full_calls(self.full),
            model=self.subject.name,
            identity=papers.identity_of(self.subject),
            call=papers.call_of(self.subject, self.full),
            prompts=self.samples.about,
            seed=self.options.seed,
            spent={name: round(calls, 1) for name, calls in scores.spent.items()},
            versions=papers.versions(),
            date=papers.today(),
            source=self.options.source,
        )
        made, _ = Certified.using(certificate, allow_sampler=True)
        files = {
            "README.md": papers.card(certificate, self.target),
            "prompts.jsonl": papers.prompt_lines(self.samples.search, self.samples.test),
            "front.png": front(certificate, self.target),
        }
        return replace(made, files=files)

    @property
    def _method(self) -> str:
        if self.options.confidence is None:
            return "Conformal risk control on the monotonised losses"
        test = "exact binomial test" if self.target.fraction is not None else "betting test"
        each = " in every group" if self.samples.by else ""
        return f"Learn then Test: fixed sequence, {test}{each}"


def _confidence(target: Target, said: float | None) -> float | None:
    """As said. Raises SpecError out of range, or where none is said of a share of prompts."""
    if said is None:
        if target.fraction is not None:
            raise SpecError("confidence: a share of prompts is promised with a confidence, such as 0.9; got none.")
        return None
    if not 0.5 < said < 1:
        raise SpecError(f"confidence: expected a number in (0.5, 1), such as 0.9, got {said}.")
    return said
