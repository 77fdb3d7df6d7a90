"""What a pipeline does after it was taken over: it walks to the result, and must do nothing else on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .batch_router import DenoiserCall
from .refusal import TakeoverBroken
from .sample_place import fit
from .takeover_backbone import PipelineBackbone

RELATIVE, ABSOLUTE = 1e-2, 1e-3  # how far times may be from ours: they may be in half precision


@dataclass
class Walk:
    """Checks every later step of a pipeline whose run was made in its first one.

    The pipeline's calls of its network are not made; they return numbers in which the branches differ much, so that
    the guidance that the pipeline makes of them can be recognised.

    Args:
        backbone: Of the run.
        timesteps: Those of the scheduler's calls.
        left: The sample as the last step left it.
    """

    backbone: PipelineBackbone
    timesteps: tuple[float, ...]
    left: torch.Tensor | None = None

    def begin(self) -> None:
        """Let the pipeline's calls return test numbers from now on."""
        draw = torch.Generator("cpu").manual_seed(0)
        for p in self.backbone.router.denoiser_calls.values():
            test = torch.randn(p.output.shape, generator=draw, dtype=torch.float32)
            p.output = test.to(dtype=p.output.dtype, device=p.output.device)

    def check(self, call: int, output: torch.Tensor, x: torch.Tensor) -> None:
        """Raise TakeoverBroken where a step is not as the takeover has taken it to be.

        Args:
            call: Index of the scheduler's call, from 1.
            output, x: What it was given.
        """
        self.backbone.router.check_takeover()
        if self.left is not None and not _is_same_sample(x, self.left.to(x.dtype)):
            raise TakeoverBroken("something acts on the sample between two steps (a callback, or the pipeline itself)")
        timestep, driver = self.timesteps[call], self.backbone.driver
        phase, layout = self.backbone.phase(timestep), driver.layout
        samples = torch.stack([layout.row_of(driver.engine(layout.take(x, s), call)) for s in range(layout.samples)])
        for p in self.backbone.router.denoiser_calls.values():
            if p.module is not phase.module:
                raise TakeoverBroken(f"another network is called at timestep {timestep:g} than was expected")
            _check_input(p, samples, self.backbone.time(timestep), timestep)
        guided = torch.stack([fit(layout.take(output, s), layout.take(x, s).shape) for s in range(layout.samples)])
        if not phase.guidance.explains(self._test_outputs(guided.shape[1:]), guided):
            raise TakeoverBroken("the pipeline guides otherwise than in its first step")

    def _test_outputs(self, shape: torch.Size) -> dict[str, torch.Tensor]:
        """Branch -> the numbers that the network's calls return, (samples, ...)."""
        layout = self.backbone.driver.layout
        return {
            branch: torch.stack(
                [fit(layout.sample_of(p.output[j * layout.samples + s]), shape) for s in range(layout.samples)]
            )
            for p in self.backbone.router.denoiser_calls.values()
            for j, branch in enumerate(p.branches)
        }


def _check_input(p: DenoiserCall, samples: torch.Tensor, time: float, timestep: float) -> None:
    """Raise TakeoverBroken where a network is given something else than these samples at this time."""
    assert p.batch is not None
    given = p.place.samples(p.batch)
    expected = torch.cat([samples] * (p.rows // samples.shape[0])).to(given.dtype)
    if not torch.allclose(given, expected, RELATIVE, ABSOLUTE, equal_nan=True):
        raise TakeoverBroken(f"{type(p.module).__name__} is given something else than the sample")
    values = torch.as_tensor(p.time).float()
    if not torch.allclose(values, torch.full_like(values, time), RELATIVE, ABSOLUTE):
        raise TakeoverBroken(f"{type(p.module).__name__} is told another time at timestep {timestep:g} than {time:g}")


def _is_same_sample(x: torch.Tensor, left: torch.Tensor) -> bool:
    """Whether a sample is as the last step left it, or that rounded: some pipelines keep it in half precision."""
    rounded = (left, *(left.to(dtype).to(x.dtype) for dtype in (torch.bfloat16, torch.float16)))
    return any(torch.equal(x, one) or torch.equal(torch.nan_to_num(x), torch.nan_to_num(one)) for one in rounded)
