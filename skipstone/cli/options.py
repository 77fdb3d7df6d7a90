"""Options that several commands share, declared once, and the model that they choose.

A command that has all options of a group takes it as one argument, by `@grouped`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ..errors import ModelError, SpecError
from .grouping import LAST

if TYPE_CHECKING:
    from ..evaluation.columns import Sampler
    from ..evaluation.subject import Subject

ModelOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="pebble, pebble-dit, a diffusers pipeline's folder, or its id on the hub.", metavar="pebble|PATH|ID"
    ),
]
StepsOption: TypeAlias = Annotated[
    int | None, typer.Option(help="Of the grid. The pipeline's own by default, 50 for pebble.", show_default=False)
]
SolverOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="How steps are made: own (the pipeline's scheduler) or one of: skipstone list solvers. "
        "own by default, unipc for pebble.",
        show_default=False,
    ),
]
GridOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Where steps go: own or one of: skipstone list grids. own by default, trailing for pebble.",
        show_default=False,
    ),
]
PromptsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="What you will draw, or like it: a file, or a set. Leave it out for a model that takes no prompts.",
        metavar="FILE|SET",
        show_default=False,
    ),
]
GuidanceOption: TypeAlias = Annotated[
    float | None, typer.Option(help="Classifier-free guidance; 1 evaluates one branch. The model's own by default.")
]
SeedOption: TypeAlias = Annotated[int, typer.Option(help="Of the noise: the same seed is the same picture.")]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
SettingsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="An argument of the pipeline's call: JSON, text or @PICTURE. Repeat it.", metavar="NAME=VALUE"
    ),
]
ImageOption: TypeAlias = Annotated[
    Path | None, typer.Option("--image", help="A picture to start from.", metavar="FILE")
]
FormatOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--format", help="Of files of prompts; by default their names say it.", metavar="txt|csv|tsv|json|jsonl"
    ),
]
DeviceOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Where a pipeline runs. cuda where there is one, else cpu.", show_default=False)
]
DtypeOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Of a pipeline's weights: auto is the checkpoint's on a GPU.", metavar="auto|float32|float16|bfloat16"
    ),
]
AsGuestOption: TypeAlias = Annotated[
    bool, typer.Option("--as-guest", help="Run pebble, too, in its diffusers pipeline instead of the engine's loop.")
]


@dataclass(frozen=True)
class SamplerOptions:
    """How the full run of a command is sampled, and its guidance; options left out take the model's defaults."""

    steps: StepsOption = None
    solver: SolverOption = None
    grid: GridOption = None
    guidance: GuidanceOption = None

    def sampler(self, subject: Subject) -> Sampler:
        """Solver, grid and steps for this model. Raises SpecError."""
        from ..evaluation.subject import resolve_sampler

        return resolve_sampler(subject, self.solver, self.grid, self.steps)


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command and how it is run."""

    model: ModelOption = "pebble"
    settings: SettingsOption = field(default=None, metadata=LAST)
    image: ImageOption = field(default=None, metadata=LAST)
    device: DeviceOption = field(default=None, metadata=LAST)
    dtype: DtypeOption = field(default="auto", metadata=LAST)
    as_guest: AsGuestOption = field(default=False, metadata=LAST)

    def subject(self, guidance: float | None = None) -> Subject:
        """The model, looked up but not loaded. Raises ModelError, GuestError, SpecError.

        Args:
            guidance: Classifier-free guidance; the model's own by default.
        """
        from ..evaluation.models import find_model_package

        if find_model_package(self.model) is None:
            return self._pipeline(self.model, guidance)
        if self.as_guest:
            return self._embedded_pipeline(guidance)
        only = {"--set": self.settings, "--image": self.image, "--device": self.device}
        if said := [name for name, value in {**only, "--dtype": self.dtype != "auto"}.items() if value]:
            raise SpecError(
                f"{said[0]} is for diffusers pipelines, and {self.model} runs in the engine: add --as-guest."
            )
        from ..evaluation.engine_subject import EngineSubject

        return EngineSubject(self.model, Path(self.model).name, guidance)

    def _pipeline(self, model: str, guidance: float | None, **more: Any) -> Subject:
        from ..evaluation.checkpoints import Checkpoint
        from ..evaluation.pipeline_subject import PipelineSubject

        checkpoint = Checkpoint.find(model, from_image=self.image is not None)
        said = {"guidance_override": guidance, "device": self.device, "dtype": self.dtype, **more}
        return PipelineSubject(checkpoint, arguments=_settings(self.settings or ()), image=_picture(self.image), **said)

    def _embedded_pipeline(self, guidance: float | None) -> Subject:
        """The pipeline of a package's model, from the noise and with the defaults that the engine has for it."""
        from ..evaluation.checkpoints import Checkpoint
        from ..evaluation.columns import Sampler
        from ..evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
        from ..evaluation.samplers import is_flow_matching

        engine = EngineSubject(self.model, Path(self.model).name, guidance)
        folder = str(engine.folder)
        flowing = is_flow_matching(Checkpoint.find(folder).scheduler)  # whose grid diffusers leaves to the pipeline
        return self._pipeline(
            folder,
            engine.guidance,
            noise=lambda seed: engine.embedded.problem("noise", seed, 1).x,
            sampler_override=Sampler(None, None, DEFAULT_SAMPLER.steps) if flowing else DEFAULT_SAMPLER,
            display_name=engine.name,
            policy=engine.policy,
            judge_factory=lambda: engine.judge,
        )


def _settings(spoken: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, the values read as JSON where they are; NAME=@FILE is a picture."""
    found: dict[str, Any] = {}
    for one in spoken:
        name, equals, value = one.partition("=")
        if not equals or not name.strip().isidentifier():
            raise SpecError(f"Expected --set NAME=VALUE, e.g. --set height=512, got {one!r}.")
        try:
            found[name.strip()] = _picture(Path(value[1:])) if value.startswith("@") else json.loads(value)
        except ValueError:
            found[name.strip()] = value
    return found


def _picture(path: Path | None) -> Any:
    if path is None:
        return None
    from PIL import Image

    try:
        picture = Image.open(path).convert("RGB")
    except OSError as e:
        raise ModelError(f"{path} is no picture that can be read: {e.strerror or 'of no known format'}.") from None
    picture.info["file"] = str(path)
    return picture
