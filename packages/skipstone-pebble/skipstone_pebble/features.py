"""Eyes on a sample of Pebble: the features that its judge reads facts from, and its own text state; or a CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from skipstone.errors import ModelError
from skipstone.integrations.features import Eyes, Look, clip


class Model(Protocol):
    """What is looked through: the parts of a `Pebble` that decode its latents."""

    @property
    def name(self) -> str: ...
    @property
    def judged(self) -> bool: ...
    @property
    def autoencoder(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Looking:
    """`Problem.look` of a sample: what is to look is loaded when somebody looks.

    Args:
        model: Of the sample.
        prompt: Of the sample.
        state: Its text states (tokens, width).
    """

    model: Model
    prompt: str
    state: torch.Tensor

    def __call__(self, by: str = "") -> Eyes:
        """The eyes of a name.

        Args:
            by: "" is the judge's features, 128 wide, and the mean text state. Otherwise a CLIP, see
                `backbones.looking.clip`.

        Raises:
            ModelError: no such CLIP, or a model whose pictures the judge cannot read.
        """
        if by:
            return clip(by).at(self._decode, self.prompt)
        if not self.model.judged:
            raise ModelError(
                f"{self.model.name} has no judge that could look at its pictures. Name a CLIP: eyes: FOLDER in the "
                f"configuration, or leave image, text and quality out of what is seen."
            )
        from .judge import Judge

        mean = self.state.float().mean(0)
        return Eyes(Look(self._decode, Judge.load().see), lambda: mean, (Judge.WIDTH, len(mean)))

    def _decode(self, x0: Any) -> torch.Tensor:
        """The picture (3, height, width) in [0, 1], as `Pebble.decode` makes it."""
        auto = self.model.autoencoder
        made: torch.Tensor = auto.decode(x0[None] / auto.config.scaling_factor, return_dict=False)[0][0]
        return (made.float() / 2 + 0.5).clamp(0, 1)
