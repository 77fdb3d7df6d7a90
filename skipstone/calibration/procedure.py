"""A calibration, all of it understood and held against the model before anything is drawn, and run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import GuestWarning, SpecError, TargetMissedError
from ..evaluation.columns import Column, Sampler, parse_column
from ..evaluation.progress import ProgressCallback, no_progress
from ..evaluation.references import converged_columns
from ..evaluation.subject import Subject, draws_without_prompt, resolve_sampler
from ..integrations.students import student_facts
from ..policies.certified import CalibrationPoint, Certificate, Certified
from . import certificate as certificate_module
from .cache import Cache, SampleScore
from .candidates import CandidateSetting, candidates, runnable
from .control import choose_setting
from .planning import check_enough_prompts, prompts_needed
from .plot import plot_front
from .prompt_split import SEARCH_SHARE, PromptSource, SampleSplit, split_prompts, split_seeds
from .risk import p_value_by_group
from .scores import CachedScores, PictureMeasure, full_calls
from .search import FIRST, PassCriterion, expected_calls, search
from .target import Target, user_metric

FULL: str = "full"
CONVERGED: str = "converged"
EXPECTED_NUM_TESTED = 4  # settings that the final test is expected to draw
MessageCallback = Callable[[str], None]


def warn_user(what: str) -> None:
    """Emit the message as a GuestWarning."""
    warnings.warn(what, GuestWarning, stacklevel=5)


def no_message(what: str) -> None:
    """Ignore the message."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of `skipstone.calibrate` beyond the usual ones.

        skipstone.calibrate(pipe, prompts, target, options=skipstone.CalibrationOptions(samplers=True, seed=1))

    Args:
        samplers: Also try fixed samplers in place of the model's own; see `auto`.
        reference: "full", the model's own run at full steps; "converged", a solver with many steps; or a column.
        groups: "category": the promise is made to every category of prompts, each of which must be proved by itself.
        metric: A function (picture, reference) -> number, pictures being (height, width, 3) in [0, 1] and videos
            (frames, height, width, 3); the target calls it by its name.
        better: "higher" or "lower", of `metric`.
        solver, grid, steps: Of the full run; the model's own by default.
        guidance: Of every run; the model's own by default.
        arguments: More of a pipeline's call, such as {"height": 512}.
        seed: Of the split, and of the samples' seeds.
        batch: Samples of one call, >= 1.
        limit: Prompts that are taken; all of them by default.
        samples: Of a model that takes no prompts: how many, 2 to 100,000, each with a seed drawn at random.
        prompt_format: Of a file of prompts: txt, csv, tsv, json or jsonl; the end of its name by default.
        source: Where the model is, for the certificate: `skipstone audit` loads it from there.
    """

    samplers: bool = False
    reference: str = FULL
    groups: str | None = None
    metric: Callable[[Any, Any], float] | None = None
    better: str = "higher"
    solver: str | None = None
    grid: str | None = None
    steps: int | None = None
    guidance: float | None = None
    arguments: Mapping[str, Any] | None = None
    seed: int = 0
    batch: int = 8
    limit: int | None = None
    samples: int | None = None
    prompt_format: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """A calibration, all of it understood and held against the model; `run` makes it.

    Args:
        subject: The model.
        target: What is asked for.
        confidence: That the promise holds; None where it is to hold in the mean over calibrations.
        options: How.
        samples: Prompts and seeds.
        sampler: Solver, grid and steps of the full run.
        full: The full run.
        candidates: Settings to choose from.
        measure: The metric.
    """

    subject: Subject
    target: Target
    confidence: float | None
    options: CalibrationOptions
    samples: SampleSplit
    sampler: Sampler
    full: Column
    candidates: Sequence[CandidateSetting]
    measure: PictureMeasure

    @classmethod
    def of(
        cls,
        subject: Subject,
        prompts: PromptSource | None,
        target: str,
        confidence: float | None,
        settings: Sequence[str],
        options: CalibrationOptions,
    ) -> Calibration:
        """Parse and check all arguments before anything is drawn. Raises as `calibrate`."""
        known = user_metric(options.metric, options.better)
        wanted = Target.parse(target, known)
        _check_confidence(wanted, confidence)
        samples = _split(subject, prompts, wanted, confidence, options)
        if confidence is not None:
            check_enough_prompts(wanted, confidence, len(samples.test), samples.groups(samples.test), samples.of)
        subject.check([eval_sample.prompt.text for eval_sample in (*samples.search, *samples.test)])
        sampler = resolve_sampler(subject, options.solver, options.grid, options.steps)
        full = subject.resolve_column(parse_column("fixed", *sampler))
        ladder = candidates(subject, sampler, settings, options.samplers)
        measure = PictureMeasure.of(wanted.metric, subject, options.metric if wanted.metric in known else None)
        return cls(subject, wanted, confidence, options, samples, sampler, full, ladder, measure)

    @property
    def duplicates_message(self) -> str:
        """The message about duplicate prompts."""
        return f"{self.samples.num_duplicates} of the prompts were there before; each is counted once."

    @property
    def plan(self) -> list[str]:
        """Lines that announce what the calibration will do and what it will cost."""
        test, searching = len(self.samples.test), len(self.samples.search)
        confidence = self.confidence
        sure = "in the mean over calibrations" if confidence is None else f"with confidence {confidence:.0%}"
        of = self.samples.of
        lines = [f"Asked for: {self.target.promise(of)}, {sure}."]
        lines.append(f"{searching} {of} order {len(self.candidates)} settings, {test} others test them.")
        if confidence is not None:
            lines.append(self._price(confidence))
        return lines

    def _price(self, confidence: float) -> str:
        """Line that says how many prompts the test needs, over all groups."""
        groups = self.samples.groups(self.samples.test)
        found = prompts_needed(self.target, confidence, groups=len(set(groups or ("",))))
        parts = f" over {found.groups} groups, each of which is proved by itself" if groups else ""
        fraction = self.target.fraction
        better = f"is better by {found.slack:.3g}" if fraction is None else f"meets it on {fraction + found.slack:.1%}"
        likely = "more than 20,000 in a group" if found.likely is None else f"{found.likely:,}"
        return (
            f"The test needs at least {found.fewest} {self.samples.of}{parts}: with so few, only a setting that "
            f"never fails is accepted. To accept one that {better} with chance {found.power:.0%} takes {likely}."
        )

    def run(
        self,
        root: Path,
        on_progress: ProgressCallback = no_progress,
        on_message: MessageCallback = warn_user,
        note: MessageCallback = no_message,
    ) -> Certified:
        """Draw, search, test. Raises TargetMissedError where no setting is accepted.

        Args:
            root: Folder of the cache.
            on_progress: Called with the progress.
            on_message: Called with what a user should know: settings that do not run here, caches that are ignored.
            note: Called with how long it takes.
        """
        self.subject.load([self.full])
        reference = self._reference()
        kept, ignored = Cache.open(root, certificate_module.configuration(self.subject, self.full))
        if ignored:
            on_message(ignored)
        scores = CachedScores(self.subject, reference, self.measure, kept, self.options.batch, on_progress)
        ready, left_out = runnable(self.subject, self.candidates, self.samples.search[0].request)
        for why in left_out:
            on_message(why)
        scores.total = self._expected(len(ready), scores)
        if said := self._estimate(ready[0].column, scores):
            note(said)
        bar = PassCriterion(self.target, self._delta, self._smallest)
        order = search(ready, self.samples.search, scores, bar, self.samples.groups(self.samples.search))
        tested = self._test(order, scores)
        return self._conclude(ready, tested, scores)

    def _reference(self) -> Column:
        said = self.options.reference
        if said == FULL:
            return self.full
        if said == CONVERGED:
            return converged_columns(self.subject)[0]
        return self.subject.resolve_column(parse_column(said, *self.sampler))

    @property
    def _delta(self) -> float | None:
        return None if self.confidence is None else 1 - self.confidence

    @property
    def _smallest(self) -> int:
        """Number of the test's prompts in its smallest group."""
        groups = self.samples.groups(self.samples.test)
        return len(self.samples.test) if groups is None else min(groups.count(name) for name in set(groups))

    def _expected(self, ready: int, scores: CachedScores) -> float:
        """Estimated number of calls still to be made."""
        full, test, searching = full_calls(self.full), self.samples.test, self.samples.search
        references = full_calls(scores.reference) * len(scores.missing((*searching, *test)))
        return references + expected_calls(ready, len(searching), full) + EXPECTED_NUM_TESTED * len(test) * 0.35 * full

    def _estimate(self, column: Column, scores: CachedScores) -> str:
        """Estimate the duration from the first samples, which are needed anyway; empty if they are cached."""
        scores.of(column, self.samples.search[:FIRST])
        if not scores.done:
            return ""
        minutes = (scores.total - scores.done) * scores.seconds / scores.done / 60
        took = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{max(1.0, 60 * minutes):.0f} seconds"
        return (
            f"About {scores.total:,.0f} calls, {took} here. Full runs that are cached and settings that fall "
            f"out early make it less."
        )

    def _test(
        self, order: Sequence[CandidateSetting], scores: CachedScores
    ) -> list[tuple[CandidateSetting, list[SampleScore]]]:
        """Draw settings on the test's prompts until one fails, that one included."""
        tested: list[tuple[CandidateSetting, list[SampleScore]]] = []
        groups = self.samples.groups(self.samples.test)
        for candidate in order:
            found = scores.of(candidate.column, self.samples.test, "test")
            tested.append((candidate, found))
            if not self._passes(tested, groups):
                break
        return tested

    def _passes(self, tested: Sequence[tuple[CandidateSetting, list[SampleScore]]], groups: list[str] | None) -> bool:
        """Whether the latest setting is accepted, so that the next may be tested."""
        delta = self._delta
        if delta is None:
            table = [[one.value for one in found] for _, found in tested]
            picked = choose_setting(self.target, table, [0.0] * len(table), None, groups, "conformal")
            return len(tested) - 1 in picked.accepted
        values = [one.value for one in tested[-1][1]]
        return max(p_value_by_group(self.target, values, groups).values()) <= delta

    def _conclude(
        self,
        ready: Sequence[CandidateSetting],
        tested: Sequence[tuple[CandidateSetting, list[SampleScore]]],
        scores: CachedScores,
    ) -> Certified:
        groups = self.samples.groups(self.samples.test)
        table = [[one.value for one in found] for _, found in tested]
        calls = [sum(one.calls for one in found) / len(found) for _, found in tested]
        method = "conformal" if self._delta is None else "fixed_sequence"
        choice = choose_setting(self.target, table, calls, self._delta, groups, method)  # type: ignore[arg-type]  # a Method
        points = [
            self._point(candidate, found, True, i in choice.accepted, groups)
            for i, (candidate, found) in enumerate(tested)
        ]
        if choice.index is None:
            raise TargetMissedError(self._missed(points[choice.nearest]))
        looked = {candidate.column.spec for candidate, _ in tested}
        for candidate in ready:
            seen = [one for one in scores.known(candidate.column, self.samples.search) if one is not None]
            if candidate.column.spec not in looked and seen:
                points.append(self._point(candidate, seen, False, False, None))
        points.sort(key=lambda p: p.calls)
        return self._certified(points, scores)

    def _point(
        self,
        candidate: CandidateSetting,
        found: list[SampleScore],
        tested: bool,
        accepted: bool,
        groups: list[str] | None,
    ) -> CalibrationPoint:
        scheduler = certificate_module.scheduler_config_of(self.subject, candidate.column)
        return certificate_module.point(
            candidate, found, self.target, self.confidence, scheduler, tested, accepted, groups
        )

    def _missed(self, nearest: CalibrationPoint) -> str:
        found = certificate_module.describe_measurement(nearest, self.target, self.samples.of)
        p = "" if nearest.p is None else f" (p = {nearest.p:.2g})"
        return (
            f"None of {len(self.candidates)} settings can be promised to meet '{self.target.spell()}'. The nearest is "
            f"{nearest.label} with {nearest.calls:.1f} calls: {found}{p}. {self._advise()}"
        )

    def _advise(self) -> str:
        """What to type where no setting was accepted."""
        usual = f"Ask for less, give more {self.samples.of}, or offer safer settings."
        if self.measure.needs_no_reference or self.options.reference != FULL or self._any_of_the_full_sampler():
            return usual
        return (
            f"Closeness is to the full run {self.full.spec}, whose {self.full.steps} steps have errors of their own, "
            f"and every setting has another solver or grid, so that it does not repeat them. Take a full run with "
            f"smaller errors (--steps {2 * self.full.steps}; options: steps), offer settings on the full run's own "
            f"solver and grid (-p 'error_control(tol=0.002)' -p 'error_control(tol=0.005)'; settings), measure "
            f"closeness to the converged solution (--reference converged), or ask for less."
        )

    def _any_of_the_full_sampler(self) -> bool:
        """Whether a setting has the solver and grid of the full run, and so errors much like its own."""
        mine = self.full.solver, self.full.grid
        return any((one.column.solver, one.column.grid) == mine for one in self.candidates)

    def _certified(self, points: Sequence[CalibrationPoint], scores: CachedScores) -> Certified:
        certificate = Certificate(
            target=self.target.spell(),
            promise=self.target.promise(self.samples.of),
            confidence=self.confidence,
            method=self._method,
            reference="" if self.measure.needs_no_reference else scores.reference.spec,
            full=self.full.spec,
            points=tuple(points),
            full_calls=full_calls(self.full),
            model=self.subject.name,
            identity=certificate_module.model_identity(self.subject),
            call=certificate_module.call_arguments_of(self.subject, self.full),
            prompts=self.samples.about,
            seed=self.options.seed,
            spent={name: round(calls, 1) for name, calls in scores.spent.items()},
            versions=certificate_module.versions(),
            date=certificate_module.today(),
            source=self.options.source,
        )
        made, _ = Certified.from_certificate(certificate, allow_sampler=True)
        if student := student_facts(made):
            certificate = replace(certificate, identity={**certificate.identity, **student})
            made, _ = Certified.from_certificate(certificate, allow_sampler=True)
        files = {
            "README.md": certificate_module.render_card(certificate, self.target),
            "prompts.jsonl": certificate_module.prompt_lines(self.samples.search, self.samples.test),
            "front.png": plot_front(certificate, self.target),
        }
        return replace(made, files=files)

    @property
    def _method(self) -> str:
        if self.confidence is None:
            return "Conformal risk control on the monotonised losses"
        test = "exact binomial test" if self.target.fraction is not None else "betting test"
        each = " in every group" if self.samples.by else ""
        return f"Learn then Test: fixed sequence, {test}{each}"


def _split(
    subject: Subject,
    prompts: PromptSource | None,
    target: Target,
    confidence: float | None,
    options: CalibrationOptions,
) -> SampleSplit:
    """Prompts, or for a model that takes none random seeds. Raises SpecError, PromptError."""
    if prompts is not None or not draws_without_prompt(subject):
        if options.samples is not None:
            raise SpecError("samples: is for models that take no prompts: give prompts, and leave it out.")
        given = () if prompts is None else prompts
        return split_prompts(
            given, target, confidence, groups=options.groups, limit=options.limit, seed=options.seed,
            prompt_format=options.prompt_format,
        )  # fmt: skip
    if options.groups is not None:
        raise SpecError(f"groups: {subject.name} takes no prompts, so that there are no categories. Leave it out.")
    if options.samples is None:
        raise SpecError(_say_samples(subject, target, confidence))
    return split_seeds(options.samples, target, confidence, options.seed)


def _say_samples(subject: Subject, target: Target, confidence: float | None) -> str:
    """What to type where the number of samples is missing."""
    asked = f"{subject.name} takes no prompts: say how many samples to calibrate on (samples=, --samples)."
    if confidence is None:
        return f"{asked} For example 64."
    found = prompts_needed(target, confidence)
    count = math.ceil((found.likely or found.fewest) / (1 - SEARCH_SHARE))
    return f"{asked} The final test needs at least {found.fewest}, and a third of all search: try {count}."


def _check_confidence(target: Target, confidence: float | None) -> None:
    """Raise SpecError out of range, or where a share of prompts is promised without one."""
    if confidence is None:
        if target.fraction is not None:
            raise SpecError("confidence: a share of prompts is promised with a confidence, such as 0.9; got none.")
    elif not 0.5 < confidence < 1:
        raise SpecError(f"confidence: expected a number in (0.5, 1), such as 0.9, got {confidence}.")
