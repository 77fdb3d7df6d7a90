"""A whole benchmark in one folder: prompts, tuned baselines, measured rows, seconds."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from skipstone import __version__
from skipstone.engine.contracts import Policy
from skipstone.errors import BenchError, MetricError, SpecError
from skipstone.evaluation.columns import Column, Sampler, check_names_apart, expand_specs, parse_column
from skipstone.evaluation.fingerprint import describe_machine, fingerprint
from skipstone.evaluation.folder_lock import lock_folder
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.prompts import Prompt, describe_prompts, load_prompts
from skipstone.evaluation.references import EvaluationSample, References, converged_columns
from skipstone.evaluation.subject import Subject, resolve_sampler
from skipstone.metrics import Metric, SetMetric, metrics_available
from skipstone.policies.seen_prompts import digest_prompt, seen_prompts
from skipstone.registry import find_class

from .baselines import DEFAULT_POLICIES, Baselines, make_peer_rows, make_policy_row
from .runner import BenchRow, BenchRunner, time_rows
from .set_metrics import measure_set_metrics
from .store import Header, Store
from .summary import RECORD_NAMES
from .tuner import Tuner

S = TypeVar("S")
NONE = "none"
TUNING_SEED = 10_000  # first seed of tuning prompts, far from those of the test


@dataclass(frozen=True)
class PromptSettings:
    """What is generated.

    Args:
        prompts: A set or a file.
        tuning: Another for tuning; "" takes prompts of the same set that are not in the test.
        prompt_format: Of files: txt, csv, tsv, json or jsonl; None takes the ends of their names.
        limit: Prompts of the test; None takes all.
        tuned: Samples to tune on, >= 1.
        categories: Those to use; None uses all.
        seeds: Samples of each prompt, >= 1.
        seed: The first one.
        allow_seen: Test on prompts that a row was calibrated on or learnt from, too.
    """

    prompts: str
    tuning: str = ""
    prompt_format: str | None = None
    limit: int | None = 32
    tuned: int = 8
    categories: Sequence[str] | None = None
    seeds: int = 1
    seed: int = 0
    allow_seen: bool = False


@dataclass(frozen=True)
class RowSettings:
    """What is compared.

    Args:
        policies: Rows of ours, or sets of rows; DEFAULT_POLICIES where there are none, "none" for none at all.
        peers: Specs of peers; all of them at their own settings where there are none, "none" for none at all.
        budgets: Calls at which baselines are tuned, below the full run's.
        searched: Tuning prompts that the best common mask is searched on, >= 0: hundreds of masks each.
        oracle: Samples of which the greedy oracle is searched, >= 0: hundreds of runs each.
    """

    policies: Sequence[str] = ()
    peers: Sequence[str] = ()
    budgets: Sequence[int] = (10, 15, 20, 25)
    searched: int = 4
    oracle: int = 0


@dataclass(frozen=True)
class ReferenceSettings:
    """What rows are compared with.

    Args:
        solver, grid, steps: Of the full run; the model's own where they are None.
        reference: The full run as a column.
        converged: Two columns that stand for the exact solution; chosen by the model where there are none.
    """

    solver: str | None = None
    grid: str | None = None
    steps: int | None = None
    reference: str = "fixed"
    converged: Sequence[str] = ()


@dataclass(frozen=True)
class MeasurementSettings:
    """How rows are measured.

    Args:
        batch: Samples of one call, >= 1.
        timed: Samples that are timed, >= 0.
        repeats: Times that they are timed, >= 1.
        metrics: Names of metrics; all that can be measured where there are none.
    """

    batch: int = 8
    timed: int = 4
    repeats: int = 5
    metrics: Sequence[str] = ()


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a benchmark."""

    prompts: PromptSettings
    rows: RowSettings = field(default_factory=RowSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    measurement: MeasurementSettings = field(default_factory=MeasurementSettings)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> BenchSettings:
        """Settings by the names of all their fields; names of other things are passed over."""

        def group(kind: type[S]) -> S:
            names = [f.name for f in fields(kind)]  # type: ignore[arg-type]  # all are dataclasses
            return kind(**{name: options[name] for name in names if name in options})

        return cls(group(PromptSettings), group(RowSettings), group(ReferenceSettings), group(MeasurementSettings))


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of one model, whose settings have been checked; `run` makes it.

    Args:
        subject: The model.
        settings: What is asked for.
        sampler: Solver, grid and steps of the full run.
        full: The full run.
        eval_samples, tuning: Samples of the test, and those that baselines are tuned on.
        rows: Policies and peers.
        reference_metrics, picture_metrics: As `BenchRunner` has them.
        sets: Metrics of all pictures of a row.
        absent: (metric, why it cannot be measured).
        about: The prompts, for the header.
    """

    subject: Subject
    settings: BenchSettings
    sampler: Sampler
    full: Column
    eval_samples: Sequence[EvaluationSample]
    tuning: Sequence[EvaluationSample]
    rows: Sequence[BenchRow]
    reference_metrics: Mapping[str, Metric]
    picture_metrics: Mapping[str, Metric]
    sets: Sequence[SetMetric]
    absent: Sequence[tuple[str, str]]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_settings(cls, subject: Subject, settings: BenchSettings) -> Benchmark:
        """Check all settings before anything is loaded.

        Raises:
            SpecError, PromptError, MetricError: a setting that is wrong.
        """
        against, prompts = settings.reference, settings.prompts
        sampler = resolve_sampler(subject, against.solver, against.grid, against.steps)
        full = subject.resolve_column(parse_column(against.reference, *sampler))
        if full.policy is None or full.peer is not None:
            raise SpecError(f"Expected a --reference that is a policy, e.g. fixed, got {against.reference!r}.")
        for calls in settings.rows.budgets:
            if not 0 < calls < sampler.steps:
                raise SpecError(f"Expected a --budget between 1 and {sampler.steps - 1} calls, got {calls}.")
        if against.converged:
            converged_columns(subject, specs=against.converged)
        test, tuning, about = _load_prompts(prompts)
        subject.check([prompt.text for prompt in (*test, *tuning)])
        seeds = range(prompts.seed, prompts.seed + prompts.seeds)
        eval_samples = [EvaluationSample(prompt, seed) for prompt in test for seed in seeds]
        tuned = [EvaluationSample(prompt, TUNING_SEED + k) for k, prompt in enumerate(tuning)]
        metrics = _make_metrics(subject, settings.measurement.metrics)
        rows = _make_rows(settings.rows, sampler)
        if not prompts.allow_seen:
            _check_unseen(rows, test)
        return cls(subject, settings, sampler, full, eval_samples, tuned, rows, *metrics, about)

    def run(
        self,
        out: Path,
        resume: bool,
        command: str,
        options: Mapping[str, Any],
        on_progress: ProgressCallback = no_progress,
    ) -> Store:
        """Make what is missing.

        Raises:
            BenchError: the folder holds results that these cannot be added to.
            OutputError: another command writes to the folder.
        """
        with lock_folder(out):
            return self._run(out, resume, command, options, on_progress)

    def _run(
        self, out: Path, resume: bool, command: str, options: Mapping[str, Any], on_progress: ProgressCallback
    ) -> Store:
        Store.check(out, resume)
        _disable_tf32()
        self.subject.load([self.full])
        converged = converged_columns(self.subject, specs=self.settings.reference.converged)
        header = self._header(converged, command, options)
        store = Store.open(out, header) if resume else Store.create(out, header)
        references = References(out, self.full, converged)
        tuner = Tuner(self.subject, references, store, self.tuning, on_progress)
        searcher = self._fewer(tuner, self.tuning[: self.settings.rows.searched])
        baselines = Baselines(self.full, self.sampler, self.settings.rows.budgets, tuner, searcher)
        race = BenchRunner(
            self.subject,
            references,
            self.reference_metrics,
            self.picture_metrics,
            self.settings.measurement.batch,
            on_progress,
        )
        on_progress("Loading", 0, 1)
        first = {row.info.spec: row for row in self.rows}
        rows = list({**first, **{row.info.spec: row for row in baselines.rows()}}.values())
        rows.sort(key=lambda row: row.info.group != "full")
        store = race.run(store, self.eval_samples, rows)
        store = race.measure_agreement(store, self.eval_samples)
        store = self._oracle(store, baselines, race)
        store = measure_set_metrics(store, self.sets, on_progress)
        measured = self.settings.measurement
        if measured.timed:
            timed = self.eval_samples[: measured.timed]
            time_rows(self.subject, store, timed, rows, self.full, measured.repeats, on_progress)
        return store

    def _oracle(self, store: Store, baselines: Baselines, race: BenchRunner) -> Store:
        """The best mask of each of the first samples, searched on its own converged solution."""
        way = baselines.column("fixed").spec.partition(" @ ")[2]
        for eval_sample in self.eval_samples[: self.settings.rows.oracle]:
            own = self._fewer(baselines.tuner, [eval_sample])
            for found in baselines.greedy(own, "greedy oracle", "oracle"):
                spec = f"oracle({found.info.knob}) @ {way}"
                info = replace(found.info, spec=spec, label=spec.partition(" @ ")[0])
                store = race.run(store, [eval_sample], [BenchRow(found.column, info)])
        return store

    @staticmethod
    def _fewer(tuner: Tuner, eval_samples: Sequence[EvaluationSample]) -> Tuner:
        return Tuner(tuner.subject, tuner.references, tuner.store, eval_samples, tuner.on_progress)

    def _header(self, converged: Sequence[Column], command: str, options: Mapping[str, Any]) -> Header:
        subject = self.subject
        return Header(
            version=__version__,
            model=subject.name,
            fingerprint=fingerprint(subject, self.eval_samples, self.tuning),
            guidance=subject.guidance,
            settings=subject.settings,
            reference=self.full.spec,
            converged=tuple(column.spec for column in converged),
            machine=describe_machine(subject),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            command=command,
            prompts={**self.about, "absent": dict(self.absent)},
            options=options,
        )


def _load_prompts(settings: PromptSettings) -> tuple[list[Prompt], list[Prompt], dict[str, Any]]:
    """Prompts of the test and of the tuning, no prompt in both, and their description for the header."""
    tuned = settings.tuned
    load = partial(load_prompts, prompt_format=settings.prompt_format)
    more = None if settings.limit is None or settings.tuning else settings.limit + tuned
    found = load(settings.prompts, limit=more, categories=settings.categories)
    if settings.tuning:
        test = load(settings.prompts, limit=settings.limit, categories=settings.categories)
        texts = {prompt.text for prompt in test}
        tuning = [p for p in load(settings.tuning, limit=tuned + len(texts)) if p.text not in texts][:tuned]
        source = settings.tuning
    else:
        count = len(found) if settings.limit is None else settings.limit
        spare = max(len(found) - count, len(found) // 2)  # of few prompts, tuning takes no more than half
        kept = min(count, len(found) - min(tuned, spare))
        test, source = found[:kept], "prompts of the same set that are not in the test"
        texts = {prompt.text for prompt in test}
        tuning = [p for p in found[kept:] if p.text not in texts][:tuned]
    if not tuning:
        tuning, source = test[:tuned], "the prompts of the test under other seeds: there are no others"
    seeds = list(range(settings.seed, settings.seed + settings.seeds))
    about = {"set": Path(settings.prompts).name, **describe_prompts(settings.prompts, test)}
    return test, tuning, {**about, "seeds": seeds, "tuning": source, "tuned": len(tuning)}


def _make_rows(settings: RowSettings, sampler: Sampler) -> list[BenchRow]:
    """Rows of policies, then of peers. Raises SpecError, also where one policy is named in two ways."""
    policies = [] if list(settings.policies) == [NONE] else settings.policies or DEFAULT_POLICIES
    columns = [parse_column(spec, *sampler, run_files=True) for spec in expand_specs(policies)]
    check_names_apart(columns)
    rows = [make_policy_row(column) for column in columns]
    return rows + ([] if list(settings.peers) == [NONE] else make_peer_rows(sampler, settings.peers))


def _check_unseen(rows: Sequence[BenchRow], test: Sequence[Prompt]) -> None:
    """Raise BenchError where a row was calibrated on prompts of the test, or learnt from them."""
    sums = {digest_prompt(prompt.text): prompt.text for prompt in test}
    for row in rows:
        policy = row.column.policy
        if isinstance(policy, Policy) and (seen := sums.keys() & seen_prompts(policy)):
            raise BenchError(
                f"{row.column.label} was made with {len(seen)} of the {len(test)} prompts, such as "
                f"{sums[min(seen)]!r}: its figures would be too good. Take other --prompts, or say --allow-seen."
            )


def _make_metrics(
    subject: Subject, names: Sequence[str]
) -> tuple[dict[str, Metric], dict[str, Metric], list[SetMetric], Sequence[tuple[str, str]]]:
    """Those that compare, those that do not, those of all pictures at once, and those that cannot be measured."""
    for name in names:
        find_class("metric", name)
    found = metrics_available(judge=subject.judge is not None, is_video=subject.is_video)
    for name, why in found.absent:
        if name in names:
            raise MetricError(f"{name} cannot be taken here: {why}")
    wanted = [m for m in found.metrics if not m.counts_calls and (not names or m.name in (*names, "psnr"))]
    close = {RECORD_NAMES.get(m.name, m.name): m for m in wanted if m.compares}
    alone = {m.name: m for m in wanted if not m.compares}
    sets = [m for m in found.sets if not names or m.name in names]
    return close, alone, sets, [] if names else found.absent


def _disable_tf32() -> None:
    """Keep a GPU from rounding float32 to 19 bits: references must be exact."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
