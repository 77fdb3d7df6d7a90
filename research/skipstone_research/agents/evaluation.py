"""Agents and their rivals on a real model, raced by the bench: what the hypotheses are decided on."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skipstone import __version__, registry
from skipstone.engine.signals import Look
from skipstone.errors import BenchError, SpecError
from skipstone.evaluation.columns import Column, parse_column
from skipstone.evaluation.fingerprint import fingerprint, machine
from skipstone.evaluation.json_lines import plain
from skipstone.evaluation.progress import Tell, silent
from skipstone.evaluation.references import References, Shot, converged_columns
from skipstone.evaluation.subject import Subject
from skipstone.metrics import Metric
from skipstone.policies.agent.policy import Agent
from skipstone.tuning.grids import policy_of
from skipstone_bench.race import Race, Row
from skipstone_bench.store import Header, RowInfo, Store

from .evaluated import FILE, Part, logged_guides, told_of, trainings_named

SAMPLERS = ("dpmpp / trailing", "unipc / trailing", "adams / trailing")
WEAK = "fixed @ ddim / trailing / 20"  # gate G2
GROUPS = {"agent": "ours", "rule": "ours", "fixed": "fixed", "full": "full"}


@dataclass(frozen=True)
class Settings:
    """What an evaluation is asked for.

    Args:
        agents: Folders or files of agents, or names of shipped ones: one for each training.
        prices: At which each agent plays, in dB a call, the one that is judged first; () is the middle one of the
            first agent's.
        full: The full run that quality is held against, as a column.
        rules: Columns that adapt without learning.
        calls: At which fixed samplers run, besides those next to what agents and rules make.
        grids: Folders of `skipstone tune` with fixed schedules, besides those of the agents' files, and those of the
            logged trajectories that they were trained on where these are at hand.
        converged: Two columns that stand for the exact solution; chosen by the model where they are not said.
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
        shots: Samples: prompts that no agent was trained on.
        about: Of the prompts, for the header.
    """

    subject: Subject
    settings: Settings
    shots: Sequence[Shot]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not self.settings.agents or not self.shots:
            raise SpecError("Expected at least one agent and one prompt: skipstone evaluate agent PATH --prompts SET.")
        if len(set(self.settings.agents)) < len(self.settings.agents):
            raise SpecError(f"Expected different agents, got {', '.join(self.settings.agents)}.")
        if not all(0 < price < math.inf for price in self.settings.prices):
            raise SpecError(f"--price: expected numbers > 0, in dB a call, got {list(self.settings.prices)}; try 1.")

    def run(self, out: Path, resume: bool, command: str, options: Mapping[str, Any], tell: Tell = silent) -> Store:
        """Draw and score what is not there yet. Raises BenchError, SpecError; what the model cannot run is noted."""
        Store.check(out, resume)
        agents = self._agents()  # a name misspelt leaves no folder behind
        full = self.subject.admit(self._column(self.settings.full))
        tell("Loading", 0, 1)
        self.subject.load([full])
        converged = converged_columns(self.subject, said=self.settings.converged)
        header = self._header(full, converged, command, options)
        store = Store.open(out, header) if resume else Store.create(out, header)
        close: dict[str, Metric] = {name: registry.parse("metric", name) for name in ("psnr", "ssim")}
        alone = {"judge": registry.parse("metric", "judge")} if self.subject.judge is not None else {}
        race = Race(self.subject, References(out, full, converged), close, alone, self.settings.batch, tell)

        parts = [*agents, *self._first(full)]
        store = race.run(store, self.shots, [row for row, _ in parts])
        self._refuse_absent(store, parts)
        rest = self._fixed(store, parts)
        store = race.run(store, self.shots, [row for row, _ in rest])
        store = race.confirm(store, self.shots)
        told = told_of([part for _, part in (*parts, *rest)], self.settings.agents, self._price)
        store.write(FILE, json.dumps(plain(told), indent=1).encode())
        return store

    # -- Rows ---------------------------------------------------------------------------------------

    def _column(self, spec: str) -> Column:
        return parse_column(spec, *self.subject.defaults)

    def _agents(self) -> list[tuple[Row, Part]]:
        """Every agent at every price, told apart by what its file holds."""
        found = []
        for path, run in trainings_named(self.settings.agents).items():
            digest = _digest(path)
            for price in self.settings.prices or (self._price,):
                column = self._column(f"agent(path={path!r}, price={price!r})")
                name = f"agent, {run}, {price:g} dB"
                spec = f"{column.spec} [{digest}]"
                info = RowInfo(spec, name, "ours", f"agent, {price:g} dB", run, column.steps)
                found.append((Row(column, info), Part(spec, name, "agent", price, run, _fee(path))))
        return found

    @property
    def _price(self) -> float:
        """The price that is judged."""
        if self.settings.prices:
            return self.settings.prices[0]
        prices = sorted(price for price, _ in Agent(self.settings.agents[0]).mind.guides)
        return prices[len(prices) // 2]

    def _first(self, full: Column) -> list[tuple[Row, Part]]:
        """The full run, the weak sampler and the rules."""
        found = [_part(full, "full", "full run"), _part(self._column(WEAK), "fixed")]
        return [*found, *(_part(self._column(spec), "rule") for spec in self.settings.rules)]

    def _fixed(self, store: Store, parts: Sequence[tuple[Row, Part]]) -> list[tuple[Row, Part]]:
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
        return [_part(column, "fixed") for column in unique.values()]

    def _schedules(self) -> list[str]:
        """Specs of the fixed schedules of the agents' files, of what they were trained on, and of `skipstone tune`."""
        found = []
        for path in self.settings.agents:
            mind = Agent(path).mind
            of = "x0" if "x0" in mind.solver else "pair"
            guides = [guide for _, guide in mind.guides] + logged_guides(path)
            found += [registry.spell(policy_of(guide.times, of)) for guide in guides]
        for folder in map(Path, self.settings.grids):
            inside = sorted(path.parent for path in folder.glob("path-*/policy.json"))
            found += [str(path) for path in inside or [folder]]
        return found

    def _refuse_absent(self, store: Store, parts: Sequence[tuple[Row, Part]]) -> None:
        notes = {info.spec: info.note for info in store.header.rows if info.note}
        for _, part in parts:
            if part.kind in ("agent", "full") and part.spec in notes:
                raise BenchError(f"{part.name} could not run on {self.subject.name}: {notes[part.spec]}")

    def _header(self, full: Column, converged: Sequence[Column], command: str, options: Mapping[str, Any]) -> Header:
        subject = self.subject
        return Header(
            version=__version__,
            model=subject.name,
            fingerprint=fingerprint(subject, self.shots, []),
            guidance=subject.guidance,
            settings=subject.settings,
            reference=full.spec,
            converged=tuple(column.spec for column in converged),
            machine=machine(subject),
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            command=command,
            prompts=dict(self.about),
            options=options,
        )


def _part(column: Column, kind: Any, label: str = "") -> tuple[Row, Part]:
    """A column as a row of the bench, and what it is to the hypotheses."""
    name = label or column.spec
    family = {"full": "full run", "rule": column.label.partition("(")[0]}.get(kind, "fixed")
    info = RowInfo(column.spec, label or column.label, GROUPS[kind], family, column.way, column.steps)
    return Row(column, replace(info, family=_family(column) if kind == "fixed" else family)), Part(
        column.spec, name, kind
    )


def _family(column: Column) -> str:
    """Fixed samplers of one kind, and searched schedules, are points of one curve each."""
    if column.adaptive:
        return "fixed schedules"
    return f"fixed @ {column.way.rpartition(' / ')[0]}"


def _fee(path: str) -> float:
    """What an agent pays for looking at each call, in calls; one that plays its schedule looks at nothing."""
    mind = Agent(path).mind
    seen = mind.sight.published
    return seen.fee if mind.learned and registry.spell(Look(seen.by)) in mind.sight.needs else 0.0


def _digest(path: str) -> str:
    """What tells one agent's file from another, in eight letters."""
    import hashlib

    from skipstone.policies.agent.policy import find

    return hashlib.sha256(find(path).read_bytes()).hexdigest()[:8]
