"""Components that are not ported to MLX, run by torch: on the GPU of a Mac where there is one, else on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ...errors import ModelError
from .available import torch_device
from .clip import CLIPTextOutput
from .loading import find_network


def why_not_ported(config: Mapping[str, Any], where: str) -> str:
    """Why the network of a config.json cannot run on MLX, as the end of a sentence; empty where it can."""
    try:
        find_network(config, where).from_config(config)
    except ModelError as e:
        return str(e).partition(". ")[0].rstrip(".")
    return ""


class TorchPart:
    """A network of diffusers or transformers on torch, called with arrays of MLX.

    Args:
        part: Its component.
        folder: Its folder.
        library, kind: The library and the class that model_index.json names.

    Raises:
        ModelError: it cannot be loaded by torch either.
    """

    def __init__(self, part: str, folder: Path, library: str, kind: str) -> None:
        import importlib

        self.part, self.device = part, torch_device()
        try:
            cls = getattr(importlib.import_module(library), kind)
            self.module = cls.from_pretrained(folder).float().eval().to(self.device)
        except Exception as e:  # torch, safetensors, importers ... have errors of their own
            line = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise ModelError(f"{folder} runs neither on MLX nor on torch: {line}") from e

    def parameters(self) -> dict[str, mx.array]:
        """The weights by their names."""
        return {name: mx.array(p.detach().float().cpu().numpy()) for name, p in self.module.named_parameters()}

    def decode(self, z: mx.array) -> mx.array:
        """Pictures (N, height, width, channels) of latents (N, rows, columns, channels)."""
        import torch

        with torch.inference_mode():
            made = self.module.decode(self._given(z.transpose(0, 3, 1, 2)), return_dict=False)[0]
        return _to_mlx(made).transpose(0, 2, 3, 1)

    def __call__(self, ids: mx.array) -> Any:
        """States of tokens: a `CLIPTextOutput` of an encoder that pools them, else the last hidden state."""
        import torch

        with torch.inference_mode():
            found = self.module(self._given(ids).long(), output_hidden_states=True)
        last = _to_mlx(found.last_hidden_state)
        pooled, embeds = (getattr(found, name, None) for name in ("pooler_output", "text_embeds"))
        if pooled is None and embeds is None:
            return last
        states = tuple(map(_to_mlx, found.hidden_states))
        first, second = (None if one is None else _to_mlx(one) for one in (pooled, embeds))
        return CLIPTextOutput(last, first, states, second)

    def _given(self, x: mx.array) -> Any:
        import torch

        return torch.from_numpy(np.array(x)).to(self.device)


def _to_mlx(x: Any) -> mx.array:
    return mx.array(x.float().cpu().numpy())
