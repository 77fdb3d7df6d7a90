"""A backbone that counts what enters it, so that neither a policy nor a solver has to be believed."""

from __future__ import annotations

from collections.abc import Sequence

from ...engine.requests import Backbone, Estimate, Query
from ...numerics.schedule import Schedule


class CountingBackbone:
    """Another backbone, with its `calls` (a branch that is given is none) and the `times` of its queries."""

    def __init__(self, inner: Backbone) -> None:
        self.inner = inner
        self.calls = 0.0
        self.times: list[float] = []

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @property
    def sites(self) -> tuple[str, ...]:
        return self.inner.sites

    @property
    def branches(self) -> int:
        return self.inner.branches

    def predict(self, queries: Sequence[Query]) -> Sequence[Estimate]:
        """Return the other backbone's answers; count the calls and record the times."""
        self.calls += sum(1 - len(q.known_outputs) / self.branches for q in queries)
        self.times += [q.t for q in queries]
        return self.inner.predict(queries)
