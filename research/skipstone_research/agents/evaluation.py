"""Agents and their baselines on a real model, run by the bench: the data of the hypotheses."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipstone import __version__, registry
from skipstone.engine.signals import ImageFeatures
from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.fingerprint import describe_machine, fingerprint
from skipstone.evaluation.folder_lock import lock_folder
from skipstone.evaluation.json_lines import json_roundtrip
from skipstone.evaluation.progress import ProgressCallback, no_progress
from skipstone.evaluation.references import EvaluationSample, References, converged_columns
from skipstone.evaluation.subject import Subject
from skipstone.metrics import Metric
from skipstone.policies.agent.policy import Agent
from skipstone.tuning.grids import path_policy
from skipstone_bench.runner import BenchRow, BenchRunner
from skipstone_bench.store import Header, RowInfo, Store

from .loaded_evaluation import (
    EVALUATION_FILE,
    EvaluationRow,
    evaluation_metadata,
    logged_base_schedules,
    name_trainings,
)

SAMPLERS = ("dpmpp / trailing", "unipc / trailing", "adams / trailing")
WEAK_BASELINE = "fixed @ ddim / trailing / 20"  # gate G2
GROUPS = {"agent": "ours", "rule": "ours", "fixed": "fixed", "full": "full"}


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    Args:
        agents: Folders or files of agents, or names of shipped ones: one for each training.
        prices: At which each agent plays, in dB a call, the first is evaluated; () is the middle one of the
            first agent's.
        full: The full run that quality is held against, as a column.
        rules: Columns that adapt without learning.
        calls: At which fixed samplers run, besides those next to what agents and rules make.
        grids: Folders of `skipstone tune` with fixed schedules, besides those of the agents' files, and those of the
            logged trajectories that they were trained on where these are at hand.
        converged: Two columns that stand for the exact solution; chosen by the model where they are not given.
        batch: Samples of one call, >= 1.
    """

    agents: tuple[str, ...]
    prices: tuple[float, ...] = ()
    full: str = "fixed @ ddim / trailing / 50"
    rules: tuple[str, ...] = ("stride(tol=0.0081)", "stride(tol=0.033)")
    calls: tuple[int, ...] = (8, 10, 12, 15, 20)
    grids: tuple[str, ...] = ()
    converged: tuple[str, ...] = ()
    batch: int = 8


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of agents on one model; `run` makes it, or goes on with it.

    Args:
        subject: The model.
        settings: What is asked for.
        eval_samples: Prompts and seeds: prompts that no agent was trained on.
        about: Of the prompts, for the header.
    """

    subject: Subject
    settings: EvaluationSettings
    eval_samples: Sequence[EvaluationSample]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.settings.agents or not self.eval_samples:
            raise SpecError("Expected at least one agent and one prompt: skipstone evaluate agent PATH --prompts SET.")
        if len(set(self.settings.agents)) < len(self.settings.agents):
            raise SpecError(f"Expected different agents, got {', '.join(self.settings.agents)}.")
        if not all(0 < price < math.inf for price in self.settings.prices):
            raise SpecError(f"--price: expected numbers > 0, in dB a call, got {list(self.settings.prices)}; try 1.")

    def run(
        self,
        out: Path,
        resume: bool,
        command: str,
        options: Mapping[str, Any],
        on_progress: ProgressCallback = no_progress,
    ) -> Store:
        """Run and score what is missing. Raises BenchError, SpecError, OutputError.

        What the model cannot run is noted.
        """
        with lock_folder(out):
            return self._run(out, resume, command, options, on_progress)

    def _run(
        self, out: Path, resume: bool, command: str, options: Mapping[str, Any], on_progress: ProgressCallback
    ) -> Store:
        Store.check(out, resume)
        agents = self._agent_rows()  # a name misspelt leaves no folder behind
        full = self.subject.resolve_column(self._column(self.settings.full))
        on_progress("Loading", 0, 1)
        self.subject.load([full])
        converged = converged_columns(self.subject, specs=self.settings.converged)
        header = self._header(full, converged, command, options)
        store = Store.open(out, header) if resume else Store.create(out, header)
        close: dict[str, Metric] = {name: registry.parse("metric", name) for name in ("psnr", "ssim")}
        alone = {"judge": registry.parse("metric", "judge")} if self.subject.judge is not None else {}
        race = BenchRunner(
            self.subject, References(out, full, converged), close, alone, self.settings.batch, on_progress
        )

        parts = [*agents, *self._reference_rows(full)]
        store = race.run(store, self.eval_samples, [row for row, _ in parts])
        self._check_required_rows(store, parts)
        rest = self._fixed_rows(store, parts)
        store = race.run(store, self.eval_samples, [row for row, _ in rest])
        store = race.measure_agreement(store, self.eval_samples)
        metadata = evaluation_metadata([part for _, part in (*parts, *rest)], self.settings.agents, self._price)
        store.write(EVALUATION_FILE, json.dumps(json_roundtrip(metadata), indent=1).encode())
        return store

    # -- Rows ---------------------------------------------------------------------------------------

    def _column(self, spec: str) -> Column:
        return parse_column(spec, *self.subject.default_sampler)

    def _agent_rows(self) -> list[tuple[BenchRow, EvaluationRow]]:
        """Every agent at every price, identified by a digest of its file."""
        found = []
        for path, run in name_trainings(self.settings.agents).items():
            digest = _short_digest(path)
            for price in self.settings.prices or (self._price,):
                column = self._column(f"agent(path={path!r}, price={price!r})")
                name = f"agent, {run}, {price:g} dB"
                spec = f"{column.spec} [{digest}]"
                info = RowInfo(spec, name, "ours", f"agent, {price:g} dB", run, column.steps)
                found.append(
                    (BenchRow(column, info), EvaluationRow(spec, name, "agent", price, run, _feature_cost(path)))
                )
        return found

    @property
    def _price(self) -> float:
        """The price that is evaluated."""
        if self.settings.prices:
            return self.settings.prices[0]
        prices = sorted(price for price, _ in Agent(self.settings.agents[0]).checkpoint.base_schedules)
        return prices[len(prices) // 2]

    def _reference_rows(self, full: Column) -> list[tuple[BenchRow, EvaluationRow]]:
        """The full run, the weak sampler and the rules."""
        found = [_make_row(full, "full", "full run"), _make_row(self._column(WEAK_BASELINE), "fixed")]
        return [*found, *(_make_row(self._column(spec), "rule") for spec in self.settings.rules)]

    def _fixed_rows(
        self, store: Store, parts: Sequence[tuple[BenchRow, EvaluationRow]]
    ) -> list[tuple[BenchRow, EvaluationRow]]:
        """Fixed samplers of as many calls as agents and rules make, and all fixed schedules that are known."""
        wanted = set(self.settings.calls)
        made: dict[str, list[float]] = {}
        for record in store.records:
            made.setdefault(record.row, []).append(record.calls)
        for _, part in parts:
            if part.kind in ("agent", "rule") and part.spec in made:
                mean = (1.0 + part.fee) * sum(made[part.spec]) / len(made[part.spec])
                wanted |= {max(1, math.floor(mean)), max(1, math.ceil(mean))}
        columns = [self._column(f"fixed @ {way} / {n}") for n in sorted(wanted) for way in SAMPLERS]
        columns += [self._column(spec) for spec in self._schedules()]
        unique = {column.spec: column for column in columns}
        return [_make_row(column, "fixed") for column in unique.values()]

    def _schedules(self) -> list[str]:
        """Specs of the fixed schedules of the agents' files, of what they were trained on, and of `skipstone tune`."""
        found = []
        for path in self.settings.agents:
            checkpoint = Agent(path).checkpoint
            of = "x0" if "x0" in checkpoint.solver else "pair"
            schedules = [schedule for _, schedule in checkpoint.base_schedules] + logged_base_schedules(path)
            found += [registry.spell(path_policy(schedule.times, of)) for schedule in schedules]
        for folder in map(Path, self.settings.grids):
            inside = sorted(path.parent for path in folder.glob("path-*/policy.json"))
            found += [str(path) for path in inside or [folder]]
        return found

    def _check_required_rows(self, store: Store, parts: Sequence[tuple[BenchRow, EvaluationRow]]) -> None:
        notes = {info.spec: info.note for info in store.header.rows if info.note}
        for _, part in parts:
            if part.kind in ("agent", "full") and part.spec in notes:
                raise BenchError(f"{part.name} could not run on {self.subject.name}: {notes[part.spec]}")

    def _header(self, full: Column, converged: Sequence[Column], command: str, options: Mapping[str, Any]) -> Header:
        subject = self.subject
        return Header(
            version=__version__,
            model=subject.name,
            fingerprint=fingerprint(subject, self.eval_samples, []),
            guidance=subject.guidance,
            settings=subject.settings,
            reference=full.spec,
            converged=tuple(column.spec for column in converged),
            machine=describe_machine(subject),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            command=command,
            prompts=dict(self.about),
            options=options,
        )


def _make_row(column: Column, kind: Any, label: str = "") -> tuple[BenchRow, EvaluationRow]:
    """A column as a row of the bench, and what it is to the hypotheses."""
    name = label or column.spec
    family = {"full": "full run", "rule": column.label.partition("(")[0]}.get(kind, "fixed")
    info = RowInfo(column.spec, label or column.label, GROUPS[kind], family, column.way, column.steps)
    return BenchRow(column, replace(info, family=_family(column) if kind == "fixed" else family)), EvaluationRow(
        column.spec, name, kind
    )


def _family(column: Column) -> str:
    """Fixed samplers of one kind, and searched schedules, are points of one curve each."""
    if column.is_adaptive:
        return "fixed schedules"
    return f"fixed @ {column.way.rpartition(' / ')[0]}"


def _feature_cost(path: str) -> float:
    """Cost of encoding a picture at each call, in calls; 0 of an agent that runs its base schedule."""
    checkpoint = Agent(path).checkpoint
    published, needs = checkpoint.observation.published, checkpoint.observation.needs
    return published.fee if checkpoint.learned and registry.spell(ImageFeatures(published.by)) in needs else 0.0


def _short_digest(path: str) -> str:
    """Digest of an agent's file, in eight letters."""
    import hashlib

    from skipstone.policies.agent.policy import find_agent

    return hashlib.sha256(find_agent(path).read_bytes()).hexdigest()[:8]
