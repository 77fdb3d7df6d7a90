"""The rows that always run: what a policy has to beat, tuned on prompts of their own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipstone import registry
from skipstone.errors import SpecError
from skipstone.evaluation.columns import FEWER, Column, Sampler, parse_column
from skipstone.policies.agent.policy import SHIPPED, Agent, find_agent
from skipstone.policies.error_control import ErrorControl
from skipstone.policies.from_file import files_of
from skipstone.policies.mask import format_steps

from .runner import BenchRow
from .store import RowInfo
from .tuner import Tuner, find_greedy_masks, improve_mask, sampler_for_calls, sampler_spec_of, samplers_for_calls

GATES = ("guidance_gate(below=0.75)", "guidance_gate", "guidance_gate(below=0.25)", "guidance_gate(every=4)")
BELOW = (0.3, 0.5, 0.7)  # gates that masks are joined with
EVERY = range(2, 11)
WARMUP = (2, 3, 4, 5, 6, 8, 10, 12, 15, 18)
JOINED = (2, 4, 8, 12, 18)  # warm-ups of masks that are joined with gates
DEFAULT_POLICIES = ("safe", "balanced", "fast", "adaptive_diffusion")  # where no policies are given


def make_row(column: Column, group: str, family: str, knob: str = "", label: str = "") -> BenchRow:
    """A column as a row of the table."""
    return BenchRow(column, RowInfo(column.spec, label or column.label, group, family, knob, column.steps))


def default_forecast() -> str:
    """How masks forecast: as `error_control` does by default, so that only the choice of steps differs."""
    control = ErrorControl()
    return f"order={control.order}, of={control.of!r}, clock={control.clock!r}"


def interval_calls(steps: int, every: int, warmup: int, tail: int = 1) -> list[bool]:
    """Which steps `interval` calls."""
    called: list[bool] = []
    for i in range(steps):
        streak = next((k for k, c in enumerate(reversed(called)) if c), len(called))
        called.append(i < warmup or i >= steps - tail or streak >= every - 1)
    return called


@dataclass(frozen=True)
class Baselines:
    """What every table has, around the full run of a sampler.

    Args:
        full: The full run.
        sampler: Solver, grid and steps on which masks and gates skip.
        budgets: Calls to compare at.
        tuner: Of samplers and masks.
        searcher: Of the best common mask; fewer prompts, because it tries hundreds of masks.
    """

    full: Column
    sampler: Sampler
    budgets: Sequence[int]
    tuner: Tuner
    searcher: Tuner

    def rows(self) -> Iterator[BenchRow]:
        """All of them, those that need tuning last."""
        yield make_row(self.full, "full", "full run", label="full run")
        for gate in GATES:
            yield make_row(self.column(gate), "gate", "blind gate", _spec_arguments(gate))
        for calls in self.budgets:
            yield make_row(
                self.column(f"random_skip(calls={calls}, {default_forecast()})"), "random", "random", f"calls={calls}"
            )
            short = replace(self.column("fixed"), steps=calls)
            yield make_row(short, "fixed", "fewer steps", f"steps={calls}", f"fixed / {calls}")
        yield from self._fixed()
        for calls in self.budgets:
            for what, group, candidates in (
                ("best blind mask", "mask", self._masks(calls)),
                ("best blind mask and gate", "gate", self._masks_and_gates(calls)),
            ):
                best = self.tuner.best(candidates, calls, f"{what}, {calls} calls")
                if best is not None:
                    yield make_row(best, group, what, f"calls={calls}")
        if self.searcher.eval_samples:
            yield from self.greedy(self.searcher, "best common mask", "mask")

    def column(self, spec: str) -> Column:
        """A policy on the full run's sampler, as the model runs it."""
        return parse_column(spec, *self.sampler)

    def greedy(self, searcher: Tuner, family: str, group: str) -> Iterator[BenchRow]:
        """Masks found by greedy search, one for each budget."""

        def masked(skips: frozenset[int]) -> Column:
            return self.column(f"mask(skips={format_steps(skips)!r}, {default_forecast()})")

        def score(skips: frozenset[int]) -> float | None:
            found = searcher.score(masked(skips))
            return None if found is None else found.mean

        def on_progress(done: int, total: int) -> None:
            searcher.on_progress(f"Searching the {family}", done, total)

        steps = self.sampler.steps
        for calls, skips in find_greedy_masks(score, steps, self.budgets, on_progress=on_progress).items():
            blind = [_skipped(called) for called in _intervals(steps).values() if sum(called) == calls]
            best = improve_mask(score, [skips, *blind], steps)
            yield make_row(masked(best), group, family, f"calls={calls}", f"{family}, {calls} calls")

    def _fixed(self) -> Iterator[BenchRow]:
        """The best solver and grid at each budget, and the curve of the one that wins most often."""
        won: Counter[str] = Counter()
        taken = {replace(self.column("fixed"), steps=calls).spec for calls in self.budgets}
        for calls in self.budgets:
            best = self.tuner.best(samplers_for_calls(self.tuner.subject, calls), calls, f"samplers, {calls} calls")
            if best is not None:
                won[sampler_spec_of(best)] += 1
                taken.add(best.spec)
                yield make_row(best, "fixed", "best fixed sampler", f"calls={calls}")
        for way, _ in won.most_common(1):
            for calls in sorted({*self.budgets, self.sampler.steps}):
                column = sampler_for_calls(way, calls)
                if column.spec not in taken:
                    yield make_row(column, "fixed", f"fixed @ {way}", f"steps={calls}")

    def _masks(self, calls: int) -> list[Column]:
        found = _intervals(self.sampler.steps)
        near = [way for way, called in found.items() if abs(sum(called) - calls) <= 1]
        return [self.column(f"interval(every={k}, warmup={w}, {default_forecast()})") for k, w in near]

    def _masks_and_gates(self, calls: int) -> list[Column]:
        """Masks whose calls, those below the gate counted half, are near the budget on a uniform grid."""
        steps = self.sampler.steps
        found = []
        for below in BELOW:
            for (every, warmup), called in _intervals(steps).items():
                spent = sum(1.0 if 1 - i / steps >= below else 0.5 for i, c in enumerate(called) if c)
                if warmup in JOINED and abs(spent - calls) <= 1:
                    mask = f"interval(every={every}, warmup={warmup}, {default_forecast()})"
                    found.append(self.column(f"{mask} | guidance_gate(below={below})"))
        return found


def _intervals(steps: int) -> dict[tuple[int, int], tuple[bool, ...]]:
    """(every, warmup) -> which steps are called; of settings that call the same steps, the first."""
    ways = {(k, w): tuple(interval_calls(steps, k, w)) for k in EVERY for w in WARMUP}
    first = {called: way for way, called in reversed(ways.items())}
    return {way: called for way, called in ways.items() if first[called] == way}


def _skipped(called: Sequence[bool]) -> frozenset[int]:
    return frozenset(i for i, c in enumerate(called) if not c)


def make_policy_row(column: Column) -> BenchRow:
    """A row of the command: policies of one kind are points of one curve."""
    if column.policy is None:
        raise SpecError(f"The table always has the best fixed sampler of each budget: leave {FEWER!r} out.")
    parts = getattr(column.policy, "parts", (column.policy,))
    way = " / ".join(part for part in column.explicit_parts if not part.isdigit())
    family = " | ".join(part.name for part in parts) + (f" @ {way}" if way else "")
    group = "peer" if column.peer else "ours" if column.is_adaptive else "fixed"
    row = make_row(column, group, family, _spec_arguments(registry.spell(column.policy)) or f"steps={column.steps}")
    digest = _content_digest(parts)
    return BenchRow(row.column, replace(row.info, spec=f"{row.info.spec} [{digest}]")) if digest else row


def _content_digest(parts: Sequence[Any]) -> str:
    """Eight letters for what is in the files that policies are named by: Python files and agents of a training.

    A row of an edited file or of an agent that was trained again is another row, not more samples of the old one.
    """
    files = [file for part in parts for file in files_of(part)]
    agents = [part.path for part in parts if isinstance(part, Agent) and part.path]
    files += [file for file in map(find_agent, agents) if file.parent != SHIPPED]
    found = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files))
    return found.hexdigest()[:8] if files else ""


def make_peer_rows(sampler: Sampler, specs: Sequence[str] = ()) -> list[BenchRow]:
    """Peers of these specs, or all of them at the settings that they bring."""
    kinds = [registry.find_class("peer", name) for name in registry.names("peer")]
    specs = specs or [spec for kind in kinds for spec in kind.settings()]  # type: ignore[attr-defined]  # a Peer
    return [make_policy_row(parse_column(spec, *sampler)) for spec in specs]


def _spec_arguments(spec: str) -> str:
    """What is between the brackets."""
    return spec.partition("(")[2].rstrip(")") if spec.count("(") < 2 else spec
