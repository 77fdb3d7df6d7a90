"""Features of a sample of Pebble: those that its judge reads facts from, and its own text state; or a CLIP's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from skipstone.errors import ModelError
from skipstone.integrations.features import LatentImageEncoder, SampleFeatureExtractor, load_clip


class Model(Protocol):
    """What decodes a sample: the parts of a `Pebble` that decode its latents."""

    @property
    def name(self) -> str: ...
    @property
    def has_judge(self) -> bool: ...
    @property
    def autoencoder(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class FeatureExtractorLoader:
    """`Problem.feature_extractors` of a sample: each is loaded when it is asked for.

    Args:
        model: Of the sample.
        prompt: Of the sample.
        text_states: Its text states (tokens, width).
    """

    model: Model
    prompt: str
    text_states: torch.Tensor

    def __call__(self, by: str = "") -> SampleFeatureExtractor:
        """The feature extractor of a name.

        Args:
            by: "" is the judge's features, 128 wide, and the mean text state. Otherwise a CLIP, see
                `skipstone.integrations.features.load_clip`.

        Raises:
            ModelError: no such CLIP, or a model whose pictures the judge cannot read.
        """
        if by:
            return load_clip(by).for_sample(self._decode, self.prompt)
        if not self.model.has_judge:
            raise ModelError(
                f"{self.model.name} has no judge that knows its pictures. Name a CLIP: eyes: FOLDER in the "
                f"configuration, or leave image, text and quality out of the observation."
            )
        from .judge import Judge

        mean = self.text_states.float().mean(0)
        return SampleFeatureExtractor(
            LatentImageEncoder(self._decode, Judge.load().encode_image), lambda: mean, (Judge.FEATURE_WIDTH, len(mean))
        )

    def _decode(self, x0: Any) -> torch.Tensor:
        """The picture (3, height, width) in [0, 1], as `Pebble.decode` makes it."""
        auto = self.model.autoencoder
        made: torch.Tensor = auto.decode(x0[None] / auto.config.scaling_factor, return_dict=False)[0][0]
        return (made.float() / 2 + 0.5).clamp(0, 1)
