"""What policies in a pipeline know of each sample's prompt: its words, and the mean of its text states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...engine.contracts import COND
from .batch_router import BatchRouter, DenoiserCall

TEXT_STATES_ARGUMENT = "encoder_hidden_states"  # of the argument that holds text states, in the denoisers of diffusers


def sample_texts(arguments: Mapping[str, Any], samples: int) -> list[str]:
    """`Run.text` of each sample: the pipeline's `prompt`, each of a list for as many samples in a row as it draws.

    Empty where the pipeline was given embeddings, or a list that the samples are no multiple of.

    Args:
        arguments: Of the pipeline's call.
        samples: How many it draws.
    """
    given = arguments.get("prompt")
    prompts = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    each, left = divmod(samples, len(prompts)) if prompts else (0, 0)
    if not each or left or not all(isinstance(prompt, str) for prompt in prompts):
        return [""] * samples
    return [prompt for prompt in prompts for _ in range(each)]


def mean_prompt_states(router: BatchRouter) -> list[tuple[float, ...]]:
    """`Run.prompt` of each sample: its conditional branch's text states, averaged over tokens in float32.

    Tokens whose state is 0 throughout are left out: pipelines pad with them where an encoder is missing. Empty where
    the denoiser is given no text states, or such as cannot be told apart. Ask once the router is open, and before it
    drops the arguments.
    """
    for p in router.denoiser_calls.values():
        if COND in p.branches and (states := _states(p, router)) is not None:
            words = states.float()
            said = (words != 0).any(-1, keepdim=True)
            means = (words * said).sum(1) / said.sum(1).clamp_min(1)
            return [tuple(mean) for mean in means.tolist()]
    return [()] * router.samples


def _states(p: DenoiserCall, router: BatchRouter) -> torch.Tensor | None:
    """(samples, tokens, width) of the branch COND."""
    states: Any = p.kwargs.get(TEXT_STATES_ARGUMENT)
    if not isinstance(states, torch.Tensor) or states.ndim != 3 or not states.is_floating_point():
        return None
    each, left = divmod(states.shape[0], p.rows)  # several of a row where a video's text is there for each frame
    if (
        left
        or each < 1
        or (each > 1 and TEXT_STATES_ARGUMENT not in router.slicer.spec.repeated)
        or TEXT_STATES_ARGUMENT in router.slicer.spec.shared
    ):
        return None
    first = p.branches.index(COND) * router.samples
    return states[first * each : (first + router.samples) * each : each]
