"""A network of `networks.py` as the library's commands see a model, so that `tune` can be run on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from research.frontier.networks import Network
from skipstone.engine.drivers import denoise_many
from skipstone.evaluation.columns import Column, Sampler
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample
from skipstone.evaluation.subject import GeneratedSample, SampleProgressCallback, SampleRequest
from skipstone.registry import parse

SAMPLER = Sampler(parse("solver", "unipc"), parse("grid", "trailing"), 50)


@dataclass(frozen=True)
class NetworkSubject:
    """A network; the seed of a request is the number of its sample, its prompt is not read.

    Args:
        network: With its samples.
    """

    network: Network
    default_sampler: Sampler = SAMPLER
    policy: str = "balanced"
    is_video: bool = False
    judge: None = None
    folder: Path = Path()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the network."""
        return self.network.name

    @property
    def guidance(self) -> float | None:
        """Weight of the guidance."""
        return self.network.guidance

    @property
    def denoisers(self) -> Sequence[Any]:
        """The network."""
        return (self.network.module,)

    def check(self, prompts: Sequence[str]) -> None:
        """It draws anything."""

    def resolve_column(self, column: Column) -> Column:
        """The column with its own solver and grid where it has none."""
        own = self.default_sampler
        return replace(column, solver=column.solver or own.solver, grid=column.grid or own.grid)

    def load(self, columns: Sequence[Column]) -> None:
        """It is loaded when it is first asked for."""

    def warm_up(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Do nothing: nothing is timed."""

    def prepare(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Do nothing: there are no peers."""

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: SampleProgressCallback | None = None
    ) -> tuple[list[GeneratedSample], float]:
        """The samples of these numbers, in one batch."""
        column = self.resolve_column(column)
        assert column.solver is not None
        assert column.grid is not None
        backbone = self.network.backbone()
        problems = self.network.problems(tuple(column.grid.times(self.network.schedule, column.steps)))
        wanted = [problems[item.seed] for item in items]
        results = denoise_many(backbone, wanted, column.solver, column.effective_policy)
        full = float(column.steps * column.solver.stages)
        return [GeneratedSample(r.x, r.run, r.run.cost, full, r.status) for r in results], 0.0

    def pictures(self, generated: Sequence[GeneratedSample]) -> list[Any]:
        """Pictures in [0, 1]."""
        import torch

        return [0.5 + 0.5 * p.double().numpy() for p in self.network.picture(torch.stack([g.x for g in generated]))]


def numbered(numbers: range) -> list[EvaluationSample]:
    """Samples of a network by their numbers."""
    return [EvaluationSample(Prompt(f"sample{k}", f"sample {k}"), k) for k in numbers]
