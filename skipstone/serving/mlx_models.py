"""A model on MLX as a server needs it: NumPy in, NumPy out, and all of MLX in one thread.

An array of MLX that is not computed yet can be computed only in the thread that made it, for streams belong to threads.
The engine has several: one encodes texts, one calls the network, one decodes pictures, others load and audit. So each
call is done in a thread of its own, which answers when all is computed; samples are NumPy arrays, on which solvers and
policies work in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ..engine.requests import Estimate, Problem, Query
from ..errors import ModelError
from ..evaluation.mlx_subject import MlxSubject
from ..evaluation.models import load_embedded
from ..integrations.mlx.backbone import MlxBackbone
from ..integrations.mlx.denoiser import Denoiser
from ..integrations.mlx.overflow import CheckedBackbone
from ..integrations.mlx.pipeline import GRID, STEPS, MlxPipeline

Answer = TypeVar("Answer")
_thread = ThreadPoolExecutor(1, "skipstone-mlx")


def call_mlx(call: Callable[..., Answer], *arguments: Any) -> Answer:
    """The answer of a call in the thread of MLX; not to be used in that thread itself."""
    return _thread.submit(call, *arguments).result()


@dataclass(frozen=True, eq=False)
class HostBackbone:
    """A backbone on MLX for samples that are NumPy arrays; the arrays of `Problem.cond` are MLX's, and computed.

    Args:
        own: Backbone of the network.
        dtype: Of its weights. In half precision an answer that is not finite raises BackboneError.
    """

    own: MlxBackbone
    dtype: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    @property
    def branches(self) -> int:
        """Rows that a full call of one sample puts into the network."""
        return self.own.branches

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """The guided estimate of each query, waited for."""
        return call_mlx(self._predict, queries)

    def _predict(self, queries: Sequence[Query]) -> list[Estimate]:
        backbone: Any = self.own if self.dtype.startswith("float32") else CheckedBackbone(self.own, self.dtype)
        return [_to_host(answer) for answer in backbone.predict([_to_mlx(query) for query in queries])]


def _to_mlx(query: Query) -> Query:
    known = {site: mx.array(value) for site, value in query.known_outputs.items()}
    return replace(query, x=mx.array(query.x), known_outputs=known)


def _to_host(answer: Estimate) -> Estimate:
    features = {site: np.array(value) for site, value in answer.features.items()}
    return Estimate(np.array(answer.x0), answer.cost, np.array(answer.output), answer.prediction, features)


@dataclass(frozen=True, eq=False)
class MlxModel:
    """A pipeline on MLX, for calls from any thread.

    Args:
        pipe: Whose networks are loaded.
        unet: Its denoiser, whatever its architecture.
        guidance: Weight of guidance.
    """

    pipe: MlxPipeline
    unet: Denoiser
    guidance: float

    @classmethod
    def load(cls, pipe: MlxPipeline) -> MlxModel:
        """The model of a pipeline, all of whose networks are in memory afterwards. Raises ModelError."""

        def load() -> Denoiser:
            pipe.parts.text_encoders()
            for part in (pipe.family.denoiser, "vae"):
                pipe.parts.network(part)
            return pipe.unet

        return cls(pipe, call_mlx(load), pipe.guidance)

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.pipe.name

    @property
    def schedule(self) -> Any:
        """The noise schedule that the denoiser was trained on."""
        return self.pipe.schedule

    @cached_property
    def backbone(self) -> HostBackbone:
        """The denoiser under this guidance."""
        pipe = self.pipe
        own = MlxBackbone(self.unet, pipe.schedule, pipe.prediction, pipe.family.branches(self.guidance))
        return HostBackbone(own, pipe.dtype)

    @cached_property
    def judge(self) -> Callable[[Any, str], float] | None:
        """The judge of the model, which runs on torch."""
        return load_embedded(str(self.pipe.folder)).judge

    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a promise to hold."""
        return call_mlx(self.pipe.identity)

    def guided(self, guidance: float) -> MlxModel:
        """The same networks under another guidance weight."""
        return replace(self, guidance=guidance)

    def problem(self, prompt: str, seed: int = 0, steps: int = STEPS, grid: Any = GRID) -> Problem:
        """One sample to denoise, as of the pipeline. Raises PromptError, SpecError."""

        def make() -> Problem:
            made = self.pipe.problem(prompt, seed, steps, grid)
            mx.eval(made.cond)
            return replace(made, x=np.array(made.x))

        return call_mlx(make)

    def decode(self, latents: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Pictures (height, width, 3) in [0, 1] of latents."""
        return call_mlx(lambda: self.pipe.decode([mx.array(latent) for latent in latents]))


def load_mlx_subject(
    path: str, dtype: str, bits: int | None, memory_limit: int | None, known: MlxModel | None = None
) -> MlxSubject:
    """A model of a package on MLX, as the subject of policies and certificates.

    Args:
        path: Its name or folder.
        dtype, bits, memory_limit: As of `MlxSubject`.
        known: The same model, where it is loaded already.

    Raises:
        ModelError: it cannot be read, or needs more memory than the limit with all its parts loaded.
    """
    subject = call_mlx(
        lambda: MlxSubject(path, Path(path).name, None, dtype=dtype, bits=bits, memory_limit=memory_limit)
    )
    pipe: Any = subject.embedded
    if pipe.plan is not None and pipe.plan.staged:
        raise ModelError(
            f"{subject.name} fits into --memory-limit only with its parts loaded one after another, and a server "
            f"needs all of them at once. Allow more{'' if bits == 4 else ', or --bits 4'}."
        )
    vars(subject)["embedded"] = known or MlxModel.load(pipe)  # where `cached_property` looks
    return subject
