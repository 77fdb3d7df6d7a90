"""A text-to-image pipeline on MLX from a diffusers folder: problems, the backbone, pictures."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from ... import registry
from ...engine.contracts import COND, INFINITY, UNCOND, PredictionType
from ...engine.drivers import denoise_many
from ...engine.requests import Problem, Result, Status
from ...errors import ModelError, PromptError, SpecError
from ...numerics.grid import resolve_times
from ...numerics.noise import standard_normal
from ...numerics.schedule import FlowMatching, Schedule
from ...numerics.tables import Table
from ...policies.certified import MLX
from ...satellites import list_entry_points
from ..diffusers.noise_levels import get_table
from .available import parse_size
from .backbone import MlxBackbone
from .denoiser import Denoiser
from .families import FAMILIES, Arrays, Family, LatentSize
from .layers import slice_attention
from .limits import MemoryPlan, apply_limit, decode_tiled, plan_memory
from .lora import LoraReport
from .overflow import check_overflow
from .parts import BITS, DTYPES, Parts, digest, find_folder, read_config, read_index, stored_dtype

STEPS, SOLVER, GRID, POLICY = 50, "unipc", "trailing", "balanced"
PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "eps",
    "v_prediction": "v",
    "sample": "x0",
    "flow_prediction": "flow",
}


@dataclass(frozen=True)
class MlxOutput:
    """Pictures of a call, the runs that they come from, and the memory that they took.

    Args:
        images: PIL images.
        results: Of the engine, in the same order.
        peak_memory, active_memory: Bytes that MLX held at most, and holds now.
    """

    images: list[Any]
    results: list[Result]
    peak_memory: int
    active_memory: int


@dataclass(frozen=True, eq=False)
class MlxPipeline:
    """A text-to-image pipeline whose networks run on MLX, ready to be denoised by the engine.

        pipe = skipstone.mlx.load("pebble", dtype="float16")
        pipe("a red apple on a blue background", policy="balanced").images[0].save("apple.png")

    Args:
        name: What tables and metadata call it.
        family: The class of the pipeline.
        parts: Its networks and tokenizers.
        schedule: The noise schedule that the denoiser was trained on.
        prediction: What the denoiser puts out.
        guidance: Weight of classifier-free guidance; of FLUX the guidance that the network is given.
        size: Of the latents.
        negative_prompt: In place of the empty one.
        plan: How it keeps within a limit of memory; None where there is none.
    """

    name: str
    family: Family = field(repr=False)
    parts: Parts = field(repr=False)
    schedule: Schedule = field(repr=False)
    prediction: PredictionType
    guidance: float
    size: LatentSize
    negative_prompt: str = ""
    plan: MemoryPlan | None = None

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        return self.size.height * self.size.factor, self.size.width * self.size.factor

    @property
    def folder(self) -> Path:
        """Folder of the weights."""
        return self.parts.folder

    @property
    def dtype(self) -> str:
        """Dtype of the weights, with the bits of quantised ones: 'float16', 'float16, 4 bits'."""
        return self.parts.dtype + (f", {self.parts.bits} bits" if self.parts.bits else "")

    @cached_property
    def unet(self) -> Denoiser:
        """The denoiser, whatever its architecture; its network is loaded when it is first called."""
        part = self.family.denoiser
        made = Denoiser(
            lambda: self.parts.network(part),
            self.family.call,
            getattr(mx, self.parts.dtype),
            max_rows=self.plan.max_rows if self.plan else 0,
            query_rows=self.plan.query_rows if self.plan else 0,
        )
        self.parts.on_release.append(made.release)
        return made

    @cached_property
    def backbone(self) -> MlxBackbone:
        """The denoiser under this guidance."""
        return MlxBackbone(self.unet, self.schedule, self.prediction, self.family.branches(self.guidance))

    @property
    def judge(self) -> None:
        """None: judges are torch's."""
        return None

    def guided(self, guidance: float) -> MlxPipeline:
        """The same networks under another guidance weight."""
        return replace(self, guidance=guidance)

    def with_negative_prompt(self, text: str) -> MlxPipeline:
        """The same networks with this text in place of the empty prompt."""
        return replace(self, negative_prompt=text)

    def sized(self, height: int, width: int) -> MlxPipeline:
        """The same networks for pictures of another size, in pixels. Raises SpecError for one that cannot be made."""
        step = self.size.factor * self.family.cells
        for side in (height, width):
            if side < step or side % step:
                raise SpecError(f"Expected sides that are multiples of {step} pixels, got {height} x {width}.")
        size = replace(self.size, height=height // self.size.factor, width=width // self.size.factor)
        schedule, _ = read_schedule(self.folder, self.family, size)
        made = replace(self, size=size, schedule=schedule)
        return made if self.plan is None else made.limited(self.plan.limit)

    def limited(self, limit: int) -> MlxPipeline:
        """The same networks within so many bytes. Raises ModelError where that cannot be done."""
        plan = plan_memory(self.folder, self.parts.dtype, self.parts.bits, self.pixels, limit, self.backbone.branches)
        apply_limit(limit)
        self.parts.staged |= plan.staged
        return replace(self, plan=plan)

    def load_lora_weights(self, path: str | Path, scale: float = 1.0) -> LoraReport:
        """Merge a LoRA of diffusers, peft or kohya into the weights: W + scale * alpha / rank * up @ down.

        It acts on every pipeline that shares these networks; `unload_lora_weights` undoes it.

        Args:
            path: A safetensors file, or a folder with pytorch_lora_weights.safetensors.
            scale: Of the change; 1 is that of training.

        Raises:
            ModelError: a file that cannot be read or does not fit, or quantised weights; nothing is changed then.
        """
        return self.parts.merge_lora(path, scale)

    def unload_lora_weights(self) -> None:
        """Bring the weights back to what the folder has; they are read again."""
        self.parts.unload_loras()

    def identity(self) -> dict[str, Any]:
        """What must be the same for a promise of quality to hold; loads the networks."""
        parts = (*(part for _, part in self.family.text), self.family.denoiser, "vae")
        digests = [digest(part, self.parts.network(part)) for part in parts if self.parts.has(part)]
        return {
            "pipeline": f"{MLX}{self.family.pipeline}",
            "dtype": self.dtype,
            "weights": hashlib.sha256("".join(digests).encode()).hexdigest(),
            "guidance": float(self.guidance),
        }

    # -- prompts ------------------------------------------------------------------------------------

    def encode(self, prompt: str) -> Arrays:
        """The arrays that condition the denoiser, by name, without a batch axis; prompts are encoded one at a time."""
        return self.parts.encode(prompt)

    def problem(
        self,
        prompt: str,
        seed: int = 0,
        steps: int = STEPS,
        grid: str | Sequence[float] | Any = GRID,
        budget: float = INFINITY,
    ) -> Problem:
        """One sample to denoise; the same seed is the same noise as in torch, alone or in a batch.

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
        latent = self.size
        times = resolve_times(grid, self.schedule, steps)
        noise = standard_normal(seed, 0, mx.zeros((latent.channels, latent.height, latent.width)))
        known = self.encode(prompt)
        cond = {COND: self.family.complete(known, latent, self.guidance)}
        if self.backbone.branches > 1:
            empty = self.family.negative(self.encode(self.negative_prompt), bool(self.negative_prompt))
            cond[UNCOND] = self.family.complete(empty, latent, self.guidance)
        words = tuple(np.array(self.family.words(known).astype(mx.float32).mean(axis=0)).tolist())
        branches = self.backbone.branches
        return Problem(self.schedule, noise, times, cond, seed, branches, budget, prompt=words, text=prompt)

    # -- pictures -----------------------------------------------------------------------------------

    def decode(self, latents: Sequence[mx.array]) -> list[NDArray[np.float32]]:
        """Pictures (height, width, 3) in [0, 1] of latents (channels, height, width), not rounded to 8 bits."""
        config = self.parts.config("vae")
        scale, shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0
        pictures = []
        for latent in latents:  # one at a time: so much less memory, and the same picture in every batch
            z = (latent.astype(mx.float32) / scale + shift).transpose(1, 2, 0)
            made = self._decode(self.parts.network("vae"), z)
            pictures.append(np.array(mx.clip(made / 2 + 0.5, 0.0, 1.0)))
        return pictures

    def _decode(self, network: Any, z: mx.array) -> mx.array:
        """The picture (height, width, 3) of the autoencoder for (height, width, channels)."""
        plan = self.plan
        with slice_attention(plan.query_rows if plan else 0):
            if plan is not None and plan.tiled:
                return decode_tiled(network, z, self.size.factor)
            picture: mx.array = network.decode(z[None])[0].astype(mx.float32)
            return picture

    def image(self, latent: mx.array) -> Any:
        """The picture of one latent as a `PIL.Image`."""
        from PIL import Image

        return Image.fromarray((self.decode([latent])[0] * 255).round().astype("uint8"))

    def __call__(
        self,
        prompt: str | Sequence[str],
        policy: Any = POLICY,
        seed: int = 0,
        steps: int = STEPS,
        solver: Any = SOLVER,
        grid: Any = GRID,
    ) -> MlxOutput:
        """Draw prompts in one batch, each by its own decisions; sample k has the seed `seed + k`.

        Args:
            prompt: What to draw, or several of it.
            policy: A policy or its spec.
            seed: Of the first sample.
            steps: Of the grid, >= 1.
            solver, grid: A solver and a grid, or their specs.

        Raises:
            PromptError, SpecError: an empty prompt, or a setting that cannot be understood.
            BackboneError: the network put out NaN in half precision.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        policy = registry.parse("policy", policy) if isinstance(policy, str) else policy
        solver = registry.parse("solver", solver) if isinstance(solver, str) else solver
        problems = [self.problem(one, seed + k, steps, grid) for k, one in enumerate(prompts)]
        results = denoise_many(self.backbone, problems, solver, policy)
        self.check_results(problems, solver, results)
        images = [self.image(result.x) for result in results]
        return MlxOutput(images, results, mx.get_peak_memory(), mx.get_active_memory())

    def check_results(self, problems: Sequence[Problem], solver: Any, results: Sequence[Result]) -> None:
        """Raise BackboneError, with the step, where a run has overflowed in half precision."""
        if self.parts.dtype == "float32":
            return
        for problem, result in zip(problems, results, strict=True):
            if result.status is Status.nonfinite:
                check_overflow(self.backbone, problem, solver, result.run, self.dtype)


def load_pipeline(
    model: str | Path,
    dtype: str = "auto",
    bits: int | None = None,
    guidance: float | None = None,
    memory_limit: int | str | None = None,
    torch_fallback: bool = False,
) -> MlxPipeline:
    """A pipeline on MLX; see `skipstone.mlx.load`."""
    known = ("auto", *DTYPES)
    if dtype not in known:
        raise SpecError(
            f"Expected a dtype among {', '.join(known)}, got {dtype!r}.{registry.suggest_spelling(dtype, known)}"
        )
    if bits is not None and bits not in BITS:
        raise SpecError(f"Expected bits 4 or 8, or None for weights as they are, got {bits!r}.")
    limit = None if memory_limit is None else parse_size(memory_limit)
    folder = find_folder(model)
    index = read_index(folder)
    kind = FAMILIES[index["_class_name"]]
    family = kind(index, read_config(folder, kind.denoiser))
    stored = stored_dtype(folder / kind.denoiser) if dtype == "auto" else dtype
    parts = Parts(folder, family, stored, bits, torch_fallback)
    size = _size(parts, family)
    schedule, prediction = read_schedule(folder, family, size)
    own = family.guidance if guidance is None else guidance
    if guidance is None:
        own = next((p.guidance for p in _packages() if p.owns(model)), own)
    made = MlxPipeline(Path(model).resolve().name, family, parts, schedule, prediction, own, size)
    return made if limit is None else made.limited(limit)


def _packages() -> list[Any]:
    return [point.load() for point in list_entry_points("models")]


def _size(parts: Parts, family: Family) -> LatentSize:
    """The model's own size of latents."""
    config, decoder = family.config, parts.config("vae")
    factor = 2 ** (len(decoder.get("block_out_channels", (0,) * 4)) - 1)
    side = config.get("sample_size") or 128
    height, width = side if isinstance(side, list) else (side, side)
    return LatentSize(family.channels, int(height), int(width), factor)


def read_schedule(folder: Path, family: Family, size: LatentSize) -> tuple[Schedule, PredictionType]:
    """The noise schedule and the prediction that the configuration of the pipeline's scheduler names."""
    import diffusers

    name = (family.index.get("scheduler") or [None, None])[1]
    kind = getattr(diffusers, str(name), None)
    if kind is None:
        raise ModelError(f"{folder} names a scheduler {name!r}, which diffusers {diffusers.__version__} does not have.")
    try:
        scheduler = kind.from_pretrained(folder / "scheduler")
    except Exception as e:  # OSError, JSON errors, and whatever a wrong setting raises
        raise ModelError(f"The scheduler of {folder} cannot be loaded: {str(e).splitlines()[0]}") from e
    said = scheduler.config.get("prediction_type")
    schedule: Schedule
    if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
        prediction, schedule = said or "epsilon", get_table(scheduler)
    else:
        prediction, schedule = "flow_prediction", Table.from_scheduler(scheduler, _mu(scheduler, size, family))
    if prediction not in PREDICTIONS:
        raise ModelError(f"{kind.__name__} has prediction_type={said!r}; on MLX there are {', '.join(PREDICTIONS)}.")
    if prediction == "flow_prediction" and not isinstance(schedule, FlowMatching):
        raise ModelError(f"{kind.__name__} is no flow, but its prediction is one: its settings contradict each other.")
    return schedule, PREDICTIONS[prediction]


def _mu(scheduler: Any, size: LatentSize, family: Family) -> float | None:
    """Log of the shift for a picture of this size, where the scheduler shifts by it; as diffusers' calculate_shift."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    tokens = (size.height // family.cells) * (size.width // family.cells)
    return float(low + (high - low) * (tokens - least) / (most - least)) if not math.isclose(least, most) else low
