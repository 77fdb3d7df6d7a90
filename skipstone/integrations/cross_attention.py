"""Where a prompt's words are attended to: cross-attention of a diffusers denoiser, read by hooks that change nothing.

The processors stay as they are (LoRA, IP-Adapter, fused or sliced ones alike): what enters an attention layer is
seen before it is called, and its queries and the keys of its words are computed once more, for the rows asked alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ..errors import BackboneError


def content_tokens(tokenizer: Any, ids: Sequence[int]) -> tuple[int, ...]:
    """Places of a prompt's tokens that are words of its own: neither start, end nor padding."""
    special = set(tokenizer.all_special_ids)
    return tuple(k for k, token in enumerate(ids) if int(token) not in special)


class AttentionRecorder:
    """Attention of latent cells to text tokens, mean over heads and layers, while a denoiser is called.

        with Attended(unet, rows=[0], size=(64, 48)) as seen:
            unet(x, t, encoder_hidden_states=states)
        maps = seen.maps()  # (1, tokens, 64, 48), summing to 1 over the tokens

    A layer's map is the softmax of its queries over the keys of the text alone, so that joint attention (Stable
    Diffusion 3), where cells also look at each other, is read like the cross-attention of a U-Net. Layers of a
    coarser grid are interpolated linearly.

    Args:
        module: The denoiser, whose attention layers are `diffusers.models.attention_processor.Attention`.
        rows: Of the batch, in the order in which maps come; the branches of the prompt, not the empty ones.
        size: Height and width of the latent.

    Raises:
        BackboneError: on `maps`, where no layer read a text, or none whose cells are a grid of the latent's shape.
    """

    def __init__(self, module: nn.Module, rows: Sequence[int], size: tuple[int, int]) -> None:
        self.module, self.rows, self.size = module, list(rows), size
        self._sum: Any = None
        self._layers = 0
        self._hooks: list[Any] = []

    def __enter__(self) -> AttentionRecorder:
        from diffusers.models.attention_processor import Attention

        layers = [layer for layer in self.module.modules() if isinstance(layer, Attention)]
        self._hooks = [layer.register_forward_pre_hook(self._record, with_kwargs=True) for layer in layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def maps(self) -> torch.Tensor:
        """(rows, tokens, height, width), >= 0, summing to 1 over the tokens."""
        if not self._layers:
            raise BackboneError(
                f"{type(self.module).__name__} has no attention from a grid of {self.size[0]} x {self.size[1]} cells "
                f"to text that Skipstone can read, so there is no map of where a prompt is missing. Leave `refine` out."
            )
        found: torch.Tensor = self._sum / self._layers
        return found

    def _record(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("hidden_states", "encoder_hidden_states", "attention_mask"), args, strict=False)) | kwargs
        cells, text = named["hidden_states"], named.get("encoder_hidden_states")
        if text is None or cells.ndim != 3 or (grid := self._grid(cells.shape[1])) is None:
            return
        shares = _attention_shares(
            layer, cells[self.rows], text[self.rows], _mask_bias(named.get("attention_mask"), self.rows)
        )
        made = shares.transpose(1, 2).reshape(len(self.rows), -1, *grid)
        if grid != self.size:
            made = nn.functional.interpolate(made, self.size, mode="bilinear", align_corners=False)
        if self._sum is not None and self._sum.shape != made.shape:
            return  # a second text beside the prompt (image tokens, say): the first is the prompt
        self._sum = made if self._sum is None else self._sum + made
        self._layers += 1

    def _grid(self, cells: int) -> tuple[int, int] | None:
        """The latent's grid, coarsened by a whole number, that has so many cells."""
        height, width = self.size
        for by in range(1, max(height, width) + 1):
            grid = (-(-height // by), -(-width // by))
            if grid[0] * grid[1] == cells:
                return grid
        return None


def _mask_bias(mask: torch.Tensor | None, rows: list[int]) -> torch.Tensor | None:
    """An additive mask of the rows, if there is one."""
    if mask is None or mask.dtype == torch.bool:
        return mask
    return mask[rows] if len(mask) > 1 else mask


def _attention_shares(layer: Any, cells: torch.Tensor, text: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention (rows, cells, tokens) of cells to the text's tokens, mean over heads, summing to 1 over tokens."""

    def heads(x: torch.Tensor, norm: Any) -> torch.Tensor:
        split = x.view(*x.shape[:2], layer.heads, -1).transpose(1, 2)
        normed: torch.Tensor = split if norm is None else norm(split)
        return normed

    joint = getattr(layer, "add_k_proj", None) is not None
    if not joint and getattr(layer, "norm_cross", None):
        text = layer.norm_encoder_hidden_states(text)
    query = heads(layer.to_q(cells), getattr(layer, "norm_q", None))
    if joint:
        key = heads(layer.add_k_proj(text), getattr(layer, "norm_added_k", None))
    else:
        key = heads(layer.to_k(text), getattr(layer, "norm_k", None))
    scores: torch.Tensor = (query.float() * layer.scale) @ key.float().transpose(2, 3)
    if bias is not None and bias.dtype == torch.bool:
        scores = scores.masked_fill(~bias[..., -text.shape[1] :], -torch.inf)
    elif bias is not None:
        scores = scores + bias[..., -text.shape[1] :].reshape(len(bias), 1, -1, text.shape[1])
    return scores.softmax(-1).mean(1)
