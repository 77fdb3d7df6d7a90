"""A diffusers pipeline before its weights are loaded: where it is, of which class, and what its call takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import GuestError, ModelError, SpecError
from ..integrations.diffusers.pipeline_specs import find_pipeline_spec, unsupported_pipelines
from ..policies.hub_files import HUB_ID, NotFetched, fetch_file
from ..testing.backbones.loading import quiet_libraries

INDEX_FILE = "model_index.json"
VIDEO_ARGUMENTS = {"num_frames", "video_length", "video"}  # arguments of calls that make videos
DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Checkpoint:
    """A folder, or a model on the Hugging Face hub, that holds a diffusers pipeline.

    Args:
        model: Path or hub id.
        index: Its model_index.json.
        kind: The pipeline's class.
    """

    model: str
    index: Mapping[str, Any]
    kind: Any

    @staticmethod
    def find(model: str, from_image: bool = False) -> Checkpoint:
        """Look a model up; of a hub id only the index is fetched.

        Args:
            model: Path or hub id.
            from_image: Take the image-to-image pipeline of the same family where the model's own takes no image.

        Raises:
            ModelError: not there, no pipeline, or of a class that this diffusers does not have.
            GuestError: it cannot be adapted.
        """
        path = Path(model) / INDEX_FILE if Path(model).exists() else _from_hub(model)
        if not path.is_file():
            raise ModelError(
                f"{model} holds no {INDEX_FILE}: expected what a diffusers pipeline's save_pretrained writes. From "
                f"a single file: StableDiffusionPipeline.from_single_file(...).save_pretrained(folder)."
            )
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            name = str(index["_class_name"])
        except (ValueError, KeyError, TypeError):
            raise ModelError(f"{path} is damaged: it names no pipeline. Fetch the model again.") from None
        with quiet_libraries():
            kind = _kind(model, name)
            if from_image and "image" not in inspect.signature(kind.__call__).parameters:
                kind = _from_image(kind)
        why = next(
            (unsupported_pipelines()[c.__name__] for c in kind.__mro__ if c.__name__ in unsupported_pipelines()), None
        )
        if why:
            raise GuestError(f"{name} cannot be adapted: {why}")
        found = Checkpoint(model, index, kind)
        if any(argument.startswith("audio") for argument in found.arguments):
            raise ModelError(f"{name} makes sound, not pictures or videos: use skipstone.adapt in Python.")
        return found

    @property
    def name(self) -> str:
        """Name of the model in tables: its hub id, or the name of its folder."""
        return Path(self.model).resolve().name if Path(self.model).exists() else self.model

    @cached_property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """Arguments that the pipeline's call takes."""
        found = dict(inspect.signature(self.kind.__call__).parameters)
        del found["self"]
        return {k: p for k, p in found.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}

    def default(self, name: str) -> Any:
        """The default of an argument, or None."""
        p = self.arguments.get(name)
        return None if p is None or p.default is p.empty else p.default

    @property
    def is_video(self) -> bool:
        """Whether the pipeline makes videos."""
        return bool(VIDEO_ARGUMENTS & self.arguments.keys())

    @cached_property
    def scheduler(self) -> Any:
        """The pipeline's own scheduler, without the rest."""
        import diffusers

        _, name = self.index.get("scheduler") or (None, None)
        kind = getattr(diffusers, str(name), None)
        if kind is None:
            raise GuestError(f"{self.kind.__name__} has no scheduler of diffusers, so there is no loop to adapt.")
        with quiet_libraries():
            try:
                return kind.from_pretrained(self.model, subfolder="scheduler")
            except Exception as e:  # OSError, JSON errors, and whatever a hub's client raises
                raise ModelError(f"The scheduler of {self.model} cannot be loaded: {first_line(e)}") from e

    def load(self, device: str | None = None, dtype: str = "auto") -> Any:
        """The pipeline with its weights.

        Args:
            device: Where to; cuda where there is one, otherwise cpu, by default.
            dtype: Of the weights; `auto` is the checkpoint's own on a GPU and float32 on a CPU.

        Raises:
            ModelError: weights that are missing or damaged, a package that is missing, a device that is not there.
            SpecError: a dtype that is none of these.
        """
        import torch

        if dtype not in DTYPES:
            raise SpecError(f"Expected a dtype among {', '.join(DTYPES)}, got {dtype!r}.")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            with quiet_libraries():
                pipe = self.kind.from_pretrained(self.model, torch_dtype=self._dtype(device, dtype))
                pipe = pipe.to(device)
        except Exception as e:  # torch, safetensors, tokenizers, importers ... have errors of their own
            raise ModelError(f"{self.model} cannot be loaded on {device}: {first_line(e)}") from e
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _dtype(self, device: str, dtype: str) -> Any:
        import torch

        if dtype != "auto":
            return getattr(torch, dtype)
        return torch.float32 if torch.device(device).type == "cpu" else self._stored()

    def _stored(self) -> Any:
        """The dtype in which the largest file of weights is stored."""
        import torch
        from safetensors import safe_open

        folder = Path(self.model)
        if not folder.is_dir():
            folder = Path(self.kind.download(self.model))
        files = sorted(folder.rglob("*.safetensors"), key=lambda f: f.stat().st_size)
        if not files:
            return torch.float32
        with safe_open(files[-1], "pt") as weights:
            stored = weights.get_slice(next(iter(weights.keys()))).get_dtype()
        return {"F16": torch.float16, "BF16": torch.bfloat16}.get(stored, torch.float32)


@dataclass(frozen=True)
class LoadedPipeline(Checkpoint):
    """A pipeline that somebody has loaded already, with whatever was done to it since.

    Args:
        pipe: It.
    """

    pipe: Any = None

    @staticmethod
    def from_loaded(pipe: Any) -> LoadedPipeline:
        """Return the checkpoint of a loaded pipeline. Raises GuestError where it cannot be adapted."""
        find_pipeline_spec(pipe)
        return LoadedPipeline(
            str(pipe.config.get("_name_or_path") or type(pipe).__name__), dict(pipe.config), type(pipe), pipe
        )

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler, as it is now."""
        return self.pipe.scheduler

    def load(self, device: str | None = None, dtype: str = "auto") -> Any:
        """Return the pipeline, on the device where it already is."""
        return self.pipe


def first_line(e: BaseException) -> str:
    """The message of another library's error, as the end of a sentence."""
    line = (str(e).strip() or type(e).__name__).splitlines()[0].strip()
    return line if line.endswith(".") else f"{line}."


def _from_hub(model: str) -> Path:
    """The index of a model on the hub, from the cache where it is there."""
    if not HUB_ID.fullmatch(model):
        raise ModelError(f"There is no folder {model}. Expected pebble, a pipeline's folder, or a hub id: org/name.")
    from huggingface_hub import try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(model, INDEX_FILE), str):
        return Path(cached)
    try:
        return fetch_file(model, INDEX_FILE, "model")
    except NotFetched as e:
        end = ": it is no diffusers pipeline" if str(e) == f"has no {INDEX_FILE}" else ""
        raise ModelError(f"{model} {e}{end}.") from None


def _kind(model: str, name: str) -> Any:
    import diffusers

    kind = getattr(diffusers, name, None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise ModelError(
            f"{model} is a {name}, which diffusers {diffusers.__version__} does not have. Load it in Python, and use "
            f"skipstone.adapt(pipe, policy)."
        )
    return kind


def _from_image(kind: Any) -> Any:
    """The image-to-image pipeline of the same family, or the class itself."""
    from diffusers.pipelines import auto_pipeline

    try:
        return auto_pipeline._get_task_class(auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, kind.__name__)
    except ValueError:
        return kind
