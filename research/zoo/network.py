"""The zoo's networks: diffusers' classes at a small size, under one way to call them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import nn

#: Width of the vectors that stand for words, in networks that read text.
TEXT_WIDTH = 64


@dataclass(frozen=True)
class NetworkSettings:
    """A diffusers class and its configuration.

    Args:
        kind: name of the class: "UNet2DModel", "UNet2DConditionModel", "FluxTransformer2DModel" or
            "WanTransformer3DModel".
        config: what differs from the class's defaults.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)


class Denoiser(nn.Module):
    """A network with its labels: `forward(sample, timestep, labels, guidance)` -> what the network says.

    Args:
        core: a model of one of the classes above.
        counts: how many values each label has; empty for a network without labels.

    Labels are (B, k) whole numbers. A label equal to its count says "not given" (guidance needs it). A network
    that reads text gets one token for each label; a UNet2DModel reads the first label only.
    """

    def __init__(self, core: nn.Module, counts: tuple[int, ...]) -> None:
        super().__init__()
        self.core, self.counts = core, counts
        self.words: nn.Embedding | None = None
        if counts and not isinstance(core, diffusers.UNet2DModel):
            self.words = nn.Embedding(sum(counts) + len(counts), TEXT_WIDTH)

    def unlabelled(self, batch: int) -> torch.Tensor:
        """Labels that say nothing, for a batch."""
        return torch.tensor(self.counts).expand(batch, len(self.counts))

    def tokens(self, labels: torch.Tensor) -> torch.Tensor:
        """A vector for each label: (B, k, TEXT_WIDTH)."""
        assert self.words is not None
        sizes = torch.tensor([0, *(count + 1 for count in self.counts[:-1])])
        return torch.as_tensor(self.words(labels + sizes.cumsum(0)))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        labels: torch.Tensor | None = None,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The network's output, shaped as the sample; `guidance` (B,) for a network that was distilled for it."""
        if isinstance(self.core, diffusers.UNet2DModel):
            classes = None if labels is None else labels[:, 0]
            return torch.as_tensor(self.core(sample, timestep, class_labels=classes).sample)
        assert labels is not None
        if isinstance(self.core, diffusers.FluxTransformer2DModel):
            return self._flux(sample, timestep, self.tokens(labels), guidance)
        return torch.as_tensor(self.core(sample, timestep, self.tokens(labels)).sample)

    def _flux(
        self, sample: torch.Tensor, timestep: torch.Tensor, tokens: torch.Tensor, guidance: torch.Tensor | None
    ) -> torch.Tensor:
        """Call a FLUX transformer as FluxPipeline does: 2 x 2 places of the sample are one token."""
        batch, channels, height, width = sample.shape
        rows, columns = height // 2, width // 2
        packed = sample.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        places = torch.zeros(rows, columns, 3)
        places[..., 1] += torch.arange(rows)[:, None]
        places[..., 2] += torch.arange(columns)[None]
        said = self.core(
            packed.reshape(batch, rows * columns, channels * 4),
            encoder_hidden_states=tokens,
            pooled_projections=tokens.mean(1),
            timestep=timestep / 1000,
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(tokens.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        unpacked = said.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return torch.as_tensor(unpacked.reshape(batch, channels, height, width))


def build(settings: NetworkSettings, counts: tuple[int, ...]) -> Denoiser:
    """A network with random weights."""
    config = dict(settings.config)
    if settings.kind == "UNet2DModel" and counts:
        config["num_class_embeds"] = counts[0] + 1
    core = getattr(diffusers, settings.kind)(**config)
    return Denoiser(core, counts)


def parameters_of(network: nn.Module) -> int:
    """How many numbers a network has learnt."""
    return sum(parameter.numel() for parameter in network.parameters())
