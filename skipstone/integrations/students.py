"""Networks of students: their teachers are recognised, their weights put in place."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..engine.contracts import Policy
from ..errors import ModelError
from ..policies.student import StudentCard, find_student
from ..satellites import require_module
from .plain_tensors import has_values

SAMPLED = 64  # values of each tensor, evenly spaced


def network_fingerprint(network: Any) -> str:
    """SHA-256 over names, shapes and evenly spaced values of a network, in half precision whatever its dtype."""
    import torch

    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(json.dumps([name, list(tensor.shape)]).encode())
        if has_values(tensor):
            row = tensor.detach().flatten()
            some = row[:: max(1, len(row) // SAMPLED)][:SAMPLED].to(torch.float16).contiguous()
            found.update(some.view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()


def student_facts(policy: Policy) -> dict[str, str]:
    """{"student": SHA-256 of the weights} of a policy that runs a student, in place of the model or beside it."""
    folder = policy.network or policy.student
    if not folder:
        return {}
    found, card = hashlib.sha256(), StudentCard.read(folder)
    weights = find_student(folder) if card.weights == "lora" else find_student(folder) / card.part
    for file in sorted(weights.glob("*.safetensors")):
        found.update(file.read_bytes())
    return {"student": found.hexdigest()}


def guidance_embedding(weights: Any, width: int) -> Any:
    """What a student with an input for guidance is given, as diffusers' pipelines compute it: (n, width), float32.

    Args:
        weights: Of guidance, (n,), a tensor.
        width: `time_cond_proj_dim` of the network, even.

    References: Meng et al. 2023, arXiv 2210.03142; Luo et al. 2023, arXiv 2310.04378.
    """
    import torch

    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device=weights.device) * -(math.log(1e4) / (half - 1)))
    angles = ((weights.float() - 1) * 1000.0)[:, None] * rates[None, :]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def call_at_guidance(weight: float) -> Callable[[Any, Any, Any, Any], Any]:
    """How a UNet of diffusers that takes the weight of guidance as an input is called, at this weight."""

    def call(module: Any, x: Any, timesteps: Any, cond: Any) -> Any:
        weights = x.new_full((len(x),), weight, dtype=timesteps.dtype)
        given = guidance_embedding(weights, module.config.time_cond_proj_dim).to(x.dtype)
        return module(x, timesteps, encoder_hidden_states=cond, timestep_cond=given, return_dict=False)[0]

    return call


def load_student(folder: str | Path, denoiser: Any) -> Any:
    """A student's network: a copy of its teacher's denoiser with the LoRA merged into it, or weights of its own.

    Args:
        folder: Of `skipstone distill`, or the name of a shipped student.
        denoiser: Of its teacher; it stays as it is.

    Raises:
        ModelError: the folder holds no student, or one of another teacher; the denoiser has an adapter already.
    """
    folder = find_student(folder)
    card = StudentCard.read(folder)
    if adapters := list(getattr(denoiser, "peft_config", None) or ()):
        raise ModelError(
            f"{folder}: expected its teacher without adapters, got one with {adapters[0]!r}. Unload it first: "
            f"pipe.unload_lora_weights()."
        )
    if (got := network_fingerprint(denoiser)) != card.fingerprint:
        raise ModelError(
            f"{folder} is a student of {card.teacher or 'a model'} with fingerprint {card.fingerprint[:12]}, and this "
            f"model has {got[:12]}. Run it on its own teacher, or distil this one: skipstone distill."
        )
    try:
        return _load_lora(folder, card, denoiser) if card.weights == "lora" else _load_weights(folder, card, denoiser)
    except Exception as e:  # diffusers, peft and safetensors each have errors of their own for a damaged file
        raise ModelError(f"{folder} is damaged: {str(e).splitlines()[0]}. Distil it again: skipstone distill.") from e


def _load_lora(folder: Path, card: StudentCard, denoiser: Any) -> Any:
    require_module("peft", "train")
    network = copy.deepcopy(denoiser)
    network.load_lora_adapter(str(folder), prefix=card.part, weight_name="pytorch_lora_weights.safetensors")
    network.fuse_lora()
    network.unload_lora()
    return network.eval()


def _load_weights(folder: Path, card: StudentCard, denoiser: Any) -> Any:
    network = type(denoiser).from_pretrained(folder / card.part)
    example = next(iter(denoiser.parameters()))
    return network.to(device=example.device, dtype=example.dtype).eval()
