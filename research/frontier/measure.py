"""Columns of a network: closeness of each sample, and mean calls, of a policy or a fixed sampler, kept in a file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research.frontier.networks import Network, reference_times
from skipstone.engine.drivers import denoise_many
from skipstone.errors import SkipstoneError
from skipstone.integrations.torch import CallCounter
from skipstone.registry import parse

REFERENCE_STEPS = 300  # of DPM-Solver++ on each of two grids, see `reference_times`; UniPC confirms with two thirds


@dataclass
class Measured:
    """Columns of one network.

    Args:
        network: With its samples.
        file: Keeps finished columns, so that the same command goes on; the reference lies beside it.
        steps: Of the reference, on each of its two grids.
    """

    network: Network
    file: Path
    steps: int = REFERENCE_STEPS
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            self.kept = json.loads(self.file.read_text(encoding="utf-8"))
        pictures = self.file.with_suffix(".pt")
        if not pictures.exists():
            torch.save(self._references(), pictures)
        self.reference, self.confirmed = torch.load(pictures, weights_only=True)

    def _references(self) -> tuple[torch.Tensor, list[float]]:
        schedule = self.network.schedule
        self.reference = self._draw("fixed", "dpmpp", reference_times(schedule, self.steps))[0]
        other = self._draw("fixed", "unipc", reference_times(schedule, self.steps * 2 // 3))[0]
        return self.reference, self.psnr(other)

    @property
    def agreement(self) -> tuple[float, float]:
        """PSNR between two references, at the median and in p10."""
        return statistics.median(self.confirmed), low(self.confirmed)

    def column(self, policy: str, solver: str = "", grid: str = "trailing", steps: int = 50) -> dict[str, Any]:
        """PSNR and calls of a column, drawn once; the solver is the policy's own by ""."""
        name = f"{policy} @ {solver} / {grid} / {steps}"
        if name not in self.kept:
            try:
                times = parse("grid", grid).times(self.network.schedule, steps)
                samples, calls = self._draw(policy, solver, times)
                self.kept[name] = {"psnr": self.psnr(samples), "calls": calls}
            except SkipstoneError as refused:
                self.kept[name] = {"refused": str(refused)}
            self.file.write_text(json.dumps(self.kept), encoding="utf-8")
        found: dict[str, Any] = self.kept[name]
        return found

    def _draw(self, policy: str, solver: str, times: Sequence[float]) -> tuple[torch.Tensor, float]:
        rule = parse("policy", policy)
        backbone, problems = self.network.backbone(), self.network.problems(times)
        with CallCounter(self.network.module) as counter:
            results = denoise_many(backbone, problems, parse("solver", solver or rule.solver), rule)
        pictures = self.network.picture(torch.stack([r.x for r in results]))
        return pictures, counter.rows / backbone.branches / len(problems)

    def psnr(self, pictures: torch.Tensor) -> list[float]:
        """PSNR in dB of each picture to the reference, at most 106."""
        errors = (pictures - self.reference).flatten(1).double().pow(2).mean(1).clamp_min(1e-10)
        return [float(v) for v in 10 * torch.log10(4.0 / errors)]


def low(values: Sequence[float]) -> float:
    """The tenth percentile."""
    return float(np.quantile(values, 0.1))
