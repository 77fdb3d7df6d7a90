"""What the architecture of a denoiser decides; data, loop, sampling and figures are common to all families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from skipstone.errors import ModelError, SpecError
from skipstone.numerics.sizes import parse_sizes

from .scenes import SIDE

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, DiffusionPipeline
    from transformers import CLIPTokenizer


@dataclass(frozen=True)
class DenoiserSettings:
    """Training of a denoiser; the families add its shape. Raises SpecError for sizes that it cannot have.

    Args:
        batch: scenes in a step.
        rate: peak learning rate.
        muon: train the matrices that the family names by Muon in place of AdamW.
        empty: fraction of the captions replaced by "", for classifier-free guidance (arXiv:2207.12598).
        pair_share: fraction of the scenes with two objects.
        pairs: scenes with two objects in the cache; those with one are all in it.
        first: fraction of the captions of two objects that name the left or upper one first.
        precision: "bfloat16" or "float32" for the matrix products.
        sizes: sides of the pictures in pixels, multiples of 16 in 16..64; a step has pictures of one of
            them, in equal shares.
    """

    batch: int = 64
    rate: float = 1e-3
    muon: bool = False
    empty: float = 0.1
    pair_share: float = 0.6
    pairs: int = 60_000
    first: float = 0.8
    precision: str = "bfloat16"
    sizes: tuple[int, ...] = (64,)

    def __post_init__(self) -> None:
        if not self.sizes or any(side % 16 or not 16 <= side <= SIDE for side in self.sizes):
            raise SpecError(f"Expected sizes as multiples of 16 in 16..{SIDE} pixels, got {self.sizes}; try 48 64.")
        parse_sizes(list(map(str, self.sizes)))

    @property
    def record(self) -> dict[str, Any]:
        """The settings as a checkpoint keeps them; those from before there were sizes are alike."""
        found = asdict(self)
        if self.sizes == DenoiserSettings.sizes:
            del found["sizes"]
        return found


@dataclass(frozen=True)
class Network:
    """A family's trained modules and the words they read.

    Args:
        denoiser: the U-Net or the transformer.
        encoder: token ids (N, 24) -> a tuple whose first entry is the condition (N, rows, width).
        tokenizer: of both.
    """

    denoiser: Any
    encoder: Any
    tokenizer: CLIPTokenizer

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What is trained, by its name in a checkpoint."""
        return {"denoiser": self.denoiser, "text_encoder": self.encoder}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every weight that is trained."""
        return [weight for module in self.modules.values() for weight in module.parameters()]


class DenoiserFamily(ABC):
    """A class of denoisers: how one is built, called, taught and put into a diffusers pipeline."""

    name: ClassVar[str]
    settings: ClassVar[type[DenoiserSettings]]
    pipeline: ClassVar[str]  # name of its class in diffusers

    @abstractmethod
    def build(self, settings: Any, tokenizer: CLIPTokenizer, base: Path | None = None) -> Network:
        """A new network with torch's current random state, its words those of the model in `base` if given."""

    @abstractmethod
    def scheduler(self) -> Any:
        """The scheduler of the pipeline."""

    @abstractmethod
    def forward(
        self, denoiser: nn.Module, x: torch.Tensor, times: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """The denoiser's output for latents, the scheduler's times (N,) and conditions of the encoder."""

    def text_states(self, condition: torch.Tensor) -> torch.Tensor:
        """The text states (tokens, width) in a condition (rows, width)."""
        return condition

    @abstractmethod
    def corrupt(
        self, latents: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Noisy latents, their times, and what the denoiser should put out; `spread` (N,) in [0, 1) picks the times."""

    def muon_parameters(self, network: Network) -> list[nn.Parameter]:
        """The weights that Muon trains, where it is asked for."""
        return []

    def inheritance(self, denoiser: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> Any:
        """What makes children of a denoiser that are of other shapes and have its weights.

        Args:
            denoiser: The teacher.
            run: Calls a denoiser of the family on real rows.

        Raises:
            ModelError: the family has none.
        """
        raise ModelError(f"Expected a transformer, such as pebble-dit, got a {type(denoiser).__name__}.")

    @abstractmethod
    def components(self, network: Network) -> Mapping[str, Any]:
        """The pipeline's parts besides autoencoder and scheduler; their weights may be changed."""

    @abstractmethod
    def load(self, folder: Path) -> Network:
        """The network of a folder that `components` were saved in."""

    def build_pipeline(self, autoencoder: AutoencoderTiny, network: Network) -> DiffusionPipeline:
        """The diffusers pipeline."""
        import diffusers

        pipeline = getattr(diffusers, self.pipeline)
        return pipeline(vae=autoencoder, scheduler=self.scheduler(), **self.components(network))
