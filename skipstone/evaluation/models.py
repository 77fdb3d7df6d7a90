"""Models that packages bring for the engine's own loop, found by entry points of the group `skipstone.models`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..engine.requests import Problem
from ..errors import ModelError
from ..satellites import install_hint, list_entry_points
from .prompt import Prompt


class EmbeddedModel(Protocol):
    """A loaded model: prompts in, problems and pictures out."""

    @property
    def name(self) -> str: ...
    @property
    def guidance(self) -> float: ...
    @property
    def backbone(self) -> Any: ...
    @property
    def unet(self) -> Any: ...  # the denoiser, whatever its architecture
    @property
    def schedule(self) -> Any: ...
    @property
    def judge(self) -> Callable[[Any, str], float] | None: ...

    def problem(self, prompt: str, seed: int = 0, steps: int = 50, grid: Any = "trailing") -> Problem:
        """One sample to denoise."""

    def decode(self, latents: Sequence[Any]) -> list[Any]:
        """Pictures (height, width, 3) in [0, 1] of latents."""

    def guided(self, guidance: float) -> Any:
        """The same model under another guidance weight."""


class ModelPackage(Protocol):
    """The models that a package brings; imports no array library until one is loaded."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def guidance(self) -> float: ...  # by default
    @property
    def prompt_sets(self) -> Mapping[str, str]: ...  # name -> what is in it
    @property
    def students(self) -> Mapping[str, Path]: ...  # name -> folder of a student of one of its models

    def owns(self, model: Any) -> bool:
        """Whether a name, a folder or a loaded object is a model of this package."""

    def find(self, model: str) -> Path:
        """The folder of a model. Raises ModelError where there is none."""

    def load(self, model: str, guidance: float | None = None) -> EmbeddedModel:
        """Load a model. Raises ModelError."""

    def copy(self, model: str, folder: Path) -> None:
        """A model in a folder of its own, without certificates. Raises ModelError, OutputError."""

    def prompts(self, name: str) -> list[Prompt]:
        """The prompts of one of its sets."""

    def warning(self, model: str, prompts: Sequence[str]) -> str:
        """A warning about prompts that the model was not trained for; empty where there is nothing."""

    def facts(self, prompt: str) -> int | None:
        """Number of facts that a prompt of the model's grammar states; None for any other text."""


@functools.cache
def model_packages() -> tuple[ModelPackage, ...]:
    """Every package of models that is installed."""
    return tuple(point.load() for point in list_entry_points("models"))


def find_model_package(model: Any) -> ModelPackage | None:
    """The package whose model this is, None where it is nobody's: then it is a diffusers pipeline.

    Raises:
        ModelError: the name of a model whose package is not installed.
    """
    for package in model_packages():
        if package.owns(model):
            return package
    if isinstance(model, str) and (hint := install_hint("model", model)) and not Path(model).exists():
        raise ModelError(f"The model {model} {hint}.")
    return None


def load_embedded(model: str, guidance: float | None = None) -> EmbeddedModel:
    """A model of a package by its name or folder. Raises ModelError where it is nobody's."""
    package = find_model_package(model)
    if package is None:  # the error of a package says what it expects
        found = model_packages()
        if not found:
            raise ModelError(f"No package of models is installed, so that {model} cannot be loaded.")
        package = found[0]
    return package.load(model, guidance)
