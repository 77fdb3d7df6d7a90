"""Networks of the zoo as problems for the engine: backbone, starting samples and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from research.zoo.export import load
from research.zoo.network import Denoiser
from research.zoo.schedules import SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, TRAIN_TIMESTEPS, Schedule
from skipstone.engine.requests import Problem
from skipstone.integrations.torch import ModuleBackbone
from skipstone.numerics import grid as grids
from skipstone.numerics.tables import Table
from skipstone.registry import parse

ZOO = Path(__file__).parents[1] / "zoo"
KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class ZooNetwork:
    """A finished network of the zoo.

    Args:
        name: Of its folder.
        samples: How many to start.
        seed: Of noise and labels.
    """

    name: str
    samples: int = 64
    seed: int = 1234

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What `zoo.json` says."""
        found: dict[str, Any] = json.loads((ZOO / self.name / "zoo.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def module(self) -> Denoiser:
        """The network."""
        return load(ZOO / self.name)

    @cached_property
    def taught(self) -> Schedule:
        """The schedule that it was trained on."""
        return Schedule(**self.facts["schedule"])

    @cached_property
    def schedule(self) -> Any:
        """The same for the engine; EDM's is a table of 1000 levels, even in log sigma."""
        if self.taught.kind == "flow":
            return parse("schedule", f"flow(shift={self.taught.shift})")
        if self.taught.kind == "edm":
            bars = [1.0 / (1.0 + sigma**2) for sigma in _edm_sigmas().tolist()]
            return Table(tuple(bars), 1.0)
        return Table(tuple(self.taught.alphas_cumprod().tolist()), 1.0)

    @property
    def family(self) -> str:
        """Prediction type and noise schedule: networks that share both are left out together."""
        kind = self.taught.kind
        return kind if kind in ("flow", "edm") else f"{self.taught.prediction_type} / {kind}"

    @property
    def guidance(self) -> float:
        """Weight of the guidance that the network is run with from outside; 1 where it was distilled for it."""
        return 1.0 if self.facts["distilled_guidances"] else float(self.facts["guidance"])

    def backbone(self) -> ModuleBackbone:
        """The network as a backbone."""
        kind = self.taught.kind
        prediction: Any = {"flow": "flow", "edm": "x0"}.get(kind) or KINDS[self.taught.prediction_type]
        guidance = self.guidance if self.facts["counts"] else 1.0
        return ModuleBackbone(self.module, self.schedule, prediction, guidance, self._forward)

    def _forward(
        self, module: torch.nn.Module, x: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        if self.taught.kind == "edm":
            place = timesteps / (TRAIN_TIMESTEPS - 1)
            sigma = (math.log(SIGMA_MIN) + place * math.log(SIGMA_MAX / SIGMA_MIN)).exp()
            noisy = x * (1 + sigma**2).sqrt().reshape(-1, 1, 1, 1)
            output = module(noisy / (sigma**2 + SIGMA_DATA**2).sqrt().reshape(-1, 1, 1, 1), 0.25 * sigma.log(), labels)
            return self.taught.split(output, noisy, sigma)[0]
        scale = torch.full((len(x),), float(self.facts["guidance"])) if self.facts["distilled_guidances"] else None
        return torch.as_tensor(module(x, timesteps, labels, scale))

    def problems(self, grid: str, steps: int) -> list[Problem]:
        """The samples to denoise on a grid."""
        times = parse("grid", grid).times(self.schedule, steps)
        generator = torch.Generator().manual_seed(self.seed)
        counts = self.facts["counts"]
        labels = [torch.randint(0, count, (self.samples,), generator=generator) for count in counts]
        noise = torch.randn((self.samples, *self.facts["shape"]), generator=generator)
        norm = math.hypot(self.schedule.alpha(times[0]), self.schedule.sigma(times[0]))
        return [
            Problem(self.schedule, noise[i] * norm, times, self._condition(labels, i), i, self.backbone().branches)
            for i in range(self.samples)
        ]

    def _condition(self, labels: Sequence[torch.Tensor], i: int) -> dict[str, torch.Tensor] | None:
        if not labels:
            return None
        return {"cond": torch.stack([label[i] for label in labels]), "uncond": self.module.unlabelled(1)[0]}

    def picture(self, samples: torch.Tensor) -> torch.Tensor:
        """Pictures in [-1, 1], clipped, of samples (B, ...)."""
        patch = self.facts["patch"]
        pixels = torch.nn.functional.pixel_shuffle(samples, patch) if patch > 1 else samples
        return (pixels / self.facts["scale"] + self.facts["centre"]).clamp(-1, 1)

    def reference_grid(self) -> str:
        """The grid of the converged run; a table that ends above sigma / alpha = 80 is entered at 80."""
        loud = -self.schedule.clock(1.0) > grids.LOG_SIGMA_MAX and self.taught.tabled and not self.taught.zero_snr
        return "asinh" if loud else "trailing"


def _edm_sigmas() -> torch.Tensor:
    place = torch.linspace(0, 1, TRAIN_TIMESTEPS, dtype=torch.float64)
    return (math.log(SIGMA_MIN) + place * math.log(SIGMA_MAX / SIGMA_MIN)).exp()
