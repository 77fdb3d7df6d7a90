"""A model on MLX in the engine's own loop, as a comparison's subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import registry
from ..engine.contracts import Chain, Policy
from ..errors import ModelError, SpecError
from ..policies.refine import RefineOnce
from .engine_subject import EngineSubject
from .limits import MAX_SIDE
from .models import EmbeddedModel, find_model_package, load_embedded

CALL_ARGUMENTS = ("height", "width", "negative_prompt")  # of a pipeline's call, that MLX knows
GIGABYTE = 10**9


@dataclass(frozen=True)
class MlxSubject(EngineSubject):
    """A model of a package or of a diffusers folder, denoised by the engine, its networks on MLX.

    Args:
        dtype: Of the weights: "float32", "float16", "bfloat16", or "auto": that of the files on a GPU, else float32.
        bits: 8 or 4 quantises the denoiser and the text encoders; None leaves them as they are.
        memory_limit: Bytes; None is no limit.
        arguments: Of the pipeline's call: "height", "width" (pixels) and "negative_prompt".
        torch_fallback: Whether torch runs text encoders and an autoencoder that are not ported.
    """

    dtype: str = "auto"
    bits: int | None = None
    memory_limit: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    torch_fallback: bool = False

    def __post_init__(self) -> None:
        """Raise SpecError for arguments that MLX does not know, ModelError for a model that is not there."""
        for key, value in self.arguments.items():
            if key not in CALL_ARGUMENTS:
                raise SpecError(
                    f"--set {key} is not known on MLX.{registry.suggest_spelling(key, CALL_ARGUMENTS)} Known: "
                    f"{', '.join(CALL_ARGUMENTS)}."
                )
            if key == "negative_prompt" and not isinstance(value, str):
                raise SpecError(f"negative_prompt: expected a text, got {value!r}.")
            if key != "negative_prompt" and (type(value) is not int or not 1 <= value <= MAX_SIDE):
                raise SpecError(f"{key}: expected a whole number from 1 to {MAX_SIDE}, got {value!r}.")
        _ = self._plan

    @cached_property
    def _plan(self) -> Any:
        """The pipeline, whose networks are not loaded yet."""
        from ..integrations.mlx.pipeline import load_pipeline

        pipe = load_pipeline(
            self.model, self.dtype, self.bits, self.guidance_override, self.memory_limit, self.torch_fallback
        )
        if "height" in self.arguments or "width" in self.arguments:
            height, width = pipe.pixels
            pipe = pipe.sized(self.arguments.get("height", height), self.arguments.get("width", width))
        return pipe.with_negative_prompt(self.arguments.get("negative_prompt", ""))

    @cached_property
    def embedded(self) -> EmbeddedModel:
        """The pipeline; a network of it is loaded when it is first called."""
        pipe: EmbeddedModel = self._plan
        return pipe

    def model_of(self, policy: Policy) -> EmbeddedModel:
        """The pipeline. Raises ModelError for the policy of a student."""
        if student := policy.network or policy.student:
            raise ModelError(f"{student} is a student, and students run on torch alone: leave --backend mlx out.")
        return self.embedded

    def check_policy(self, policy: Policy) -> None:
        """Raise SpecError for a policy that needs what networks on MLX do not give."""
        parts = policy.parts if isinstance(policy, Chain) else (policy,)
        if any(isinstance(part, RefineOnce) for part in parts):
            raise SpecError(
                f"{registry.spell(policy)} reads the network's attention to the prompt, which networks on MLX do not "
                f"give. Leave `refine` out, or run it with --backend torch."
            )

    @property
    def guidance(self) -> float:
        """Weight of guidance."""
        return float(self._plan.guidance)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The backend, its numbers, and the arguments of the pipeline's call."""
        return {"backend": "mlx", "dtype": self._plan.dtype, **self.arguments}

    @cached_property
    def judge(self) -> Callable[[Any, str], float] | None:
        """The judge of the model that ships, which runs on torch; None of other models."""
        return load_embedded(self.model, self.guidance).judge if find_model_package(self.model) else None

    @property
    def folder(self) -> Path:
        """Folder of the model's weights."""
        return Path(self._plan.folder)

    @property
    def memory_note(self) -> str:
        """Bytes that MLX has held at most, and holds now, as a sentence."""
        import mlx.core as mx

        peak, active = mx.get_peak_memory() / GIGABYTE, mx.get_active_memory() / GIGABYTE
        limited = f" {self._plan.plan}" if self._plan.plan else ""
        return f"MLX held at most {peak:.2f} GB, and holds {active:.2f} GB.{limited}"
