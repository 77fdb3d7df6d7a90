"""Where a run in half precision went beyond its largest number: found by a replay, so that good runs pay nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ...engine.contracts import Run
from ...engine.drivers import replay
from ...engine.requests import Estimate, Problem, Query, Solver
from ...errors import BackboneError
from .backbone import MlxBackbone


@dataclass(frozen=True, eq=False)
class CheckedBackbone:
    """A backbone whose answers are looked at as they come.

    Args:
        own: It.
        dtype: Of its weights, for the error.

    Raises:
        BackboneError: on `predict`, where an answer is NaN or infinite.
    """

    own: MlxBackbone
    dtype: str

    def __getattr__(self, name: str) -> object:
        return getattr(self.own, name)

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """The answers, where all of them are finite."""
        answers = self.own.predict(queries)
        for query, answer in zip(queries, answers, strict=True):
            if not bool(mx.all(mx.isfinite(answer.output))):
                raise BackboneError(
                    f"The network put out NaN or infinite numbers at t={query.t:.4g} (1 is noise, 0 data) in "
                    f"{self.dtype}. Load it with dtype='bfloat16', whose largest number is that of float32, or with "
                    f"dtype='float32'."
                )
        return answers


def check_overflow(backbone: MlxBackbone, problem: Problem, solver: Solver, run: Run, dtype: str) -> None:
    """Repeat a run, and raise BackboneError at the step where its network overflows."""
    replay(CheckedBackbone(backbone, dtype), problem, solver, run)  # type: ignore[arg-type]
