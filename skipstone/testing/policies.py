"""Conformance checks of policies: what every one must satisfy, whoever wrote it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from .. import registry
from ..deprecation import old_names
from ..engine.contracts import Attempt, Plan, Policy, Run
from ..engine.drivers import add_controller, denoise, denoise_many, replay
from ..engine.requests import Backbone, Problem, Result, Solver
from ..engine.trace import from_json, to_json
from ..errors import SkipstoneError
from ..policies.budget import Budget
from ..policies.fixed import Fixed
from ..solvers.ddim import DDIM
from .backbones.counting import CountingBackbone
from .backbones.mixture import Mixture
from .decisions import get_decision, states
from .settings import check_settings_are_bounded

Check = Callable[[], None]
DEFAULT_SOLVER, MIXTURE = DDIM(), Mixture()


@dataclass(frozen=True)
class PolicySetup:
    """Setup that a policy is checked on: any exact backbone and solver, a grid from noise to data."""

    solver: Solver = DEFAULT_SOLVER
    backbone: Backbone = MIXTURE
    steps: int = 24

    def problem(self, seed: int = 0, steps: int | None = None, scale: float = 1.0) -> Problem:
        """A sample with its own noise; `cond` is a component of the mixture."""
        n = steps or self.steps
        x = scale * np.random.default_rng(seed).standard_normal((4, 8, 8))
        grid = (*(1 - i / n for i in range(n)), 0.0)
        return Problem(self.backbone.schedule, x, grid, seed % 3, seed, self.backbone.branches)

    def run(self, policy: Policy, problem: Problem | None = None) -> Result:
        """Denoise one sample."""
        return denoise(self.backbone, problem or self.problem(), self.solver, policy)


def policy_checks(policy: Policy, setup: PolicySetup | None = None) -> Iterator[Check]:
    """Every check that applies to a policy, as functions without arguments that raise AssertionError.

    Args:
        policy: The policy with the settings to be checked.
        setup: What it is tried on; DDIM on an exact mixture of Gaussians by default.
    """
    for about_it in (
        check_is_frozen_dataclass,
        check_has_summary_and_reference,
        check_spelling_round_trips,
        check_settings_are_bounded,
    ):
        yield partial(about_it, policy)
    behaviour = [
        check_reaches_the_end,
        check_is_pure,
        check_declares_its_signals,
        check_declares_its_sites,
        check_spends_no_more,
        check_counts_every_call_and_no_forecast,
        check_replays_exactly,
        check_trace_round_trips,
        check_budget_holds_behind_it,
    ]
    behaviour += [check_ignores_company] if policy.scope == "sample" else []
    behaviour += [check_neutral_changes_nothing] if policy.neutral else []
    for check in behaviour:
        yield partial(check, policy, setup or PolicySetup())


def check_id(check: Any) -> str:
    """A readable name of a check, for pytest's `ids`."""
    return str(check.func.__name__.removeprefix("check_"))


def _fail(policy: Policy, message: str) -> None:
    raise AssertionError(f"{type(policy).__name__} {message}")


def check_is_frozen_dataclass(policy: Policy) -> None:
    """A policy is a setting; its memory is the run."""
    if not dataclasses.is_dataclass(policy) or not policy.__dataclass_params__.frozen:
        _fail(policy, "is not a frozen dataclass: a policy is a setting, its memory is the run.")


def check_has_summary_and_reference(policy: Policy) -> None:
    """The first line becomes CLI help, the reference what a paper has to cite."""
    doc = type(policy).__doc__ or ""
    if doc.startswith(f"{type(policy).__name__}(") or not registry.first_doc_line(type(policy)).endswith((".", ":")):
        _fail(policy, "has no summary: the first line of its docstring, a sentence, becomes the CLI help.")
    if "References:" not in doc:
        _fail(policy, "says under no `References:` where it comes from; write 'References: ours.' if it is yours.")


def check_spelling_round_trips(policy: Policy) -> None:
    """One spelling in Python, shell, YAML and URLs."""
    spec = registry.spell(policy)
    if registry.parse("policy", spec) != policy:
        _fail(policy, f"has the spec {spec!r}, which parses to something else.")


def check_reaches_the_end(policy: Policy, setup: PolicySetup) -> None:
    """Every run ends at the data with finite numbers."""
    try:
        result = setup.run(policy)
    except SkipstoneError as e:
        _fail(policy, f"does not get through a run: {e}")
    if result.run.t > result.run.t_end or not math.isfinite(float(np.abs(result.x).sum())):
        _fail(policy, f"stopped at t={result.run.t} instead of {result.run.t_end}, or not at finite numbers.")


def _states(policy: Policy, setup: PolicySetup) -> list[Run]:
    return list(states(setup.run(_WithSignals(policy)).run))


@dataclass(frozen=True)
class _WithSignals(Policy):
    """A policy in whose runs every registered signal is measured."""

    inner: Policy
    name = "measured"

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs | frozenset(registry.names("signal"))

    @property
    def sites(self) -> frozenset[str]:
        return self.inner.sites

    def consult(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        return self.inner.consult(runs, proposals)


def check_is_pure(policy: Policy, setup: PolicySetup) -> None:
    """The same run gets the same plan, whatever was asked before."""
    runs = _states(policy, setup)
    forward = [policy.plan(r, r.proposal()) for r in runs]
    backward = [policy.plan(r, r.proposal()) for r in reversed(runs)][::-1]
    if forward != backward:
        _fail(policy, "plans differently when asked about the same runs in another order.")


class _DeclaredSignals(dict[str, float]):
    """Signals that complain about reads that were not declared."""

    def __init__(self, signals: Mapping[str, float], needs: frozenset[str]) -> None:
        super().__init__(signals)
        self.needs = needs

    def _declared(self, key: object) -> None:
        if re.sub(r"\[\d+\]$", "", str(key)) not in self.needs:  # one value of several
            raise AssertionError(f"reads the signal {key!r} but does not list it in `needs`.")

    def __getitem__(self, key: str) -> float:
        self._declared(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._declared(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._declared(key)
        return super().__contains__(key)


def check_declares_its_signals(policy: Policy, setup: PolicySetup) -> None:
    """Only what is declared is computed, so a policy must not read anything else."""

    def guard(a: Attempt) -> Attempt:
        return replace(a, signals=_DeclaredSignals(a.signals, policy.needs))

    for run in _states(policy, setup):
        guarded = replace(run, past=tuple(map(guard, run.past)), pending=run.pending and guard(run.pending))
        try:
            policy.plan(guarded, guarded.proposal())
        except AssertionError as e:
            _fail(policy, str(e))


def check_declares_its_sites(policy: Policy, setup: PolicySetup) -> None:
    """A site that is not declared is not kept, so it could not be forecast."""
    for a in setup.run(policy).run.past:
        asked: frozenset[str] = getattr(a.plan.evaluate, "sites", frozenset())
        if not asked <= policy.sites:
            _fail(policy, f"forecasts the sites {sorted(asked - policy.sites)} but does not list them in `sites`.")


def check_spends_no_more(policy: Policy, setup: PolicySetup) -> None:
    """Adapting must not cost more than not adapting, unless the policy says that it may."""
    bare, counted = CountingBackbone(setup.backbone), CountingBackbone(setup.backbone)
    denoise(bare, setup.problem(), setup.solver, Fixed())
    denoise(counted, setup.problem(), setup.solver, policy)
    if counted.calls > bare.calls and not add_controller(setup.solver, policy).may_spend_more:
        _fail(policy, f"costs {counted.calls:g} calls where the bare run costs {bare.calls:g}.")


def check_counts_every_call_and_no_forecast(policy: Policy, setup: PolicySetup) -> None:
    """A run's cost is what entered the network; a forecast costs nothing."""
    counted = CountingBackbone(setup.backbone)
    run = denoise(counted, setup.problem(), setup.solver, policy).run
    if not math.isclose(counted.calls, run.cost):
        _fail(policy, f"made {counted.calls:g} calls, but its run says {run.cost:g}.")
    if any(a.cost for a in run.past if a.is_forecast):
        _fail(policy, "is charged for a forecast.")


def check_replays_exactly(policy: Policy, setup: PolicySetup) -> None:
    """A trace is enough to make the same sample again, bit for bit, and to make the same decisions."""
    first = setup.run(policy)
    again = replay(setup.backbone, setup.problem(), setup.solver, first.run)
    same = [get_decision(a) for a in first.run.past] == [get_decision(a) for a in again.run.past]
    if not np.array_equal(first.x, again.x) or not same or first.run.cost != again.run.cost:
        _fail(policy, "cannot be replayed from its own trace.")


def check_trace_round_trips(policy: Policy, setup: PolicySetup) -> None:
    """Nothing of a run is lost on disk."""
    run = setup.run(policy).run
    if from_json(to_json(run, policy=registry.spell(policy))).run != run:
        _fail(policy, "makes a run that does not survive its trace.")


def check_budget_holds_behind_it(policy: Policy, setup: PolicySetup) -> None:
    """`| budget(calls=n)` is never overrun, whatever stands before it."""
    for calls in (1, 2.5, 7, 15):
        counted = CountingBackbone(setup.backbone)
        denoise(counted, setup.problem(), setup.solver, policy | Budget(calls))
        if counted.calls > calls + 1e-9:
            _fail(policy, f"spends {counted.calls:g} calls behind a budget of {calls:g}.")


def check_ignores_company(policy: Policy, setup: PolicySetup) -> None:
    """A sample's result does not depend on what else is in the batch, bit for bit."""
    problems = [setup.problem(0), setup.problem(1, scale=3.0), setup.problem(2, steps=17)]
    together = denoise_many(setup.backbone, problems, setup.solver, policy)
    for i, (problem, result) in enumerate(zip(problems, together, strict=True)):
        alone = setup.run(policy, problem)
        if not np.array_equal(alone.x, result.x) or alone.run.past != result.run.past:
            _fail(policy, f"gives sample {i} another result in a batch than alone.")


def check_neutral_changes_nothing(policy: Policy, setup: PolicySetup) -> None:
    """At its neutral settings it is `fixed`, bit for bit."""
    off: Any = replace(policy, **policy.neutral)  # type: ignore[type-var]
    a, b = setup.run(Fixed()), setup.run(off)
    if not np.array_equal(a.x, b.x) or a.run.cost != b.run.cost:
        _fail(policy, f"is not neutral at its neutral setting {dict(policy.neutral)}.")


__getattr__ = old_names(__name__, {"Setup": "PolicySetup"})
