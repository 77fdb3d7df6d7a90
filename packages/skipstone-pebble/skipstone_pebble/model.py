"""Pebble as a problem and a backbone: prompts in, pictures out, each sample by its own seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import skipstone_pebble as pebble
from skipstone.engine.contracts import COND, INFINITY, UNCOND, PredictionType
from skipstone.engine.requests import Problem
from skipstone.errors import ModelError, PromptError
from skipstone.evaluation.pixels import to_uint8
from skipstone.integrations.cross_attention import content_tokens
from skipstone.integrations.torch import CONTENT, ModuleBackbone
from skipstone.numerics.grid import resolve_times
from skipstone.numerics.noise import standard_normal
from skipstone.numerics.schedule import Schedule
from skipstone.numerics.tables import Table
from skipstone.testing.backbones.loading import quiet_libraries

from .features import FeatureExtractorLoader

GUIDANCE = 3.0
STEPS = 50
JUDGE = "judge.safetensors"  # its weights, beside a model that it can read
GRID = "trailing"  # what the pipeline's own scheduler uses; starts at pure noise
PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}
PIPELINE_CLASSES = ("StableDiffusionPipeline", "StableDiffusion3Pipeline")  # of the families that the recipe trains


@dataclass(frozen=True, eq=False)
class Pebble:
    """The embedded text-to-image model, or another of its format, ready to be denoised.

        model = Pebble.load()
        problem = model.problem("a red apple on a blue background", seed=0)
        result = denoise(model.backbone, problem, solver, policy)
        pixels = model.decode([result.x])[0]

    Args:
        name: What tables and metadata call it.
        tokenizer, encoder: Of prompts.
        unet: The denoiser: a U-Net, or a transformer.
        family: Of the denoiser: how it is called and taught, a `skipstone_pebble.family.Family`.
        autoencoder: Of latents.
        schedule: The noise schedule that the denoiser was trained on.
        prediction: What the denoiser puts out.
        guidance: Classifier-free guidance weight; 1 evaluates the prompt's branch alone, at half the rows.
        has_judge: Whether the judge that ships with Pebble can read its pictures: where one is in the folder.
    """

    name: str
    tokenizer: Any = field(repr=False)
    encoder: Any = field(repr=False)
    unet: Any = field(repr=False)
    family: Any = field(repr=False)
    autoencoder: Any = field(repr=False)
    schedule: Schedule = field(repr=False)
    prediction: PredictionType = "v"
    guidance: float = GUIDANCE
    has_judge: bool = False

    @classmethod
    def load(cls, model: str | Path = "pebble", guidance: float = GUIDANCE) -> Pebble:
        """Pebble itself, or a folder in its format (a pipeline of FORMATS saved by diffusers).

        Raises:
            ModelError: a model that is missing, damaged (its checksums do not fit) or of another kind.
        """
        folder = find_model(model)
        try:
            with quiet_libraries():
                judged = (folder / JUDGE).is_file()
                return cls(Path(model).name, guidance=guidance, has_judge=judged, **_components(folder))
        except Exception as e:  # torch, safetensors, tokenizers ... each have errors of their own for a damaged file
            raise ModelError(
                f"{folder} cannot be loaded: {(str(e) or type(e).__name__).splitlines()[0]}. Fetch or train it again."
            ) from e

    @cached_property
    def backbone(self) -> ModuleBackbone:
        """The denoiser under this guidance."""
        return ModuleBackbone(self.unet, self.schedule, self.prediction, self.guidance, self.family.forward)

    @property
    def judge(self) -> Callable[[NDArray[np.float32], str], float] | None:
        """(pixels, prompt) -> score of the judge that ships with Pebble; None for a model that has none beside it.

        The function raises PromptError for a prompt that is no sentence of Pebble's grammar.
        """
        if not self.has_judge:
            return None
        from .judge import Judge

        judge = Judge.load()
        return lambda pixels, prompt: judge.score([pixels], [prompt])[0]

    def guided(self, guidance: float) -> Pebble:
        """The same model under another guidance weight."""
        return replace(self, guidance=guidance)

    def with_denoiser(self, denoiser: Any) -> Pebble:
        """The same model with another denoiser of its family."""
        return replace(self, unet=denoiser)

    def save(self, folder: Path) -> Path:
        """Write the model as a folder that `load` reads, its weights in half precision; what is there is replaced."""
        from .family import Network
        from .recipe.export import save_pipeline, write_manifest

        network = Network(self.unet, self.encoder, self.tokenizer)
        with quiet_libraries():
            save_pipeline(folder, self.autoencoder, self.family, network)
        if self.has_judge:
            shutil.copyfile(pebble.path() / JUDGE, folder / JUDGE)
            write_manifest(folder)
        return folder

    @torch.inference_mode()
    def encode(self, prompt: str) -> torch.Tensor:
        """Hidden states (tokens, width) of a prompt, as the pipeline's own text encoder gives them.

        One prompt at a time, so that a sample does not depend on what else is in its batch.
        """
        states: torch.Tensor = self.encoder(torch.tensor([self._tokens(prompt)]))[0][0]
        return states

    def _tokens(self, prompt: str) -> list[int]:
        length = self.tokenizer.model_max_length
        ids: list[int] = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        return ids

    def problem(
        self,
        prompt: str,
        seed: int = 0,
        steps: int = STEPS,
        grid: str | Sequence[float] | Any = GRID,
        budget: float = INFINITY,
    ) -> Problem:
        """One sample to denoise; the same seed is the same picture, alone or in a batch.

        Args:
            prompt: What to draw; not empty.
            seed: Of the initial noise and of the solver's, if it wants any.
            steps: Of the grid, >= 1.
            grid: A grid, its spec ("karras"), or the times themselves (then `steps` is not used).
            budget: Calls after which the rest is forecast.

        Raises:
            PromptError: an empty prompt.
            SpecError: fewer than one step, or a grid that cannot have as many.
        """
        if not prompt.strip():
            raise PromptError('The prompt is empty. Say what to draw: "a red apple on a blue background".')
        times = resolve_times(grid, self.schedule, steps)
        config = self.unet.config
        noise = standard_normal(seed, 0, torch.empty(config.in_channels, config.sample_size, config.sample_size))
        content = content_tokens(self.tokenizer, self._tokens(prompt))
        cond: dict[str, Any] = {COND: self.encode(prompt), UNCOND: self.encode(""), CONTENT: content}
        words = self.family.text_states(cond[COND])
        known, feature_extractors = tuple(words.mean(0).tolist()), FeatureExtractorLoader(self, prompt, words)
        return Problem(
            self.schedule,
            noise,
            times,
            cond,
            seed,
            self.backbone.branches,
            budget,
            prompt=known,
            feature_extractors=feature_extractors,
            text=prompt,
        )

    @torch.inference_mode()
    def decode(self, latents: Sequence[torch.Tensor]) -> list[NDArray[np.float32]]:
        """Pictures (height, width, 3) in [0, 1], not rounded to 8 bits; see `to_uint8`."""
        scale = self.autoencoder.config.scaling_factor
        pictures = []
        for latent in latents:  # one at a time, for the reason given at `encode`
            made = self.autoencoder.decode(latent[None] / scale, return_dict=False)[0][0]
            pictures.append((made.float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).contiguous().numpy())
        return pictures

    def image(self, latent: torch.Tensor) -> Any:
        """The picture of one latent as a `PIL.Image`."""
        from PIL import Image

        return Image.fromarray(to_uint8(self.decode([latent])[0]))


def find_model(model: str | Path) -> Path:
    """The folder of a model, without loading it, its files checked where it has a manifest.

    Raises:
        ModelError: there is none, it is damaged, or it is not in Pebble's format.
    """
    if str(model) in pebble.SHIPPED:
        return pebble.path(str(model))
    folder = Path(model)
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{model!s} is neither 'pebble' nor a folder in Pebble's format. Other models run in a pipeline of their "
            f"own: skipstone.adapt(DiffusionPipeline.from_pretrained(...), policy)."
        )
    try:
        kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name")
    except ValueError:
        raise ModelError(f"{index} is damaged: it is not JSON. Fetch or train the model again.") from None
    if kind not in PIPELINE_CLASSES:
        raise ModelError(
            f"{model!s} is a {kind}; expected Pebble's format, a {' or '.join(PIPELINE_CLASSES)}. Other models run "
            f"in a "
            f"pipeline of their own: skipstone.adapt({kind}.from_pretrained(...), policy)."
        )
    if (folder / pebble.MANIFEST).is_file():
        pebble.verify(folder, "fetch or train the model again")
    return folder


def _components(folder: Path) -> dict[str, Any]:
    """Tokenizer, text encoder, denoiser, autoencoder, schedule and prediction of a pipeline's folder."""
    import diffusers

    from .families import family_of

    def part(name: str) -> Any:
        return getattr(diffusers, kinds[name][1]).from_pretrained(folder / name)

    kinds = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    family, scheduler = family_of(folder), part("scheduler")
    network = family.load(folder)
    return {
        "tokenizer": network.tokenizer,
        "encoder": network.encoder,
        "unet": network.denoiser,
        "autoencoder": part("vae").float().eval(),
        "schedule": Table.from_scheduler(scheduler),
        "prediction": PREDICTIONS[scheduler.config.get("prediction_type", "flow_prediction")],
        "family": family,
    }
