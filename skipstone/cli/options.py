"""Options that several commands share, declared once, and the model that they choose.

A command that has all options of a group takes it as one argument, by `@grouped`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ..errors import ModelError, SpecError
from ..settings import MAX_STEPS
from .grouping import LAST

if TYPE_CHECKING:
    from ..evaluation.columns import Sampler
    from ..evaluation.subject import Subject

# What numeric options take at most: far above what is of use, below what takes all memory or never returns.
MAX_GUIDANCE = 1_000.0
MAX_SEED = 2**63 - 1  # of torch's generators, with room to count up from it
MAX_PICTURES = 1_000  # of one call of a network
MAX_COUNT = 1_000_000  # of prompts, samples and requests
# Of --out where it is a folder: names that belong to files.
FILE_SUFFIXES = [
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".mp4",
    ".mov",
    ".avi",
    ".webm",
    ".pdf",
    ".svg",
    ".md",
    ".html",
    ".json",
    ".jsonl",
    ".csv",
    ".tsv",
    ".txt",
    ".yaml",
    ".yml",
    ".npz",
    ".npy",
    ".safetensors",
    ".zip",
]


def number(*names: str, least: float, most: float, help: str, show_default: bool = True) -> Any:
    """The option of a number, or of several where the argument is a list. All numeric options are made by this.

    Args:
        names: As of `typer.Option`.
        least, most: Ends of the range, both included. NaN is refused as well.
        help, show_default: As of `typer.Option`.
    """
    return typer.Option(*names, min=least, max=most, callback=_refuse_nan, help=help, show_default=show_default)


def _refuse_nan(value: Any) -> Any:
    """The value; NaN, which every comparison of a range lets through, is a usage error."""
    for one in value if isinstance(value, list | tuple) else [value]:
        if isinstance(one, float) and not math.isfinite(one):
            raise typer.BadParameter(f"expected a number, got {one}.")
    return value


def refuse_empty(value: Any) -> Any:
    """The value; an empty text, as a shell makes of a variable that is not set, is a usage error."""
    if value == "":
        raise typer.BadParameter("expected a text, got an empty one. Leave the option out for its default.")
    return value


def _check_device(value: str | None) -> str | None:
    """The value; what torch would not know as a device is a usage error."""
    if value is not None and not re.fullmatch(r"(cuda|mps|cpu|xpu)(:[0-9]{1,4})?", value):
        raise typer.BadParameter(f"expected cuda, mps or cpu, or one of several, such as cuda:1, got {value!r}.")
    return value


def _check_backend(value: str) -> str:
    """The value; another name is a usage error."""
    from ..integrations.mlx.available import BACKENDS
    from ..registry import suggest_spelling

    if value not in BACKENDS:
        raise typer.BadParameter(
            f"expected one of {', '.join(BACKENDS)}, got {value!r}.{suggest_spelling(value, BACKENDS)}"
        )
    return value


def _check_bits(value: int | None) -> int | None:
    """The value; another number is a usage error."""
    if value not in (None, 4, 8):
        raise typer.BadParameter(f"expected 8 or 4, got {value}.")
    return value


def _check_memory(value: str | None) -> str | None:
    """The value; what is no size is a usage error."""
    from ..integrations.mlx.available import parse_size

    try:
        _ = None if value is None else parse_size(value)
    except SpecError as e:
        raise typer.BadParameter(str(e)) from None
    return value


def complete_policies(incomplete: str) -> list[str]:
    """The policies and presets whose names begin so, for the shell."""
    from .. import registry

    return [
        name for name in (*registry.list_presets("policy"), *registry.names("policy")) if name.startswith(incomplete)
    ]


def policies(help: str, show_default: bool = True) -> Any:
    """The option of several policies or columns; that of one is `PolicyOption`."""
    return typer.Option("--policy", "-p", autocompletion=complete_policies, help=help, show_default=show_default)


def _refuse_file_name(value: Any) -> Any:
    """The value; a path that has the name of a file and is no folder yet is a usage error."""
    if isinstance(value, Path) and value.suffix.lower() in FILE_SUFFIXES and not value.is_dir():
        raise typer.BadParameter(f"expected a folder, got the name of a file, {value}. Write {value.with_suffix('')}.")
    return value


def check_html(value: Path | None) -> Path | None:
    """The value; a path that is no name of a page is a usage error."""
    if value is not None and (value.suffix.lower() not in (".html", ".htm") or value.is_dir()):
        raise typer.BadParameter(f"expected the name of a file .html, got {value}. Write {value.with_suffix('.html')}.")
    return value


def folder(help: str = "A folder.", show_default: bool = True) -> Any:
    """The option of a folder that results are written to, such as --out."""
    return typer.Option(callback=_refuse_file_name, help=help, show_default=show_default)


ModelOption: TypeAlias = Annotated[
    str,
    typer.Option(
        callback=refuse_empty,
        help="pebble, pebble-dit, a diffusers pipeline's folder, or its id on the hub.",
        metavar="pebble|PATH|ID",
    ),
]
StepsOption: TypeAlias = Annotated[
    int | None,
    number(
        least=1, most=MAX_STEPS, help="Of the grid. The pipeline's own by default, 50 for pebble.", show_default=False
    ),
]
SolverOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        callback=refuse_empty,
        help="How steps are made: own (the pipeline's scheduler) or one of: skipstone list solvers. "
        "own by default, unipc for pebble.",
        show_default=False,
    ),
]
GridOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        callback=refuse_empty,
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
    float | None,
    number(
        least=-MAX_GUIDANCE,
        most=MAX_GUIDANCE,
        help="Classifier-free guidance; 1 evaluates one branch. The model's own by default.",
    ),
]
SeedOption: TypeAlias = Annotated[
    int, number(least=0, most=MAX_SEED, help="Of the noise: the same seed is the same picture.")
]
CountOption: TypeAlias = Annotated[
    int, number("-n", least=1, most=MAX_PICTURES, help="Pictures of a prompt, of seeds SEED, SEED + 1, ...")
]
BatchOption: TypeAlias = Annotated[int, number(least=1, most=MAX_PICTURES, help="Samples of one call.")]
LimitOption: TypeAlias = Annotated[
    int, number(least=0, most=MAX_COUNT, help="Prompts, all categories alike; 0 takes all of them.")
]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
TrackOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--track",
        help="Log the results to MLflow: mlflow (MLFLOW_TRACKING_URI, or sqlite:///mlflow.db), or a URI.",
        metavar="mlflow|URI",
        show_default=False,
    ),
]
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
    str | None,
    typer.Option(
        callback=_check_device,
        help="Where a pipeline runs. cuda where there is one, else cpu.",
        metavar="cuda|mps|cpu",
        show_default=False,
    ),
]
PolicyOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--policy",
        "-p",
        callback=refuse_empty,
        autocompletion=complete_policies,
        help="A policy (skipstone list policies), or the folder of one. balanced by default, error_control in "
        "diffusers pipelines.",
        show_default=False,
    ),
]
DtypeOption: TypeAlias = Annotated[
    str,
    typer.Option(
        help="Of a pipeline's weights: auto is the checkpoint's on a GPU.", metavar="auto|float32|float16|bfloat16"
    ),
]
BackendOption: TypeAlias = Annotated[
    str,
    typer.Option(
        callback=_check_backend,
        help="What networks run on; auto is mlx on Apple silicon, else torch.",
        metavar="torch|mlx|auto",
    ),
]
BitsOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=4,
        max=8,
        callback=_check_bits,
        help="Quantise the weights, on mlx: 8 or 4.",
        metavar="8|4",
        show_default=False,
    ),
]
MemoryLimitOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        callback=_check_memory,
        help="Of mlx, such as 8GB: parts are loaded one after the other, and less is computed at once.",
        metavar="SIZE",
        show_default=False,
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
class BackendOptions:
    """What the networks of a command run on."""

    backend: BackendOption = field(default="torch", metadata=LAST)
    bits: BitsOption = field(default=None, metadata=LAST)
    memory_limit: MemoryLimitOption = field(default=None, metadata=LAST)

    def choose(self, model: str) -> str:
        """'torch' or 'mlx'; says on stderr what `auto` takes torch for.

        Raises:
            SpecError: options of MLX without MLX.
            MissingPackage: MLX was asked for by name, and cannot run here.
        """
        from ..integrations.mlx.available import choose_backend, torch_device

        backend, why = choose_backend(self.backend)
        if self.backend == "auto" and backend == "mlx":
            from ..integrations.mlx.parts import reason_against

            why = reason_against(model)
            backend = "torch" if why else "mlx"
        if why:
            typer.echo(f"--backend auto takes torch on {torch_device()}: {why}.", err=True)
        if backend == "torch" and (said := [n for n, v in self._only_mlx.items() if v is not None]):
            raise SpecError(f"{said[0]} is for MLX, and this runs on torch: add --backend mlx, or leave it out.")
        return backend

    @property
    def source(self) -> dict[str, Any]:
        """What a certificate keeps to make the model again, where it does not run on torch."""
        if self.backend == "torch":
            return {}
        return {"backend": self.backend, "bits": self.bits, "memory_limit": self.memory_limit}

    @property
    def _only_mlx(self) -> dict[str, Any]:
        return {"--bits": self.bits, "--memory-limit": self.memory_limit}


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command and how it is run."""

    model: ModelOption = "pebble"
    settings: SettingsOption = field(default=None, metadata=LAST)
    image: ImageOption = field(default=None, metadata=LAST)
    device: DeviceOption = field(default=None, metadata=LAST)
    dtype: DtypeOption = field(default="auto", metadata=LAST)
    as_guest: AsGuestOption = field(default=False, metadata=LAST)

    def subject(self, guidance: float | None = None, run_on: BackendOptions | None = None) -> Subject:
        """The model, looked up but not loaded. Raises ModelError, GuestError, SpecError, MissingPackage.

        Args:
            guidance: Classifier-free guidance; the model's own by default.
            run_on: What its networks run on; torch by default.
        """
        from ..evaluation.models import find_model_package
        from ..integrations.mlx.available import torch_device

        if run_on is not None and run_on.choose(self.model) == "mlx":
            return self._on_mlx(guidance, run_on)
        if run_on is not None and run_on.backend == "auto" and self.device is None and torch_device() == "mps":
            return replace(self, device="mps").subject(guidance) if self._in_pipeline else self.subject(guidance)
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

    @property
    def _in_pipeline(self) -> bool:
        """Whether the model runs in its pipeline, which has a device, and not in the engine's loop on torch."""
        from ..evaluation.models import find_model_package

        return self.as_guest or find_model_package(self.model) is None

    def _on_mlx(self, guidance: float | None, run_on: BackendOptions) -> Subject:
        only = {"--device": self.device, "--image": self.image, "--as-guest": self.as_guest}
        if said := [name for name, value in only.items() if value]:
            raise SpecError(
                f"{said[0]} is for pipelines of diffusers, which run on torch: leave it out, or --backend mlx."
            )
        from ..evaluation.mlx_subject import MlxSubject
        from ..integrations.mlx.available import parse_size

        limit = None if run_on.memory_limit is None else parse_size(run_on.memory_limit)
        return MlxSubject(
            self.model,
            Path(self.model).name,
            guidance,
            dtype=self.dtype,
            bits=run_on.bits,
            memory_limit=limit,
            arguments=_settings(self.settings or ()),
            torch_fallback=run_on.backend == "auto",
        )

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
    for name, value in split_settings(spoken, "height=512"):
        found[name] = _picture(Path(value[1:])) if value.startswith("@") else read_setting(name, value)
    return found


def split_settings(spoken: Sequence[str], example: str) -> list[tuple[str, str]]:
    """(name, value) of each --set. Raises SpecError, with the example.

    Args:
        spoken: NAME=VALUE.
        example: Such a one, for the error.
    """
    found = []
    for one in spoken:
        name, equals, value = one.partition("=")
        if not equals or not name.strip().isidentifier():
            raise SpecError(f"Expected --set NAME=VALUE, e.g. --set {example}, got {one!r}.")
        found.append((name.strip(), value))
    return found


def read_setting(name: str, value: str) -> Any:
    """The value of a --set, read as JSON where it is, else as text. Raises SpecError for NaN and infinities."""
    try:
        read = json.loads(value)
    except RecursionError:
        raise SpecError(f"--set {name}: expected a value, got lists in lists without end.") from None
    except ValueError:
        return value
    try:
        json.dumps(read, allow_nan=False)
    except ValueError:
        raise SpecError(f"--set {name}: expected finite numbers, got {value}.") from None
    return read


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
