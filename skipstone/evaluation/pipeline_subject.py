"""Any diffusers pipeline, adapted, as a comparison's subject."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import GuestError, GuestWarning, ModelError, PromptError, SkipstoneError, SpecError
from ..integrations.diffusers.guest import adapt
from ..integrations.diffusers.pipeline_specs import find_pipeline_spec
from . import samplers
from .checkpoints import Checkpoint, first_line
from .columns import FIXED_POLICY, Column, Sampler
from .cost import BackwardCallCounter
from .engine_subject import verify_calls
from .latent_recorder import record_latents
from .limits import MAX_FRAMES, MAX_SIDE
from .pipeline_samples import apply_peer, samples_from_peer, samples_from_run_stats
from .step_timer import track_steps
from .subject import GeneratedSample, SampleProgressCallback, SampleRequest

# Arguments that options and columns set, or that would change what a sample is.
RESERVED_ARGUMENTS = {
    "prompt": "the prompt",
    "class_labels": "the prompt",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "generator": "--seed",
    "image": "--image",
    "latents": "--seed",
    "eta": "--solver 'ddim(eta=...)'",
    "batch_size": "-n",
    "num_images_per_prompt": "-n",
    "num_videos_per_prompt": "-n",
    "num_videos_per_image": "-n",
    "output_type": "--out",
    "return_dict": "",
    "callback": "",
    "callback_on_step_end": "",
    "callback_on_step_end_tensor_inputs": "",
}
SIZES = {"height": MAX_SIDE, "width": MAX_SIDE, "num_frames": MAX_FRAMES}  # arguments, and what they are at most
WARMUP_STEPS = 4  # steps of the run that warms up


@dataclass(frozen=True)
class PipelineSubject:
    """A pipeline that diffusers loads, denoised in its own loop.

    Args:
        checkpoint: The pipeline.
        guidance_override: Weight of guidance; None is the default of the pipeline's call.
        arguments: More of its call.
        image: What an image-to-image pipeline starts from, a PIL image.
        device, dtype: See `Checkpoint.load`.
        noise: Seed -> the latent to start from, where the pipeline does not make it from a generator.
        sampler_override: What columns leave unsaid, where it is not what the pipeline would do.
        display_name: A name for tables, where it is not the checkpoint's.
        judge_factory: The judge of `Subject`.
    """

    checkpoint: Checkpoint
    guidance_override: float | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image: Any = None
    device: str | None = None
    dtype: str = "auto"
    noise: Callable[[int], Any] | None = None
    sampler_override: Sampler | None = None
    display_name: str = ""
    policy: str = "error_control"  # runs in every pipeline; what takes the loop over does not
    judge_factory: Callable[[], Callable[[Any, str], float] | None] = lambda: None
    _known: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raise SpecError for what the pipeline's call does not take."""
        name, takes = self.checkpoint.kind.__name__, self._accepted_arguments
        free = [known for known in takes if known not in RESERVED_ARGUMENTS]
        for key in self.arguments:
            if key in takes and key in RESERVED_ARGUMENTS:
                raise SpecError(
                    f"{key} is not set by --set{RESERVED_ARGUMENTS[key] and ', but by ' + RESERVED_ARGUMENTS[key]}."
                )
            if key not in takes:
                raise SpecError(
                    f"{name} takes no {key!r}.{registry.suggest_spelling(key, free)} It takes: {', '.join(free)}."
                )
        self._check_sizes()
        if self.guidance_override is not None and "guidance_scale" not in takes:
            raise SpecError(f"{name} has no guidance_scale: leave --guidance out.")
        if self.image is not None and "image" not in takes:
            raise SpecError(f"{name} takes no image: leave --image out.")

    def _check_sizes(self) -> None:
        """Raise SpecError for sizes that are none, and for those of a model whose noise has one size."""
        for key, most in SIZES.items():
            if (value := self.arguments.get(key)) is None:
                continue
            if self.noise is not None:
                raise SpecError(f"{self.name} draws pictures of one size: leave {key} out.")
            if type(value) is not int or not 1 <= value <= most:
                raise SpecError(f"{key}: expected a whole number from 1 to {most}, got {value!r}.")

    def _warn_of_size(self, picture: Any) -> None:
        """Warn where the pipeline has made another size than it was asked for, without a word."""
        got = dict(zip(("height", "width"), picture.shape[-3:-1], strict=True))
        for key, size in got.items():
            asked = self.arguments.get(key)
            if asked is not None and asked != size:
                warnings.warn(
                    f"{key}={asked} was asked for, and {self.checkpoint.kind.__name__} made pictures of "
                    f"{got['width']} x {got['height']} pixels. Say both height and width, in sizes that it can make.",
                    GuestWarning,
                    stacklevel=2,
                )

    @property
    def name(self) -> str:
        """Name of the pipeline in tables."""
        return self.display_name or self.checkpoint.name

    @property
    def judge(self) -> Callable[[Any, str], float] | None:
        """The judge of the pipeline's model, which only Pebble has; else None."""
        return self.judge_factory()

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments of its call, pictures by the names of their files."""
        arguments = {**self.arguments, **({} if self.image is None else {"image": self.image})}
        return {name: f"@{v.info.get('file')}" if hasattr(v, "info") else v for name, v in arguments.items()}

    @property
    def guidance(self) -> float | None:
        """Weight of guidance, None where the pipeline has none."""
        default = self.checkpoint.default("guidance_scale")
        guidance = default if self.guidance_override is None else self.guidance_override
        return None if guidance is None else float(guidance)

    @property
    def is_video(self) -> bool:
        """Whether the pipeline makes videos."""
        return self.checkpoint.is_video

    @property
    def default_sampler(self) -> Sampler:
        """The pipeline's own scheduler, and the steps that its call takes by default."""
        steps = self.checkpoint.default("num_inference_steps")
        return self.sampler_override or Sampler(None, None, steps if isinstance(steps, int) else 50)

    # -- before anything is loaded ----------------------------------------------------------------

    def check(self, prompts: Sequence[str]) -> None:
        """Raise PromptError: an empty prompt, a label that the model does not know, or one that it has no use for."""
        takes, name = self._accepted_arguments, self.checkpoint.kind.__name__
        if "class_labels" in takes:
            self._labels(prompts)
        elif "prompt" not in takes:
            if any(prompts):
                raise PromptError(f"{name} draws without a prompt: leave it out; --seed and -n tell its samples apart.")
        elif not prompts or not all(prompt.strip() for prompt in prompts):
            raise PromptError(f'The prompt is empty. Say what {name} is to draw: "a red apple on a blue background".')

    def _labels(self, prompts: Sequence[str]) -> list[int]:
        """The classes that prompts name, by word or number."""
        known = {
            name.strip().lower(): int(number)
            for number, names in (self.checkpoint.index.get("id2label") or {}).items()
            for name in names.split(",")
        }
        found = []
        for prompt in prompts:
            label = known.get(prompt.strip().lower(), int(prompt) if prompt.strip().isdigit() else None)
            if label is None or (known and label not in known.values()):
                guess = registry.suggest_spelling(prompt.strip().lower(), list(known))
                raise PromptError(
                    f"{self.name} draws classes: expected the name of one, or its number, got {prompt!r}.{guess}"
                )
            found.append(label)
        return found

    def resolve_column(self, column: Column) -> Column:
        """The column itself. Raises SpecError where diffusers has no such scheduler for this model."""
        takes = self._accepted_arguments
        solver = None if samplers.takeover_solver(column) else column.solver
        samplers.build_scheduler(self.checkpoint.scheduler, solver, column.grid, column.steps or samplers.PROBE_STEPS)
        if samplers.ddim_eta(column.solver) is not None and "eta" not in takes:
            raise SpecError(f"{self.checkpoint.kind.__name__} takes no eta: only ddim(eta=0) runs in it.")
        if "num_inference_steps" not in takes and column.steps != self.default_sampler.steps:
            raise SpecError(f"{self.checkpoint.kind.__name__} does not let its steps be chosen: leave --steps out.")
        return column

    # -- with the weights --------------------------------------------------------------------------

    @cached_property
    def pipe(self) -> Any:
        """The pipeline, loaded when it is first asked for."""
        return self.checkpoint.load(self.device, self.dtype)

    def load(self, columns: Sequence[Column]) -> None:
        """Load the pipeline and hold every column against it."""
        for column in columns:
            with self.adapted(column):
                pass

    def warm_up(self, items: Sequence[SampleRequest], column: Column) -> None:
        """A few steps, so that the first column does not pay for what a first call allocates."""
        with suppress(SkipstoneError), warnings.catch_warnings(action="ignore"):
            self.draw(items, Column(None, column.solver, column.grid, WARMUP_STEPS))

    @cached_property
    def folder(self) -> Path:
        """Folder of the pipeline's weights."""
        found = Path(self.checkpoint.model)
        return found if found.is_dir() else Path(self.checkpoint.kind.download(self.checkpoint.model))

    @property
    def denoisers(self) -> Sequence[Any]:
        """The networks that the pipeline's loop calls."""
        spec = find_pipeline_spec(self.pipe)
        return tuple(spec.models(self.pipe, spec.denoisers))

    def prepare(self, items: Sequence[SampleRequest], column: Column) -> None:
        """Let a peer measure what it needs, with runs of the bare pipeline."""
        if column.peer is None:
            return
        if why := column.peer.refusal_reason(self.pipe):
            raise GuestError(why)
        self._branches(items[0], column)
        own = self.pipe.scheduler
        self.pipe.scheduler = samplers.build_scheduler(own, column.solver, column.grid, column.steps)
        try:
            column.peer.prepare(
                self.pipe, **self.call_arguments(items if self._supports_batching else items[:1], column)
            )
        finally:
            self.pipe.scheduler = own

    @contextmanager
    def adapted(self, column: Column) -> Iterator[Any]:
        """The pipeline under a column's scheduler and policy, or accelerated by a peer, which gives no account."""
        own = self.pipe.scheduler
        taken = samplers.takeover_solver(column)
        self.pipe.scheduler = samplers.build_scheduler(own, None if taken else column.solver, column.grid, column.steps)
        try:
            if column.peer is not None:
                with apply_peer(self.pipe, column.peer):
                    yield None
            else:
                with adapt(self.pipe, column.effective_policy, solver=taken) as adapted:
                    yield adapted
        finally:
            self.pipe.scheduler = own

    def draw(
        self, items: Sequence[SampleRequest], column: Column, watch: SampleProgressCallback | None = None
    ) -> tuple[list[GeneratedSample], float]:
        """The samples, in one call of the pipeline where it takes a batch, and the seconds of their loops."""
        size = len(items) if self._supports_batching else 1
        generated: list[GeneratedSample] = []
        seconds, verified = 0.0, 0
        branches = self._branches(items[0], column) if column.peer is not None else 0
        with ExitStack() as stack, self.adapted(column) as adapted:
            counters = [stack.enter_context(BackwardCallCounter(model)) for model in self.denoisers]
            for first in range(0, len(items), size):
                some = items[first : first + size]
                before = [(counter.charged_rows, counter.backward) for counter in counters]
                with (
                    track_steps(self.pipe, range(first, first + len(some)), watch) as clock,
                    record_latents(self.pipe) as seen,
                ):
                    output = self._call(some, column)
                latents = seen.latents(len(some))
                if adapted is None:
                    spent = [(c.charged_rows - a, c.backward - b) for c, (a, b) in zip(counters, before, strict=True)]
                    calls, back = (sum(rows) / branches / len(some) for rows in zip(*spent, strict=True))
                    generated += samples_from_peer(output, latents, calls, column.steps, branches, back)
                    seconds += clock.seconds
                else:
                    generated += samples_from_run_stats(output, adapted.last, latents)
                    verified += adapted.last.verified
                    seconds += clock.seconds if clock.loops else sum(sample.seconds for sample in adapted.last)
            entered = sum(counter.charged_rows for counter in counters) - verified
        self._warn_of_size(generated[0].x)
        verify_calls(column, sum(m.calls for m in generated), entered / generated[0].branches)
        return generated, seconds

    def _branches(self, item: SampleRequest, column: Column) -> int:
        """Rows of a full call of one sample, which a peer does not count: those of the bare pipeline, measured once."""
        if "rows" not in self._known:
            with self.adapted(replace(column, policy=FIXED_POLICY)) as adapted:
                self._call([item], replace(column, policy=FIXED_POLICY, steps=min(column.steps, WARMUP_STEPS)))
                self._known["rows"] = adapted.last[0].run.branches
        return self._known["rows"]

    @property
    def _accepted_arguments(self) -> Mapping[str, Any]:
        return self.checkpoint.arguments

    @property
    def _supports_batching(self) -> bool:
        """Whether one call may make several samples: videos are large, and images are not batched by every pipeline."""
        takes = self._accepted_arguments.keys()
        return self.image is None and not self.is_video and bool({"prompt", "class_labels", "batch_size"} & takes)

    def _call(self, items: Sequence[SampleRequest], column: Column) -> Any:
        try:
            return self.pipe(**self.call_arguments(items, column))
        except SkipstoneError:
            raise
        except Exception as e:  # a wrong --set, no memory left, a package that is missing: diffusers raises anything
            reason = first_line(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {first_line(e)}"
            hint = (
                " It takes a picture: --image FILE."
                if "image" in self._accepted_arguments and self.image is None
                else ""
            )
            raise ModelError(f"{self.checkpoint.kind.__name__} stopped under {column.spec}. {reason}{hint}") from e

    def call_arguments(self, items: Sequence[SampleRequest], column: Column) -> dict[str, Any]:
        """The arguments of a call that generates these samples."""
        import torch

        takes = self._accepted_arguments
        seeds = [item.seed for item in items]
        prompts = [item.prompt for item in items]
        call: dict[str, Any] = dict(self.arguments)
        call["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if "class_labels" in takes:
            call["class_labels"] = self._labels(prompts)
        elif "prompt" in takes and all(prompts):
            call["prompt"] = prompts
        elif "batch_size" in takes:
            call["batch_size"] = len(items)
        if self.noise is not None:
            call["latents"] = torch.stack([self.noise(seed) for seed in seeds])
        if self._supports_batching:  # diffusers wants a negative prompt of the type of the prompt
            texts = {name: v for name, v in self.arguments.items() if "prompt" in name and isinstance(v, str)}
            call |= {name: [text] * len(items) for name, text in texts.items()}
        else:
            call |= {name: call[name][0] for name in ("prompt", "generator") if name in call}
        if (eta := samplers.ddim_eta(column.solver)) is not None:
            call["eta"] = eta
        offered = {
            "num_inference_steps": column.steps,
            "guidance_scale": self.guidance_override,
            "image": self.image,
            "output_type": "np",
        }
        return call | {name: value for name, value in offered.items() if name in takes and value is not None}

    def pictures(self, generated: Sequence[GeneratedSample]) -> list[Any]:
        """The pictures that the pipeline has decoded; NaN becomes black."""
        import numpy as np

        return [np.nan_to_num(m.x) for m in generated]
