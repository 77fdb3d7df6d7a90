"""Options of commands that can draw on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import SpecError
from . import options

if TYPE_CHECKING:
    from ..evaluation.subject import Subject

RayOption = Annotated[
    bool,
    typer.Option("--ray", help="Draw on a Ray cluster: that of RAY_ADDRESS, else one on this machine. Same results."),
]
WorkersOption = Annotated[
    int | None,
    options.number(
        least=1,
        most=1_000,
        help="Of --ray, each with the model; one for each GPU, or each machine without, by default.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class RayOptions:
    """Where samples are drawn."""

    ray: RayOption = False
    workers: WorkersOption = None

    def spread(self, make: Callable[[], Subject]) -> Subject:
        """The subject, which draws here or on the cluster.

        Args:
            make: Makes it; picklable.

        Raises:
            SpecError: workers without --ray.
            MissingPackage, BackboneError: no Ray, or no such cluster.
        """
        if not self.ray:
            if self.workers is not None:
                raise SpecError("--workers is for a Ray cluster: add --ray, or leave it out.")
            return make()
        from ..evaluation.ray_subject import on_ray

        return on_ray(make, self.workers)
