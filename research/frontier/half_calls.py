"""The unconditional branch under error control: `python -m research.frontier.half_calls NETWORKS --out half_calls.md`.

`half_calls` is `error_control`, and where that wants a call, the unconditional branch is forecast (a line through its
last two outputs) if the error expected of it, weighed by guidance and by the step, stays below `ratio` times `tol`:
half a call. Closeness (PSNR in dB, median / p10) to the full run of UniPC in 50 steps, whose picture `error_control`
is meant to keep; rows are counted by a hook. The lead is over `error_control` with as many calls, interpolated in the
logarithm of calls between its tolerances ("-" outside of them). 8 samples of each network.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import Console

from research.frontier.command import make_parser
from research.frontier.measure import Measured, low
from research.frontier.networks import find_network
from skipstone.engine.contracts import UNCOND, Cached, Clock, Full, Plan, Run
from skipstone.engine.signals import Signal, StepContext, extrapolate, rms
from skipstone.numerics.parametrize import PREDICTION_TYPES
from skipstone.policies.error_control import ErrorControl, eps_per_unit, eps_weight_clock
from skipstone.policies.guidance_gate import UNCOND_BRANCH
from skipstone.registry import parse, register, spell
from skipstone.settings import MAX_TOLERANCE, Ranges

SAMPLES, STEPS, SOLVER = 8, 50, "unipc"
TOLERANCES = ((0.001, 2), (0.002, 3), (0.004, 4), (0.009, 5))  # tol and max_skip
RATIOS = (0.3, 1.0, 3.0)  # guidance_tol / tol
HEAD = "| network | tol | `error_control` | " + " | ".join(f"ratio {r:g} | lead" for r in RATIOS) + " |"
BELOW = "|---|--:|---|" + "---|---|" * len(RATIOS)


@register("signal")
@dataclass(frozen=True)
class UncondDisagreement(Signal):
    """The error of the guided output, had the unconditional branch been forecast by a line at this full call."""

    clock: Clock = "t"
    name: ClassVar[str] = "uncond_disagreement"

    def measure(self, context: StepContext) -> Any | None:
        node = next((n for n in context.fresh if UNCOND in n.estimate.features), None)
        known = [(n.t, n.estimate.features[UNCOND]) for n in context.nodes if UNCOND in n.estimate.features]
        if node is None or len(known) < 2:
            return None
        found = node.estimate.features
        guess = extrapolate(known, 1, self.clock, context.schedule, node.t)
        weight = rms(node.estimate.output - found["cond"]) / rms(found["cond"] - found[UNCOND]).clamp_min(1e-12)
        return weight * rms(guess - found[UNCOND])  # |w - 1| times the error of the branch


@register("policy")
@dataclass(frozen=True)
class HalfCalls(ErrorControl):
    """`error_control`, with half calls where a forecast of the unconditional branch is good enough.

    Args:
        guidance_tol: Expected error of one such forecast, in units of the sample (rms).
    """

    guidance_tol: float = 0.0
    name: ClassVar[str] = "half_calls"
    ranges: ClassVar[Ranges] = {**ErrorControl.ranges, "guidance_tol": (0, MAX_TOLERANCE)}

    @property
    def sites(self) -> frozenset[str]:
        return UNCOND_BRANCH | {"cond"}

    @cached_property
    def branch_signal(self) -> str:
        """Spec of the branch's signal."""
        return spell(UncondDisagreement(self.clock))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal, self.branch_signal, "network_output"})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        planned = super().plan(run, proposal)
        bound = len(run.accepted_attempts) < self.warmup or run.is_in_tail(proposal, self.tail)
        if bound or planned.evaluate != Full() or not planned.is_unamended or run.branches < 2:
            return planned
        if not self._branch_error(run, proposal.t_next) < self.guidance_tol:
            return planned
        return replace(planned, evaluate=Cached(UNCOND_BRANCH, 1, self.clock))

    def _branch_error(self, run: Run, t_next: float) -> float:
        """Error of the sample from one forecast of the branch, by what the last full call showed."""
        full = [a for a in run.accepted_attempts if isinstance(a.plan.evaluate, Full)]
        if not full or self.branch_signal not in full[-1].signals:
            return math.inf
        nodes, here = [a.t for a in full], run.next_start
        spread = self._spread(run, nodes[:-1], nodes[-1])
        if spread == 0.0:
            return math.inf
        of = PREDICTION_TYPES[round(full[-1].signals["network_output"])]
        clock, after = run.clock(here), run.clock(t_next)
        moved = eps_per_unit(of, clock) * abs(eps_weight_clock(clock) - eps_weight_clock(after))
        return full[-1].signals[self.branch_signal] / spread * self._spread(run, nodes, here) * moved


@dataclass
class FullRunColumns(Measured):
    """Columns of a network against its full run."""

    def _references(self) -> tuple[torch.Tensor, list[float]]:
        times = parse("grid", "trailing").times(self.network.schedule, STEPS)
        return self._draw("fixed", SOLVER, times)[0], []


def figures(column: dict[str, Any]) -> tuple[float, float, float]:
    """Calls, median and p10."""
    return column["calls"], statistics.median(column["psnr"]), low(column["psnr"])


def leads(own: tuple[float, float, float], known: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The lead over `error_control` with as many calls, at the median and in p10; nan outside of what it ran with."""
    places = sorted((math.log(calls), *rest) for calls, *rest in known)
    x = [p[0] for p in places]
    median, tail = (
        own[k] - float(np.interp(math.log(own[0]), x, [p[k] for p in places], math.nan, math.nan)) for k in (1, 2)
    )
    return median, tail


def rows(measured: Measured) -> tuple[list[str], list[list[tuple[float, float]]]]:
    """The lines of a network, and for each ratio its leads."""
    usual = [figures(measured.column(f"error_control(tol={t}, max_skip={s})", SOLVER)) for t, s in TOLERANCES]
    lines, found = [], [[] for _ in RATIOS]  # type: list[str], list[list[tuple[float, float]]]
    for (tol, skips), known in zip(TOLERANCES, usual, strict=True):
        cells = [f"{known[1]:.1f} / {known[2]:.1f} ({known[0]:.1f})"]
        for k, ratio in enumerate(RATIOS):
            policy = f"half_calls(tol={tol}, max_skip={skips}, guidance_tol={ratio * tol:.6g})"
            own = figures(measured.column(policy, SOLVER))
            lead = leads(own, usual)
            found[k].append(lead)
            ahead = "-" if math.isnan(lead[0]) else f"{lead[0]:+.1f} / {lead[1]:+.1f}"
            cells += [f"{own[1]:.1f} / {own[2]:.1f} ({own[0]:.1f})", ahead]
        lines.append(f"| {measured.network.name} | {tol} | {' | '.join(cells)} |")
    return lines, found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = make_parser("half_calls", __doc__)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, lines = Console(stderr=True, soft_wrap=True), [HEAD, BELOW]
    for name in given.networks:
        network = find_network(name, SAMPLES)
        measured = FullRunColumns(network, given.runs / f"half-{network.name}-{SAMPLES}-{network.seed}.json")
        lines += rows(measured)[0]
        console.print("\n".join(lines[-len(TOLERANCES) :]), highlight=False)
    if given.out is not None:
        given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
