"""One engine for NumPy, torch and MLX: equal decisions, unless a signal lies on its threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.contracts import Attempt, Forecast, Full, Plan, Run
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Backbone, Problem, Result
from skipstone.testing import compare_decisions
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

SPECS = [
    *registry.names("policy"),
    "third_order(tol=0.003) | forecast",
    "error_control(tol=1e-4)",
    "guidance_gate | error_control",
    "early_stop(tol=0.2) | budget(calls=15)",
]
BACKBONES: dict[str, Backbone] = {"gaussian": Gaussian(), "mixture": Mixture(), "guided": Mixture(guidance=3.0)}
SOLVERS = [n for n in ("ddim", "dpmpp", "heun") if n in registry.names("solver")]
SAMPLES = 4
SLACK = {"pid": 1e-3}  # lands on a continuous function of its signals
counted = {"runs": 0, "ties": 0}


def arrays(library: str, x: np.ndarray) -> Any:
    if library == "numpy":
        return x
    if library == "torch":
        return pytest.importorskip("torch").from_numpy(x)
    return pytest.importorskip("mlx.core").array(x)


def runs(library: str, backbone: Backbone, spec: str, solver: str) -> list[Result]:
    setup = PolicySetup(registry.parse("solver", solver), backbone, 30)
    problems = [setup.problem(seed, scale=(1.0, 0.5, 2.0, 1.0)[seed]) for seed in range(SAMPLES)]
    inputs: list[Problem] = [replace(p, x=arrays(library, p.x.astype(np.float32))) for p in problems]
    return denoise_many(backbone, inputs, setup.solver, registry.parse("policy", spec))


@pytest.mark.parametrize("library", ["torch", "mlx"])
@pytest.mark.parametrize("spec", SPECS)
def test_decides_as_numpy_does(library: str, spec: str) -> None:
    policy = registry.parse("policy", spec)
    for solver in SOLVERS:
        for name, backbone in BACKBONES.items():
            mine, others = runs("numpy", backbone, spec, solver), runs(library, backbone, spec, solver)
            batches = (
                [(mine, others)] if policy.scope == "batch" else [([a], [b]) for a, b in zip(mine, others, strict=True)]
            )
            for a, b in batches:
                found = compare_decisions(policy, a, b, slack=SLACK.get(spec, 0.0))
                counted["runs"] += 1
                counted["ties"] += found.tie
                assert found.agree, f"{spec} on {name} by {solver} decides differently at attempt {found.at}"
                if found.at is None:
                    for p, q in zip(a, b, strict=True):
                        np.testing.assert_allclose(np.asarray(q.x), p.x, atol=2e-3)


def test_ties_are_counted_and_few() -> None:
    print(f"{counted['ties']} of {counted['runs']} runs differ from NumPy's, all within 1e-4 of a threshold.")
    assert counted["ties"] <= 0.05 * max(1, counted["runs"])


def recorded(change: float, kind: Full | Forecast) -> Result:
    """A run of five steps whose last decision was `kind` after these changes of the latent."""
    grid = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.0)
    changes = [9.0, 1.0, 1.0, change]
    steps = zip(grid, grid[1:], [*changes, 1.0], [Full()] * 4 + [kind], strict=False)
    past = tuple(Attempt(t, s, Plan(e, s), 1.0, {"latent_change": d}, True) for t, s, d, e in steps)
    return Result(None, Run(0.1, 0.0, grid, (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0), past=past))


@pytest.mark.parametrize(("change", "tie"), [(1.02001, True), (1.0199, True), (1.03, False), (1.0, False)])
def test_only_a_signal_on_its_threshold_is_a_tie(change: float, tie: bool) -> None:
    """The threshold of the third-order rule lies at 1.02 here; a perturbation of 1e-4 reaches no further."""
    policy = registry.parse("policy", "third_order(tol=0.01)")
    kinds = (Full(), Forecast()) if change > 1.02 else (Forecast(), Full())
    mine, other = (recorded(change, kind) for kind in kinds)
    found = compare_decisions(policy, [mine], [other])
    assert found.at == 4
    assert found.tie is tie
    assert compare_decisions(policy, [mine], [mine]).agree
    assert not compare_decisions(policy, [mine], [other], rel=0.0).agree
