"""A model without a network, for engines under test: exact scores, small samples, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skipstone import registry
from skipstone.engine.requests import Problem
from skipstone.evaluation.engine_subject import EngineSubject
from skipstone.numerics.noise import standard_normal
from skipstone.serving.limits import Limits
from skipstone.serving.models import ServedModel
from skipstone.serving.settings import Choices, make_setting
from skipstone.testing.backbones import Mixture

SHAPE = (3, 4, 4)


@dataclass(frozen=True, eq=False)
class AnalyticModel:
    """Mixture scores; a prompt is the component whose number is its length modulo 3."""

    name: str = "analytic"
    guidance: float = 2.0
    backbone: Any = field(default_factory=lambda: Mixture(guidance=2.0))
    judge: Any = None
    unet: Any = None

    @property
    def schedule(self) -> Any:
        return self.backbone.schedule

    def problem(self, prompt: str, seed: int = 0, steps: int = 50, grid: Any = "trailing") -> Problem:
        times = registry.parse("grid", grid).times(self.schedule, steps) if isinstance(grid, str) else tuple(grid)
        noise = standard_normal(seed, 0, np.empty(SHAPE))
        return Problem(self.schedule, noise, times, len(prompt) % 3, seed, self.backbone.branches, text=prompt)

    def decode(self, latents: Sequence[Any]) -> list[Any]:
        return [np.clip(np.moveaxis(x, 0, -1) / 4 + 0.5, 0, 1) for x in latents]

    def guided(self, guidance: float) -> AnalyticModel:
        if guidance == self.guidance:
            return self
        return AnalyticModel(guidance=guidance, backbone=Mixture(guidance=guidance))


def served(
    limits: Limits | None = None, backbone: Any = None, policy: str = "fixed @ ddim / trailing / 6"
) -> ServedModel:
    """The model, ready to be served."""
    model = AnalyticModel(backbone=backbone) if backbone is not None else AnalyticModel()
    subject = EngineSubject.from_loaded(model)
    choices = Choices(subject, make_setting(subject, policy), {}, (limits or Limits()).steps)
    return ServedModel("analytic", model, choices)
