"""Records the final latents of a pipeline: those that its autoencoder is given to decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

AUTOENCODER_NAMES = ("vae", "vqvae", "movq")  # what pipelines call their autoencoder


@dataclass
class LatentRecorder:
    """Latents in the order in which they were decoded, batch by batch."""

    batches: list[Any] = field(default_factory=list)

    def latents(self, samples: int) -> list[Any]:
        """One latent per sample; None for each sample if the number of decoded latents differs from `samples`."""
        rows = [row for batch in self.batches for row in batch]
        return rows if len(rows) == samples else [None] * samples


@contextmanager
def record_latents(pipe: Any) -> Iterator[LatentRecorder]:
    """Record what the autoencoder decodes within the block; a pipeline without one decodes nothing."""
    recorder = LatentRecorder()
    parts = [getattr(pipe, name, None) for name in AUTOENCODER_NAMES]
    coder = next((part for part in parts if hasattr(part, "decode")), None)
    if coder is None or "decode" in vars(coder):  # somebody else has put a function there
        yield recorder
        return
    decode = coder.decode

    def recording(z: Any, *args: Any, **kwargs: Any) -> Any:
        scale, shift = _scaling(coder)
        recorder.batches.append(((z.detach() - shift) * scale).float().cpu().numpy())
        return decode(z, *args, **kwargs)

    coder.decode = recording
    try:
        yield recorder
    finally:
        del coder.decode


def _scaling(coder: Any) -> tuple[float, float]:
    """The factor by which pipelines divide latents before they decode, and the shift that they add."""
    config = getattr(coder, "config", {})
    found: Sequence[Any] = (config.get("scaling_factor"), config.get("shift_factor"))
    return float(found[0] or 1.0), float(found[1] or 0.0)
