"""Identity of a model, so that a certificate is used only with the model that it was made for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..engine.contracts import Policy
from ..numerics.nonfinite import read_nonfinite, spell_nonfinite
from ..policies.certified import Certified, prefix_keys
from ..policies.storage import read_policy

DIGEST_VALUES = 1024  # values of each tensor that its digest looks at


def load_policy(
    folder: str | os.PathLike[str], pipe: Any = None, *, force: bool = False, allow_sampler: bool = False
) -> Policy:
    """The policy of a folder that `save_pretrained` or `save_policy` wrote.

    Args:
        folder: Where it is.
        pipe: What it is to run on: a calibrated policy is refused where its certificate was made for something else.
        force: Load it all the same; nothing is promised then.
        allow_sampler: Let a certificate that found a sampler to be best replace the pipeline's scheduler and steps.

    Raises:
        SpecError: there is none, or it is damaged.
        CertificateError: a certificate of another model or configuration.
    """
    policy = read_policy(folder, force=force, allow_sampler=allow_sampler)
    if pipe is not None and isinstance(policy, Certified):
        check_identity(policy, pipe)
    return policy


def check_identity(policy: Certified, pipe: Any) -> None:
    """Raise CertificateError where a pipeline, or a `Pebble`, is not what the certificate was made for."""
    found = {**identity(pipe), **prefix_keys("scheduler", scheduler_to_config(getattr(pipe, "scheduler", None)))}
    policy.check(found, f"this {type(pipe).__name__}")


def identity(model: Any) -> dict[str, Any]:
    """{"pipeline", "weights", "dtype"} and, of a model with a fixed one, "guidance"."""
    parts = dict(_networks(model))
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for part in parts.values() for p in part.parameters()})
    found: dict[str, Any] = {"pipeline": type(model).__name__, "dtype": ", ".join(dtypes), "weights": digest(parts)}
    if isinstance(guidance := getattr(model, "guidance", None), float | int):
        found["guidance"] = float(guidance)
    return found


def _networks(model: Any) -> Iterator[tuple[str, Any]]:
    """Every network of a pipeline or of a Pebble."""
    import torch

    parts = getattr(model, "components", None)
    for name, part in sorted((parts if isinstance(parts, Mapping) else vars(model)).items()):
        if isinstance(part, torch.nn.Module):
            yield name, part


def digest(parts: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and evenly chosen values of all weights; cheap, and no fine-tune passes it."""
    import torch

    found = hashlib.sha256()
    for name, part in sorted(parts.items()):
        for key, tensor in sorted(part.state_dict().items()):
            if not isinstance(tensor, torch.Tensor):
                continue
            found.update(json.dumps([name, key, str(tensor.dtype), list(tensor.shape)]).encode())
            if tensor.device.type != "meta":  # weights that are off-loaded cannot be looked at
                row = tensor.detach().flatten()
                some = row[:: max(1, len(row) // DIGEST_VALUES)][:DIGEST_VALUES].contiguous()
                found.update(some.view(torch.uint8).cpu().numpy().tobytes())
    return found.hexdigest()


def scheduler_to_config(scheduler: Any) -> dict[str, Any]:
    """Class and configuration of a scheduler, as JSON gives them back; empty where there is none."""
    if scheduler is None:
        return {}
    # some schedulers clip at -inf
    config = {k: spell_nonfinite(v) for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    facts: dict[str, Any] = json.loads(json.dumps({"class": type(scheduler).__name__, **config}, default=str))
    return facts


def scheduler_from_config(facts: Mapping[str, Any]) -> Any:
    """The scheduler that `scheduler_to_config` describes."""
    import diffusers

    kind = getattr(diffusers, facts["class"])
    config = {k: read_nonfinite(v) for k, v in facts.items() if k != "class"}
    return kind.from_config(config)
