"""Torch networks of diffusers and transformers beside their counterparts on MLX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LIMIT = 1e-5  # largest difference over largest value, in float32


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter at random, norms and biases too: at their first values a network hides which of them it uses."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            spread = 0.5 / max(value[0].numel(), 1) ** 0.5 if value.ndim > 1 else 0.2
            centre = 1.0 if value.ndim == 1 and name.endswith("weight") else 0.0
            value.copy_(torch.randn(value.shape, generator=generator) * spread + centre)
    return module.eval()


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    """Numbers of the normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def to_mlx(x: torch.Tensor) -> Any:
    """An array on MLX; pictures as NHWC."""
    import mlx.core as mx

    return mx.array((x.permute(0, 2, 3, 1) if x.ndim == 4 else x).contiguous().numpy())


def to_numpy(x: Any) -> NDArray[np.float32]:
    """An array of torch, or of MLX; pictures as NCHW."""
    if isinstance(x, torch.Tensor):
        return x.detach().float().numpy()
    import mlx.core as mx

    found = np.array(x.astype(mx.float32))
    return found.transpose(0, 3, 1, 2) if found.ndim == 4 else found


def relative(expected: Any, got: Any) -> float:
    """Largest difference over the largest value. An AssertionError where shapes differ or a number is not finite."""
    a, b = to_numpy(expected), to_numpy(got)
    assert a.shape == b.shape
    assert np.isfinite(b).all()
    return float(np.abs(a - b).max() / np.abs(a).max())


def psnr(expected: Any, got: Any) -> float:
    """dB of the mean square difference, over the range of the expected values."""
    a, b = to_numpy(expected), to_numpy(got)
    return float(10 * np.log10((a.max() - a.min()) ** 2 / max(np.mean((a - b) ** 2), 1e-30)))


def save(module: Any, folder: Path, **options: Any) -> Path:
    """The folder that `save_pretrained` writes."""
    module.save_pretrained(folder, **options)
    return folder
