"""A custom node for ComfyUI: policies of Skipstone as a sampler.

Copy this file into ComfyUI's folder custom_nodes, install skipstone in ComfyUI's Python, and connect the node
"Skipstone sampler" to the input `sampler` of SamplerCustom or SamplerCustomAdvanced.

Not tried inside ComfyUI yet: the tests call it as ComfyUI's KSAMPLER calls a sampler, with a small denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

import skipstone
from skipstone.integrations.torch import ModuleBackbone
from skipstone.numerics.schedule import Schedule


@dataclass(frozen=True)
class ComfySchedule(Schedule):
    """ComfyUI's sigmas as a schedule; the network is given the sigma.

    Args:
        largest: The first sigma, > 0.
        flow: x = (1 - sigma) x0 + sigma noise; otherwise ComfyUI's x is x0 + sigma noise, divided here by
            sqrt(1 + sigma^2).
    """

    largest: float
    flow: bool
    name: ClassVar[str] = "comfyui"

    def timestep(self, t: float) -> float:
        return self.largest * (t if self.flow else t**7)  # small sigmas are as far apart in t as large ones

    def at(self, sigma: float) -> float:
        """The t of a sigma."""
        share = min(1.0, sigma / self.largest)
        return share if self.flow else share ** (1 / 7)

    def alpha(self, t: float) -> float:
        sigma = self.timestep(t)
        return 1 - sigma if self.flow else (1 + sigma**2) ** -0.5

    def sigma(self, t: float) -> float:
        sigma = self.timestep(t)
        return sigma if self.flow else sigma * (1 + sigma**2) ** -0.5

    def scale(self, t: float) -> float:
        """What ComfyUI's x is multiplied by to be that of Skipstone."""
        return 1.0 if self.flow else self.alpha(t)


class ComfyDenoiser(nn.Module):
    """ComfyUI's model as a module. It answers with x0, and its whole batch is one sample here."""

    def __init__(self, model: Any, schedule: ComfySchedule, extra_args: dict[str, Any], callback: Any) -> None:
        super().__init__()
        self.calls, self.schedule, self.callback = 0, schedule, callback
        self.denoise = partial(model, **extra_args)

    def forward(self, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
        sigma = float(sigmas[0])
        theirs = x[0] / self.schedule.scale(self.schedule.at(sigma))
        x0 = self.denoise(theirs, sigmas.new_full((len(theirs),), sigma))
        if self.callback is not None:  # ComfyUI's preview and progress bar
            self.callback({"i": self.calls, "x": theirs, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})
        self.calls += 1
        return x0[None]


def is_flow(model: Any) -> bool:
    """Whether ComfyUI's model is a rectified flow (its model_sampling derives from CONST)."""
    sampling = getattr(getattr(getattr(model, "inner_model", None), "inner_model", None), "model_sampling", None)
    return "CONST" in [kind.__name__ for kind in type(sampling).__mro__]


@torch.no_grad()
def sample(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    policy: str = "balanced",
    solver: str = "kriging",
) -> torch.Tensor:
    """Denoise x from the first sigma to the last, as the samplers of ComfyUI's k_diffusion do."""
    steps = [float(sigma) for sigma in sigmas]
    schedule = ComfySchedule(steps[0], is_flow(model))
    denoiser = ComfyDenoiser(model, schedule, extra_args or {}, callback)
    times = tuple(schedule.at(sigma) for sigma in steps)
    problem = skipstone.Problem(schedule, x * schedule.scale(times[0]), times)
    backbone = ModuleBackbone(denoiser, schedule, prediction="x0")
    result = skipstone.denoise(backbone, problem, skipstone.solver(solver), skipstone.policy(policy))
    print(f"Skipstone: {denoiser.calls} calls in place of {len(steps) - 1}")
    return result.x / schedule.scale(times[-1])


class SkipstoneSampler:
    """The node."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "sampling/custom_sampling/samplers"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (ComfyUI's name)
        return {
            "required": {"policy": ("STRING", {"default": "balanced"}), "solver": ("STRING", {"default": "kriging"})}
        }

    def get_sampler(self, policy: str, solver: str) -> tuple[Any]:
        from comfy.samplers import KSAMPLER

        skipstone.policy(policy), skipstone.solver(solver)  # a misspelt name is an error here
        return (KSAMPLER(partial(sample, policy=policy, solver=solver)),)


NODE_CLASS_MAPPINGS = {"SkipstoneSampler": SkipstoneSampler}
NODE_DISPLAY_NAME_MAPPINGS = {"SkipstoneSampler": "Skipstone sampler"}
