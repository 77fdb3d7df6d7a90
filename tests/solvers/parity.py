"""One run by a diffusers scheduler and by a solver: same table, same timesteps, same model, same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Estimate, Problem, Query
from skipstone.numerics.noise import standard_normal
from skipstone.numerics.parametrize import to_x0
from skipstone.numerics.schedule import Schedule
from skipstone.policies.fixed import Fixed

KINDS = {"eps": "epsilon", "v": "v_prediction"}
SEED = 7


def network(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A fixed nonlinear function in place of a network; half eps-like, so that x0 stays of the size of data."""
    k = timestep / 1000.0
    return 0.6 * k * x + 0.3 * torch.sin(2.0 * x + k) + 0.2 * torch.roll(x, 1, -1) * (1.0 - k)


@dataclass(frozen=True)
class Model:
    """The function as a backbone."""

    schedule: Schedule
    kind: str
    network_timestep: Callable[[float], float] = lambda k: k
    sites: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[int] = 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """What the function means for each query."""
        estimates = []
        for q in queries:
            output = network(q.x, self.network_timestep(self.schedule.timestep(q.t)))
            a, s = self.schedule.alpha(q.t), self.schedule.sigma(q.t)
            estimates.append(Estimate(to_x0(self.kind, output, q.x, a, s)))
        return estimates


def start() -> torch.Tensor:
    """A sample of one picture of noise, of diffusers' shape."""
    return standard_normal(SEED, 0, torch.empty(1, 3, 8, 8))


@contextmanager
def patch_noise(monkeypatch: Any, module: Any) -> Iterator[None]:
    """The scheduler's `randn_tensor` draws what the engine would: numbers 1, 2, ... of the run's stream."""
    drawn = iter(range(1, 10_000))
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "randn_tensor", lambda shape, **_: standard_normal(SEED, next(drawn), torch.empty(*shape))
        )
        yield


def nearest_timestep(scheduler: Any) -> Callable[[float], float]:
    """What the scheduler tells the network for a timestep of ours: diffusers rounds some grids, and cuts others off."""

    def nearest(k: float) -> float:
        found = min((float(s) for s in scheduler.timesteps), key=lambda s: abs(s - k))
        assert abs(found - k) <= 1.0 + 1e-3
        return found

    return nearest


def by_diffusers(scheduler: Any, **step: Any) -> torch.Tensor:
    """The latent where the scheduler ends, from where its first sigma begins."""
    x = start()
    if (
        getattr(scheduler, "init_noise_sigma", 1.0) != 1.0
    ):  # keeps x / alpha; its own start, sigma eps, is not on its own trajectory
        x = x * (scheduler.sigmas[0] ** 2 + 1.0) ** 0.5
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        output = network(scaled, float(timestep))
        x = scheduler.step(output, timestep, x, **step).prev_sample
    return x


def by_skipstone(
    spec: str, schedule: Schedule, grid: tuple[float, ...], kind: str, x0_filter: Any = None, **model: Any
) -> torch.Tensor:
    """The latent where the solver ends."""
    problem = Problem(schedule, start(), grid, seed=SEED, x0_filter=x0_filter)
    return denoise(Model(schedule, kind, **model), problem, registry.parse("solver", spec), Fixed()).x


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative distance, rms."""
    return float((ours - theirs).pow(2).mean().sqrt() / theirs.pow(2).mean().sqrt())
