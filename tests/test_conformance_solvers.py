"""Every registered solver, found by name, passes the public checks; and the checks can fail."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from skipstone import registry
from skipstone.engine.requests import Node, Noise, Query, Solver, Step
from skipstone.numerics.schedule import Schedule
from skipstone.solvers.ddim import DDIM, ddim_update
from skipstone.testing import solvers as checks
from skipstone.testing.orders import list_solver_specs
from skipstone.testing.solvers import check_id, solver_checks

CASES = [
    pytest.param(check, id=f"{spec}-{check_id(check)}")
    for spec in list_solver_specs()
    for check in solver_checks(registry.parse("solver", spec))
]


@pytest.mark.parametrize("check", CASES)
def test_solver(check: checks.Check) -> None:
    check()


def stepped(x: Any, t: float, t_next: float, schedule: Schedule) -> Generator[Query | Noise, Any, Step]:
    x0 = (yield Query(x, t)).x0
    return Step(ddim_update(x, x0, t, t_next, schedule))


@dataclass(frozen=True)
class Boastful(DDIM):
    """A first-order step that claims the second."""

    order: ClassVar[int] = 2


@dataclass(frozen=True)
class Remembering(Solver):
    """Counts its steps over all runs, and drifts with them."""

    name: ClassVar[str] = "remembering"
    seen: ClassVar[Any] = itertools.count()

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        step = yield from stepped(x, t, t_next, schedule)
        return Step(step.x * (1.0 + 1e-6 * next(self.seen)))


@dataclass(frozen=True)
class Spendthrift(Solver):
    """Asks twice and says once."""

    name: ClassVar[str] = "spendthrift"

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        yield Query(x, t)
        return (yield from stepped(x, t, t_next, schedule))


@dataclass(frozen=True)
class Greedy(Solver):
    """Asks for an estimate at the place it reached, even at the data."""

    name: ClassVar[str] = "greedy"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        step = yield from stepped(x, t, t_next, schedule)
        yield Query(step.x, t_next)
        return step


@dataclass(frozen=True)
class Wide(Solver):
    """Turns float32 into float64."""

    name: ClassVar[str] = "wide"

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        import numpy as np

        return (yield from stepped(np.asarray(x, "float64"), t, t_next, schedule))


@dataclass(frozen=True)
class Overflowing(Solver):
    """Computes with numbers that half precision does not have."""

    name: ClassVar[str] = "overflowing"

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        step = yield from stepped(x, t, t_next, schedule)
        return Step(step.x * 1e6 * 1e-6)


@dataclass(frozen=True)
class Dividing(Solver):
    """Divides by h at the end, as the solver did whose every picture was NaN."""

    name: ClassVar[str] = "dividing"

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        step = yield from stepped(x, t, t_next, schedule)
        return Step(step.x * (float("nan") if schedule.sigma(t_next) == 0.0 else 1.0))


@dataclass(frozen=True)
class Secretive(Solver):
    name: ClassVar[str] = "secretive"


class Loose(Solver):
    """No dataclass at all."""

    name: ClassVar[str] = "loose"


@dataclass(frozen=True)
class Quiet(DDIM):
    """Draws noise and says it does not."""

    eta: float = 0.7
    stochastic: ClassVar[bool] = False


@dataclass(frozen=True)
class Unbounded(Solver):
    """Takes any number."""

    rtol: float = 0.1
    name: ClassVar[str] = "unbounded"


@dataclass(frozen=True)
class Renamed(DDIM):
    """A solver under a name that is another's."""

    name: ClassVar[str] = "euler"


@pytest.mark.parametrize(
    ("solver", "check"),
    [
        (Boastful(), checks.check_order_is_as_declared),
        (Remembering(), checks.check_keeps_no_state),
        (Remembering(), checks.check_batch_equals_alone),
        (Remembering(), checks.check_replays_exactly),
        (Remembering(), checks.check_constant_estimate_lands_exactly),
        (Spendthrift(), checks.check_calls_per_step),
        (Greedy(), checks.check_calls_per_step),
        (Wide(), checks.check_array_libraries_agree),
        (Overflowing(), checks.check_half_precision_stays_close),
        (Dividing(), checks.check_ends_finite),
        (Secretive(), checks.check_has_summary_and_reference),
        (Loose(), checks.check_is_a_frozen_dataclass),
        (Quiet(), checks.check_declares_its_noise),
        (Renamed(), checks.check_spec_round_trips),
        (Unbounded(), checks.check_settings_are_bounded),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Solver) else v.__name__,
)
def test_the_checks_catch(solver: Solver, check: Any) -> None:
    with pytest.raises(AssertionError):
        check(solver)


def test_every_check_has_a_fault_that_it_catches() -> None:
    caught = {param[1] for param in test_the_checks_catch.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert caught == set(checks.CHECKS)
