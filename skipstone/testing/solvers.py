"""Conformance checks of solvers: what every one must satisfy, ours or another package's.

@pytest.mark.parametrize("check", solver_checks(MySolver()), ids=check_id)
def test_my_solver(check):
    check()
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache, partial
from typing import Any

from .. import registry
from ..engine.drivers import denoise, denoise_many, replay
from ..engine.requests import Problem, Solver
from ..numerics.array import array_namespace, rms
from ..numerics.schedule import Cosine, FlowMatching, VPLinear
from ..numerics.tables import ScaledLinear, ZeroTerminalSNR
from ..policies.fixed import Fixed
from .backbones.counting import CountingBackbone
from .backbones.gaussian import Gaussian
from .backbones.mixture import Mixture
from .orders import gaussian_truth, measured_order, reference, run_without_noise
from .settings import check_settings_are_bounded

Check = Callable[[], None]
BELOW, ABOVE = 0.25, 0.5  # how far a measured order may lie below and above the declared one


def solver_checks(solver: Solver) -> Iterator[Check]:
    """Every check that applies to this solver, as functions without arguments that raise AssertionError."""
    for check in CHECKS:
        yield partial(check, solver)


def check_id(check: Any) -> str:
    """Name of a check in a test report."""
    return str(check.func.__name__.removeprefix("check_"))


def _require(truth: bool, solver: Solver, message: str) -> None:
    if not truth:
        raise AssertionError(f"{type(solver).__name__} {message}")


def _noise(seed: int = 0, dtype: str = "float64") -> Any:
    import numpy as np

    return np.random.default_rng(seed).standard_normal((2, 4, 4)).astype(dtype)


def _problem(backbone: Any, steps: int = 12, seed: int = 0) -> Problem:
    grid = (*(1 - i / steps for i in range(steps)), 0.0)
    return Problem(backbone.schedule, _noise(seed), grid, seed=seed)


@cache
def _truth() -> Any:
    return reference(Mixture())


def check_is_a_frozen_dataclass(solver: Solver) -> None:
    params = getattr(type(solver), "__dataclass_params__", None)
    _require(is_dataclass(solver) and params is not None and params.frozen, solver, "is not a frozen dataclass.")


def check_has_summary_and_reference(solver: Solver) -> None:
    cls = type(solver)
    doc = cls.__doc__ or ""
    generated = doc.startswith(f"{cls.__name__}(")  # what dataclass writes where there is none
    _require(bool(doc) and not generated, solver, "has no docstring; its first line becomes help text.")
    _require(
        registry.first_doc_line(cls).endswith("."), solver, "does not end its summary in a full stop on its first line."
    )
    _require("References:" in doc and "arXiv" in doc, solver, "names no reference with an arXiv id.")


def check_spec_round_trips(solver: Solver) -> None:
    spec = registry.spell(solver)
    _require(
        registry.parse("solver", spec) == solver, solver, f"has the spec {spec!r}, which parses to something else."
    )


def check_order_is_as_declared(solver: Solver) -> None:
    gaussian, mixture = Gaussian(), Mixture()
    measured = {"mixture": measured_order(solver, mixture, _truth())}
    if not solver.stochastic:  # without its noise a stochastic solver contracts Gaussian data to a point
        measured["Gaussian"] = measured_order(solver, gaussian, gaussian_truth(gaussian))
    for data, order in measured.items():
        off = order - solver.convergence_order
        message = f"declares order {solver.convergence_order}, measured {order:.2f} on the {data}."
        _require(-BELOW < off < ABOVE, solver, message)


def check_constant_estimate_lands_exactly(solver: Solver) -> None:
    """When all data are one point, every step is exact; noise is zero here, so stochastic ones must end there."""
    for schedule in (Cosine(), VPLinear(), FlowMatching()):
        point = Gaussian(0.3, 1e-9, schedule)
        inside = Problem(schedule, _noise(), (0.9, 0.6, 0.5, 0.2))
        if not solver.stochastic:
            gap = float(rms(run_without_noise(point, inside, solver) - point.exact(_noise(), 0.9, 0.2)))
            _require(gap < 1e-7, solver, f"misses a straight trajectory by {gap:.1e} on {schedule}.")
        if schedule.sigma(0.0) == 0.0:
            gap = float(rms(run_without_noise(point, _problem(point), solver) - 0.3))
            _require(gap < 1e-7, solver, f"misses the only point of the data by {gap:.1e} on {schedule}.")


def check_calls_per_step(solver: Solver) -> None:
    """`stages` calls on steps inside the schedule, no more anywhere, and never one where sigma vanishes."""
    inside, into_data, at_once = (0.9, 0.7, 0.5), (0.9, 0.6, 0.3, 0.0), (1.0, 0.0)
    for schedule, grid in ((Cosine(), inside), (VPLinear(), into_data), (FlowMatching(), at_once)):
        counted = CountingBackbone(Gaussian(schedule=schedule))
        run_without_noise(counted, Problem(schedule, _noise(), grid), solver)
        ends_in_data = schedule.sigma(grid[-1]) == 0.0
        steps, calls = len(grid) - 1, len(counted.times)
        least = (steps - ends_in_data) * solver.stages + ends_in_data
        _require(
            least <= calls <= steps * solver.stages,
            solver,
            f"declares {solver.stages} calls a step and made {calls} in {steps} steps.",
        )
        _require(min(schedule.sigma(t) for t in counted.times) > 0.0, solver, "asks for an estimate at sigma = 0.")


def check_ends_finite(solver: Solver) -> None:
    """From alpha = 0 to sigma = 0, in float32, on every kind of schedule, whatever the number of steps."""
    schedules = (Cosine(), VPLinear(), FlowMatching(), FlowMatching(3.0), ScaledLinear(), ZeroTerminalSNR())
    for schedule, steps in itertools.product(schedules, (1, 2, 5)):
        grid = (*(1 - i / steps for i in range(steps)), 0.0)
        mixture = Mixture(schedule=schedule, prediction="x0")
        end = run_without_noise(mixture, Problem(schedule, _noise(dtype="float32"), grid), solver)
        size = float(rms(end))
        _require(math.isfinite(size), solver, f"ends at {size} after {steps} steps on {schedule}.")


def check_array_libraries_agree(solver: Solver) -> None:
    """The same numbers with NumPy, torch and MLX, in float32, to rounding; NumPy in float64 is the truth."""
    mixture = Mixture(prediction="x0")
    truth = denoise(mixture, _problem(mixture), solver, Fixed()).x
    for array in _float32_arrays():
        result = denoise(mixture, _with(_problem(mixture), array), solver, Fixed()).x
        alike = type(result) is type(array) and result.dtype == array.dtype
        _require(alike, solver, f"turns {array.dtype} into {result.dtype}.")
        gap = max(abs(float(a) - float(b)) for a, b in zip(result.reshape(-1).tolist(), truth.reshape(-1), strict=True))
        _require(gap < 1e-3, solver, f"differs by {gap:.1e} from float64 with {array_namespace(array).__name__}.")


def check_half_precision_stays_close(solver: Solver) -> None:
    """In float16, whose largest number is 65504, the run keeps its dtype and ends near that in float64."""
    mixture = Mixture(prediction="x0")
    half = denoise(mixture, _with(_problem(mixture), _noise(dtype="float16")), solver, Fixed()).x
    gap = float(rms(half.astype("float64") - denoise(mixture, _problem(mixture), solver, Fixed()).x))
    _require(str(half.dtype) == "float16" and gap < 0.05, solver, f"ends {gap:.1e} away in {half.dtype}.")


def _float32_arrays() -> list[Any]:
    arrays = [_noise(dtype="float32")]
    if importlib.util.find_spec("torch"):
        import torch

        arrays.append(torch.from_numpy(_noise(dtype="float32")))
    if importlib.util.find_spec("mlx"):
        import mlx.core as mx

        arrays.append(mx.array(_noise(dtype="float32")))
    return arrays


def _with(problem: Problem, x: Any) -> Problem:
    return Problem(problem.schedule, x, problem.grid, seed=problem.seed)


def check_batch_equals_alone(solver: Solver) -> None:
    mixture = Mixture()
    problems = [_problem(mixture, 12, 0), _problem(mixture, 7, 1), _problem(mixture, 12, 2)]
    together = denoise_many(mixture, problems, solver, Fixed())
    for i, (problem, result) in enumerate(zip(problems, together, strict=True)):
        alone = denoise(mixture, problem, solver, Fixed())
        _require(_same(alone.x, result.x), solver, f"gives sample {i} another result in a batch than alone.")


def check_replays_exactly(solver: Solver) -> None:
    mixture = Mixture()
    problem = _problem(mixture)
    first = denoise(mixture, problem, solver, Fixed())
    again = replay(mixture, problem, solver, first.run)
    _require(_same(first.x, again.x), solver, "cannot be replayed from its own trace.")


def check_keeps_no_state(solver: Solver) -> None:
    """A run after another run, with another grid, is the run it would have been."""
    mixture = Mixture()
    problem = _problem(mixture)
    first = run_without_noise(mixture, problem, solver)
    run_without_noise(mixture, _problem(mixture, 5, 3), solver)
    _require(_same(first, run_without_noise(mixture, problem, solver)), solver, "remembers the runs before.")


def check_declares_its_noise(solver: Solver) -> None:
    """`stochastic` says whether another seed gives another result."""
    mixture = Mixture()
    one = _problem(mixture)
    other = Problem(one.schedule, one.x, one.grid, seed=1)
    same = _same(denoise(mixture, one, solver, Fixed()).x, denoise(mixture, other, solver, Fixed()).x)
    said = solver.stochastic
    _require(same is not said, solver, f"declares stochastic={said}, but seeds say otherwise.")


def _same(a: Any, b: Any) -> bool:
    return float(abs(a - b).max()) == 0.0


CHECKS = (
    check_is_a_frozen_dataclass,
    check_has_summary_and_reference,
    check_spec_round_trips,
    check_settings_are_bounded,
    check_order_is_as_declared,
    check_constant_estimate_lands_exactly,
    check_calls_per_step,
    check_ends_finite,
    check_array_libraries_agree,
    check_half_precision_stays_close,
    check_batch_equals_alone,
    check_replays_exactly,
    check_keeps_no_state,
    check_declares_its_noise,
)
