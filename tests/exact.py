"""Exact backbones as subjects of a benchmark: what a search finds on them can be held against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Problem
from skipstone.evaluation.columns import Column, Sampler
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import GeneratedSample, SampleRequest

SHAPE = (6, 6, 3)


@dataclass
class ExactSubject:
    """A backbone without a network, its samples being its pictures.

    Args:
        backbone: A `Gaussian` or a `Mixture`.
        steps: Of its usual grid.
    """

    backbone: Any
    steps: int = 12
    drawn: int = 0
    name: str = "exact"
    guidance: None = None
    policy: str = "fixed"
    is_video: bool = False
    judge: None = None
    folder: Path = Path()
    denoisers: tuple[()] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def default_sampler(self) -> Sampler:
        return Sampler(registry.parse("solver", "unipc"), registry.parse("grid", "trailing"), self.steps)

    def check(self, prompts: Sequence[str]) -> None:
        """It draws anything."""

    def resolve_column(self, column: Column) -> Column:
        return replace(
            column, solver=column.solver or self.default_sampler.solver, grid=column.grid or self.default_sampler.grid
        )

    def load(self, columns: Sequence[Column]) -> None:
        """Nothing to load."""

    def warm_up(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Nothing to warm up."""

    def prepare(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Nothing to prepare."""

    def start(self, item: SampleRequest) -> Any:
        """The noise of a sample."""
        return np.random.default_rng(item.seed).standard_normal(SHAPE)

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: Any = None
    ) -> tuple[list[GeneratedSample], float]:
        column = self.resolve_column(column)
        assert column.solver is not None
        assert column.grid is not None
        schedule = self.backbone.schedule
        grid = tuple(column.grid.times(schedule, column.steps))
        problems = [Problem(schedule, self.start(item), grid, branches=self.backbone.branches) for item in items]
        results = denoise_many(self.backbone, problems, column.solver, column.effective_policy)
        self.drawn += len(items)
        return [GeneratedSample(r.x, r.run, r.run.cost, float(column.steps), r.status) for r in results], 0.0

    def pictures(self, generated: Sequence[GeneratedSample]) -> list[Any]:
        return [0.5 + 0.2 * m.x for m in generated]


def eval_samples(count: int, first: int = 0) -> list[EvaluationSample]:
    return [EvaluationSample(Prompt(f"p{k}", f"prompt {k}"), first + k) for k in range(count)]
