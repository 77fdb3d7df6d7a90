"""A network and a student of it as one backbone: each answers the queries that are for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..numerics.schedule import Schedule
from .requests import Backbone, Estimate, Query


@dataclass(frozen=True, eq=False)
class PairedBackbone:
    """A model's backbone and a student's; a moment's queries are one forward of each at most.

    Args:
        model: Of the teacher.
        student_backbone: Of the student, on the same schedule, its costs counted in calls of the teacher.
        student: Folder of the student.
    """

    model: Backbone
    student_backbone: Backbone
    student: str

    @property
    def schedule(self) -> Schedule:
        """The teacher's."""
        return self.model.schedule

    @property
    def sites(self) -> tuple[str, ...]:
        """The teacher's."""
        return self.model.sites

    @property
    def branches(self) -> int:
        """Of a full call of the teacher."""
        return self.model.branches

    @property
    def modules(self) -> tuple[Any, ...]:
        """Both networks, for who counts their rows."""
        return (self.model.module, self.student_backbone.module)  # type: ignore[attr-defined]  # of backbones of torch

    def backbone_for(self, query: Query) -> Backbone:
        """The backbone that a query is for."""
        return self.student_backbone if query.by_student else self.model

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """The answers, each by its own network."""
        found: dict[int, Estimate] = {}
        for backbone in (self.model, self.student_backbone):
            mine = [i for i, query in enumerate(queries) if self.backbone_for(query) is backbone]
            if mine:
                found |= zip(mine, backbone.predict([queries[i] for i in mine]), strict=True)
        return [found[i] for i in range(len(queries))]
