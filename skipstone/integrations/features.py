"""CLIP as a feature extractor: of decoded pictures and of prompts, from weights that the user brings.

Imports torch: load lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..errors import ModelError
from ..metrics.networks import ClipFeatures

CLIP_WIDTH = 768  # of the features that AdDiffusion looked at: CLIP ViT-L/14's
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was taught with, by channel
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class LatentImageEncoder(nn.Module):
    """A latent (channels, height, width) in, the features (width,) of its picture out, as one network.

    One module, so that its cost can be counted as that of any other.

    Args:
        decode: Latent to picture (3, height, width) in [0, 1].
        encode_image: Picture to features.
    """

    def __init__(
        self, decode: Callable[[torch.Tensor], torch.Tensor], encode_image: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self._decode, self._encode_image = decode, encode_image

    def forward(self, x0: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._encode_image(self._decode(x0))
        return found


@dataclass(frozen=True, eq=False)
class SampleFeatureExtractor:
    """The feature extractor of one sample, see `engine.requests.FeatureExtractor`.

    Args:
        image_encoder: Of its pictures.
        encode_prompt: Of its prompt.
        widths: Of the two kinds of features.
        aligned: Whether both live in one space, so that their cosine says how well the picture fits the prompt.
    """

    image_encoder: LatentImageEncoder
    encode_prompt: Callable[[], torch.Tensor]
    widths: tuple[int, int]
    aligned: bool = False

    @torch.inference_mode()
    def image_features(self, x0: torch.Tensor) -> torch.Tensor:
        """Features of the picture of a clean estimate, float32."""
        made: torch.Tensor = self.image_encoder(x0).float()
        return made

    @torch.inference_mode()
    def prompt_features(self) -> torch.Tensor:
        """Features of the prompt, float32."""
        return self.encode_prompt().float()


@dataclass(frozen=True, eq=False)
class ClipEncoder:
    """A CLIP's two encoders; made by `load_clip`.

    Args:
        net: Of transformers.
        tokenizer: Its own.
    """

    net: ClipFeatures
    tokenizer: Any

    @property
    def width(self) -> int:
        """Number of features of a picture or prompt; both are in one space."""
        return int(self.net.config.projection_dim)

    def encode_image(self, picture: torch.Tensor) -> torch.Tensor:
        """Features of a picture (3, height, width) in [0, 1], which is squeezed to the square that CLIP reads."""
        side = self.net.config.vision_config.image_size
        here = picture[None].float().to(self._device)
        square = nn.functional.interpolate(here, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, spread = (torch.tensor(v, device=here.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
        return self.net.get_image_features((square - mean) / spread)[0]

    def encode_prompt(self, prompt: str) -> torch.Tensor:
        """Features of a prompt, cut at as many tokens as CLIP reads."""
        longest = self.net.config.text_config.max_position_embeddings
        made = self.tokenizer(
            [prompt], padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
        ).to(self._device)
        return self.net.get_text_features(made.input_ids, made.attention_mask)[0]

    def for_sample(self, decode: Callable[[torch.Tensor], torch.Tensor], prompt: str) -> SampleFeatureExtractor:
        """The feature extractor of one sample: how its latent is decoded, and its prompt."""
        return SampleFeatureExtractor(
            LatentImageEncoder(decode, self.encode_image),
            lambda: self.encode_prompt(prompt),
            (self.width, self.width),
            True,
        )

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device


@lru_cache(maxsize=2)
def load_clip(weights: str) -> ClipEncoder:
    """A CLIP of transformers, loaded once.

    Args:
        weights: Folder with config.json, the weights and the tokenizer, or an id whose files are in the cache of
            huggingface_hub. Nothing is downloaded.

    Raises:
        ModelError: there is none, or it is something else.
    """
    from transformers import AutoTokenizer, CLIPModel
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        net = CLIPModel.from_pretrained(weights, local_files_only=True).float().eval().requires_grad_(False)
        return ClipEncoder(ClipFeatures(net), AutoTokenizer.from_pretrained(weights, local_files_only=True))
    except Exception as e:  # transformers, safetensors and tokenizers each have errors of their own
        first = (str(e) or type(e).__name__).strip().split("\n", 1)[0][:200]
        raise ModelError(
            f"Expected the folder of a CLIP in the format of transformers, or its id where it is downloaded already, "
            f"got {weights!r}: {first} Get one: hf download openai/clip-vit-large-patch14."
        ) from None
    finally:
        logging.set_verbosity(level)
