"""The samples of one call of a pipeline, adapted or under a peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..engine.requests import Status
from ..errors import GuestError, SkipstoneError
from ..integrations.diffusers.run_stats import RunStats, SampleStats
from .checkpoints import first_line
from .peers import Peer
from .pixels import to_pixels
from .subject import GeneratedSample


@contextmanager
def apply_peer(pipe: Any, peer: Peer) -> Iterator[None]:
    """The pipeline under a peer. Raises GuestError where it cannot run it."""
    if why := peer.refusal_reason(pipe):
        raise GuestError(why)
    with ExitStack() as stack:
        try:
            stack.enter_context(peer.apply(pipe))
        except SkipstoneError:
            raise
        except Exception as e:  # whatever other people's code raises
            raise GuestError(f"{peer.name} failed to accelerate {type(pipe).__name__}: {first_line(e)}") from e
        yield


def _status(x: Any) -> Status:
    import numpy as np

    return Status.done if np.isfinite(x).all() else Status.nonfinite


def samples_from_run_stats(output: Any, run_stats: RunStats, latents: Sequence[Any]) -> list[GeneratedSample]:
    """The samples of one adapted call."""
    count = len(latents)
    if not len(run_stats) or len(run_stats) % count:
        raise GuestError(f"{count} samples were asked for and {len(run_stats)} denoised; draw them one by one.")
    generated = []
    for s, x in enumerate(to_pixels(output)):
        parts: list[SampleStats] = list(run_stats)[s::count]  # of one trajectory after another
        calls, full = sum(p.calls for p in parts), sum(p.full_calls for p in parts)
        run = parts[0].run
        generated.append(GeneratedSample(x, run, calls, full, _status(x), latents[s], run.branches))
    return generated


def samples_from_peer(
    output: Any, latents: Sequence[Any], calls: float, full: float, branches: int, backward: float = 0.0
) -> list[GeneratedSample]:
    """The samples of one call under a peer, which decides for all alike."""
    found = zip(to_pixels(output), latents, strict=True)
    return [GeneratedSample(x, None, calls, float(full), _status(x), latent, branches, backward) for x, latent in found]
