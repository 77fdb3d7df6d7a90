"""The family of Stable Diffusion 3: a transformer over pixels and words, taught as a rectified flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from . import null_text_encoder as silent
from . import text
from .attention import MaskedJointAttnProcessor
from .compact import load_transformer
from .family import DenoiserFamily, DenoiserSettings, Network
from .inheritance import Inheritance


@dataclass(frozen=True)
class DiTSettings(DenoiserSettings):
    """Shape and training of the transformer and its text encoders.

    Args:
        blocks, heads, head_width: of the transformer; its width is heads x head_width.
        patch: latent cells on a side of a token.
        width, layers: of each of the two text encoders.
    """

    blocks: int = 6
    heads: int = 3
    head_width: int = 64
    patch: int = 1
    width: int = 128
    layers: int = 2
    rate: float = 2e-3
    muon: bool = True


class JointTextEncoder(nn.Module):
    """The two CLIP encoders as the pipeline reads them, packed into one condition (N, rows + 1, 2 width).

    The rows are the last hidden layer but one of both, side by side; the last row is their pooled output.
    """

    def __init__(self, first: CLIPTextModelWithProjection, second: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor]:
        """Condition of the token ids, in a tuple as a CLIP encoder's output."""
        made = [encoder(tokens, output_hidden_states=True) for encoder in (self.first, self.second)]
        rows = torch.cat([one.hidden_states[-2] for one in made], -1)
        pooled = torch.cat([one.text_embeds for one in made], -1)
        return (torch.cat([rows, pooled[:, None]], 1),)


def forward(
    denoiser: Any,
    x: torch.Tensor,
    times: torch.Tensor,
    condition: torch.Tensor | None,
    empty: int = silent.MAX_SEQUENCE_LENGTH,
) -> torch.Tensor:
    """The transformer's output for a packed condition and as many empty rows as the pipeline adds, at least 1.

    In training every other sample has one, so that `max_sequence_length=1`, which is much faster, may be
    given to the pipeline.
    """
    assert condition is not None
    if not isinstance(denoiser.transformer_blocks[0].attn.processor, MaskedJointAttnProcessor):
        denoiser.set_attn_processor(MaskedJointAttnProcessor())
    rows, pooled = condition[:, :-1], condition[:, -1]
    tokens = (x.shape[-1] // denoiser.config.patch_size) ** 2 + rows.shape[1] + 1
    mask = x.new_zeros(len(x), 1, 1, tokens)
    mask[:: 2 if denoiser.training else 1, ..., -1] = math.log(empty)
    output: torch.Tensor = denoiser(
        x,
        encoder_hidden_states=torch.cat([rows, torch.zeros_like(rows[:, :1])], 1),
        pooled_projections=pooled,
        timestep=times,
        joint_attention_kwargs={"attention_mask": mask},
        return_dict=False,
    )[0]
    return output


class DiT(DenoiserFamily):
    """`SD3Transformer2DModel` in a `StableDiffusion3Pipeline` whose T5 is silent."""

    name = "dit"
    settings = DiTSettings
    pipeline = "StableDiffusion3Pipeline"

    def build(self, settings: DiTSettings, tokenizer: CLIPTokenizer, base: Path | None = None) -> Network:
        """A new transformer whose blocks do nothing yet (arXiv:2212.09748); encoders new, or those of `base`."""
        width = settings.heads * settings.head_width
        net = SD3Transformer2DModel(
            sample_size=8,
            patch_size=settings.patch,
            in_channels=8,
            out_channels=8,
            num_layers=settings.blocks,
            attention_head_dim=settings.head_width,
            num_attention_heads=settings.heads,
            joint_attention_dim=2 * settings.width,
            caption_projection_dim=width,
            pooled_projection_dim=2 * settings.width,
            pos_embed_max_size=8 // settings.patch,
            qk_norm="rms_norm",
        )
        blocks = [norm for block in net.transformer_blocks for norm in (block.norm1, block.norm1_context)]
        for layer in (*(norm.linear for norm in blocks), net.norm_out.linear, net.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        first, second = (
            text.build_encoder(CLIPTextModelWithProjection, tokenizer, settings.width, settings.layers, base)
            for _ in range(2)
        )
        return Network(net, JointTextEncoder(first, second), tokenizer)

    def muon_parameters(self, network: Network) -> list[nn.Parameter]:
        """Those within the blocks of the transformer."""
        blocks = network.denoiser.transformer_blocks
        return [weight for weight in blocks.parameters() if weight.ndim == 2]

    def text_states(self, condition: torch.Tensor) -> torch.Tensor:
        """All rows but the last, which is the pooled state."""
        return condition[:-1]

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Straight paths from noise to picture; small pictures need no shift."""
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)

    def forward(
        self, denoiser: nn.Module, x: torch.Tensor, times: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """The flow, as the pipeline has it by default."""
        return forward(denoiser, x, times, condition)

    def corrupt(
        self, latents: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Times mostly in the middle (logit-normal, arXiv:2403.03206); the target is noise minus picture."""
        sigmas = torch.special.ndtri(spread.clamp(1e-4, 1 - 1e-4)).sigmoid()
        share = sigmas[:, None, None, None]
        return latents.lerp(noise, share), sigmas * 1000, noise - latents

    def inheritance(self, denoiser: nn.Module, run: Callable[[nn.Module], torch.Tensor]) -> Inheritance:
        """Children of the transformer with its weights."""
        return Inheritance(denoiser, run)

    def components(self, network: Network) -> Mapping[str, Any]:
        """Transformer, two text encoders with the one tokenizer for both, and the silent T5."""
        return {
            "transformer": network.denoiser,
            "text_encoder": network.encoder.first,
            "text_encoder_2": network.encoder.second,
            "text_encoder_3": silent.build_null_text_encoder(network.denoiser.config.joint_attention_dim),
            "tokenizer": network.tokenizer,
            "tokenizer_2": network.tokenizer,
            "tokenizer_3": silent.build_null_tokenizer(),
        }

    def load(self, folder: Path) -> Network:
        """Transformer, text encoders and tokenizer of a folder."""
        silent.check_null_text_encoder(folder / "text_encoder_3")
        net = load_transformer(folder / "transformer")
        first, second = (
            CLIPTextModelWithProjection.from_pretrained(folder / name).float().eval()
            for name in ("text_encoder", "text_encoder_2")
        )
        return Network(net, JointTextEncoder(first, second), CLIPTokenizer.from_pretrained(folder / "tokenizer"))
