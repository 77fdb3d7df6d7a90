"""Cost of extracting features from pictures, measured in calls of the network."""

from __future__ import annotations

from typing import Any

from skipstone.engine.requests import Query
from skipstone.errors import SpecError
from skipstone.evaluation.cost import count_macs
from skipstone.policies.agent.addiffusion_observation import PublishedObservation

EXAMPLE_PROMPT = "a cat"  # any prompt: the cost depends on shapes only


def build_published_observation(model: Any, by: str = "", fee: float | None = None) -> PublishedObservation:
    """The published observation of a model.

    Args:
        model: Whose pictures are observed.
        by: The image encoder, as of the signal `look`: "" the model's own, else a CLIP's folder or id.
        fee: Of one extraction, in full calls, >= 0; None measures it: multiply-accumulates of decoding and encoding,
            over those of a full call of the network.

    Raises:
        SpecError: a fee below 0.
        ModelError: there is no image encoder.
    """
    if fee is not None and not fee >= 0:
        raise SpecError(f"Expected a fee >= 0, in full calls, got {fee}; null measures it.")
    problem = model.problem(EXAMPLE_PROMPT)
    extractor = problem.feature_extractors(by)
    if fee is None:
        with count_macs([extractor.image_encoder]) as extraction:
            extractor.image_features(problem.x)
        with count_macs([model.unet]) as full_call:
            model.backbone.predict([Query(problem.x, problem.grid[0], problem.cond)])
        fee = extraction.macs / full_call.macs
    image, text = extractor.widths
    return PublishedObservation(by, image, text, round(fee, 4))
