"""Whether a certificate covers a call of a pipeline: looked at again at every call, cheaply."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import registry
from ..engine.requests import Solver
from ..errors import CertificateError
from ..numerics.nonfinite import spell_nonfinite
from ..policies.certified import Certified, prefix_keys
from .identity import cheap_facts, check_identity, identity, networks, scheduler_to_config
from .weight_snapshot import WeightSnapshot

# Arguments of a call that say which samples are drawn, or what is done with them: the promise is for any of them.
FREE_ARGUMENTS = {
    "self",
    "prompt",
    "class_labels",
    "generator",
    "latents",
    "batch_size",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "num_videos_per_image",
    "output_type",
    "return_dict",
    "callback",
    "callback_steps",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
}
DIGEST = "sha256 "  # how the digest of a picture, an array or a tensor begins
TABLES = ("betas", "alphas_cumprod", "_shift", "sigma_min", "sigma_max")  # of a scheduler, made from its configuration
MAX_DEPTH = 10  # of lists and dicts in an argument
OWN = "own"  # the pipeline's scheduler, as `CalibrationPoint.way` spells it
SHOWN = 2  # tensors that a message names


class Coverage:
    """A pipeline as it was when it was held against a certificate, and what has changed since."""

    def __init__(self, policy: Certified, pipe: Any, solver: Solver | None = None, per_sample: bool = True) -> None:
        """Raise CertificateError where the pipeline, or the solver in its place, is not the certificate's."""
        check_identity(policy, pipe)
        mine, theirs = (registry.spell(one) if one else OWN for one in (certified_solver(policy), solver))
        if mine != theirs and not policy.is_unrestricted:
            raise CertificateError(
                f"The certificate was made with the solver {mine}, and {theirs} was asked for: leave solver= out, "
                f"which takes that of the certificate, or use the bare setting {policy.point.setting!r}."
            )
        self.policy, self._per_sample = policy, per_sample
        self._facts = _scheduler_facts(pipe) | cheap_facts(pipe)
        self._weights = WeightSnapshot.of(networks(pipe))

    def differences(self, pipe: Any, call: inspect.BoundArguments) -> tuple[str, ...]:
        """What is not as the certificate says, in words; empty where the call is covered.

        Args:
            pipe: The pipeline, with the scheduler that the call will use.
            call: The arguments of its call, defaults among them.
        """
        if self.policy.is_unrestricted:
            return ()
        batch = [] if self._per_sample else ["per_sample is true in the certificate and false here"]
        return (*self._model_differences(pipe), *self._call_differences(pipe, call), *batch)

    def _model_differences(self, pipe: Any) -> list[str]:
        certified = self.policy.certificate.identity
        weights = WeightSnapshot.of(networks(pipe))
        changed, written = weights.changed(self._weights), weights.written(self._weights)
        same = {name: certified[name] for name in ("weights", "dtype") if name in certified}
        facts = identity(pipe) if changed else same | cheap_facts(pipe)
        found = self.policy.differences(facts | _scheduler_facts(pipe), self._facts)
        if changed and facts["weights"] != certified.get("weights"):
            found.append(f"changed since skipstone.adapt: {_names(changed)}")
        elif written:  # the digest of the certificate looks at a sample of each tensor, which may be the same
            found.append(f"written to in place since skipstone.adapt: {_names(written)}. Adapt the pipeline again")
        else:
            self._weights = weights
        return found

    def _call_differences(self, pipe: Any, call: inspect.BoundArguments) -> list[str]:
        certified = self.policy.certificate.call
        described = {name: describe_argument(v) for name, v in call.arguments.items() if name not in FREE_ARGUMENTS}
        described |= {name: type(v).__name__ for name, v in call.arguments.items() if is_pipeline_callback(v)}
        size = _default_size(pipe)
        for name in described.keys() & certified.keys():
            mine, said = certified[name], described[name]
            is_default_size = name in ("height", "width") and (mine, said) in ((None, size), (size, None))
            is_the_same_for_each = isinstance(said, list) and said and all(one == mine for one in said)
            if is_default_size or is_the_same_for_each:
                described[name] = mine
        parameters = call.signature.parameters
        changed = [
            n for n, v in described.items() if v not in ([], {}) and v != describe_argument(parameters[n].default)
        ]
        return self.policy.call_differences(described, changed)


def describe_uncovered(differences: Sequence[str]) -> str:
    """The sentence about a call that is not covered."""
    return f"The certificate does not cover this call: {'; '.join(differences)}. Nothing is promised of it."


def certified_solver(policy: Certified) -> Solver | None:
    """The solver that takes the pipeline's loop over under this certificate; None where its scheduler steps."""
    spec = policy.point.way.partition("/")[0].strip()
    if spec == OWN:
        return None
    solver: Solver = registry.parse("solver", spec)
    return solver if policy.solver or not solver.diffusers_class else None


def describe_argument(value: Any, depth: int = 0) -> Any:
    """An argument as a certificate has it: JSON, with digests in place of pictures, arrays and tensors.

    Args:
        value: Of a pipeline's call.
        depth: Of the lists and dicts that it is in; beyond 10 objects are told apart by where they are in memory.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return spell_nonfinite(value)
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return [describe_argument(one, depth + 1) for one in value]
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        return {str(name): describe_argument(one, depth + 1) for name, one in value.items()}
    if hasattr(value, "detach"):
        value = value.detach().float().cpu()  # NumPy has no bfloat16
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        array = np.ascontiguousarray(value)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return f"{DIGEST}{digest.hexdigest()[:16]}"
    return f"{type(value).__name__} at {id(value):#x}"


def is_pipeline_callback(value: Any) -> bool:
    """Whether an argument is a callback object of diffusers, which changes guidance or scales during the call."""
    return callable(value) and hasattr(value, "tensor_inputs")


def _scheduler_facts(pipe: Any) -> dict[str, Any]:
    """Configuration of the scheduler, and what it made from it, which somebody may have changed (`set_shift`)."""
    scheduler = getattr(pipe, "scheduler", None)
    tables = {name: describe_argument(getattr(scheduler, name)) for name in TABLES if hasattr(scheduler, name)}
    return prefix_keys("scheduler", scheduler_to_config(scheduler) | tables)


def _default_size(pipe: Any) -> int | None:
    """Height and width of a picture where the call does not say them; None where they cannot be told."""
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    size = getattr(pipe, "default_sample_size", None) or getattr(getattr(network, "config", None), "sample_size", None)
    factor = getattr(pipe, "vae_scale_factor", None)
    return size * factor if isinstance(size, int) and isinstance(factor, int) else None


def _names(found: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
