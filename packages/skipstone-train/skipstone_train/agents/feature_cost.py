"""What it costs to look at pictures, in calls of the network: measured, not guessed."""

from __future__ import annotations

from typing import Any

from skipstone.engine.requests import Query
from skipstone.errors import SpecError
from skipstone.evaluation.cost import count_macs
from skipstone.policies.agent.published import PublishedObservation

EXAMPLE_PROMPT = "a cat"  # any will do: costs are those of shapes


def published(model: Any, by: str = "", fee: float | None = None) -> PublishedObservation:
    """The published observation of a model.

    Args:
        model: Whose pictures are looked at.
        by: What looks, as of the signal `look`: "" the model's own, else the folder or id of a CLIP.
        fee: Of a look, in full calls, >= 0; None measures it: multiply-accumulates of a decoding and of what looks,
            over those of a full call of the network.

    Raises:
        SpecError: a fee below 0.
        ModelError: nothing can look.
    """
    if fee is not None and not fee >= 0:
        raise SpecError(f"Expected a fee >= 0, in full calls, got {fee}; null measures it.")
    problem = model.problem(EXAMPLE_PROMPT)
    extractor = problem.feature_extractors(by)
    if fee is None:
        with count_macs([extractor.image_encoder]) as looked:
            extractor.image_features(problem.x)
        with count_macs([model.unet]) as called:
            model.backbone.predict([Query(problem.x, problem.grid[0], problem.cond)])
        fee = looked.macs / called.macs
    image, text = extractor.widths
    return PublishedObservation(by, image, text, round(fee, 4))
