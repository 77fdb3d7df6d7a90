"""`skipstone.Scheduler`: a solver of ours as a scheduler of diffusers, for pipelines whose loop must stay theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput

from ... import registry
from ...engine.flow import HISTORY_LENGTH
from ...engine.requests import Estimate, Node, Query, Solver
from ...errors import GuestError, SpecError
from ...numerics.array import cast_like, upcast
from ...numerics.grid import Grid
from ...numerics.parametrize import PREDICTION_TYPES
from ...numerics.schedule import Schedule
from .hosted_scheduler import HostSchedule
from .noise_levels import TIMESTEP_TOLERANCE, NoiseLevel, scale_array
from .scheduler_base import (
    DEFAULT_BASE,
    FLOW_BASE,
    SCHEDULER_GRID,
    Numbers,
    SchedulerParts,
    check_base,
    find_base,
    make_base,
    make_parts,
    model_level,
    place_steps,
    settings_of,
)

DEFAULT_SOLVER = "adams(of='x0')"
OWN_SETTINGS = frozenset({"solver", "grid"})
MAX_RATIO = 4096.0  # sigma / alpha of pure noise in `sigmas`, as the schedulers of diffusers have it
NEUTRAL_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {  # of `step`, at which they ask for nothing
    "eta": (0.0, None),
    "use_clipped_model_output": (None, False),
    "variance_noise": (None,),
    "s_churn": (0.0,),
    "per_token_timesteps": (None,),
}
IGNORED_ARGUMENTS = frozenset({"s_noise", "s_tmin", "s_tmax"})  # of `step`, about noise that is not drawn


@dataclass
class SchedulerStepOutput(SchedulerOutput):  # type: ignore[misc]  # diffusers has no types
    """What a step gives: the sample after it, and the clean estimate that it was made with."""

    pred_original_sample: torch.Tensor | None = None


class Scheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """A solver of Skipstone as a scheduler of diffusers: one network call a step, deterministic, in any pipeline.

        pipe.scheduler = skipstone.Scheduler.from_config(pipe.scheduler.config)

    It keeps the noise levels, prediction type, clipping, spacing of timesteps and scale of the sample that the
    configuration asks for, and replaces only how a step is computed. All samples of a batch have common times;
    each is stepped by itself. Past estimates belong to a run: `set_timesteps` begins a new one.

    Args:
        solver: Spec of a deterministic solver of one call a step, such as "adams(of='x0')", "adams", "unipc", "dpmpp".
        grid: "scheduler" for the spacing that the configuration asks for, or the spec of a grid: "trailing", "karras",
            "asinh". Where a pipeline brings sigmas that are not even, those are taken.
        base: The scheduler of diffusers whose noise levels, spacing and scale it has; "" to find it by the settings.
        settings: Those of the base, which has its defaults for the others.

    Raises:
        SpecError: a solver or a grid that cannot be understood.
        GuestError: a solver that makes several calls a step or draws noise, or a base that cannot be had.
    """

    _compatibles = [*(kind.name for kind in KarrasDiffusionSchedulers), FLOW_BASE]  # noqa: RUF012  # diffusers reads it
    order = 1

    def __init__(
        self, solver: Solver | str = DEFAULT_SOLVER, grid: Grid | str = SCHEDULER_GRID, base: str = "", **settings: Any
    ) -> None:
        base = base or (FLOW_BASE if "shift" in settings else DEFAULT_BASE)
        made = make_base(base, settings)
        if unknown := sorted(settings.keys() - settings_of(base) - {"prediction_type"}):
            raise SpecError(f"{', '.join(unknown)}: no setting of {base}, whose noise levels and times this one has.")
        flow = {"prediction_type": "flow_prediction"} if base == FLOW_BASE else {}
        defaults = {k: v for k, v in made.config.items() if not k.startswith("_")}
        self.register_to_config(
            **{**defaults, **settings, **flow},
            solver=solver if isinstance(solver, str) else registry.spell(solver),
            grid=grid if isinstance(grid, str) else registry.spell(grid),
            base=base,
            _class_name=type(self).__name__,
        )
        self._parts: SchedulerParts | None = None
        self._parts_config: Any = None
        self.num_inference_steps: int | None = None
        self.levels: tuple[NoiseLevel, ...] = ()  # of each call, and where the last one ends
        self.timesteps: torch.Tensor = self.parts.base.timesteps
        self.sigmas: torch.Tensor = self._sigmas_of([model_level(self.parts, k) for k in self.timesteps.tolist()])
        self._schedule: Schedule | None = None  # at the times of this run
        self._past: list[list[Node]] = []  # estimates of each sample, oldest first
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """Make one from the configuration of any scheduler of a table of betas or of flow matching, or of its own.

        Args:
            config: `pipe.scheduler.config`, or what was read from a file of it.
            return_unused_kwargs: Also return the `changes` that are no settings.
            changes: Settings that take the place of those in `config`.

        Raises:
            GuestError: the configuration of a scheduler whose noise levels cannot be taken over.
            SpecError: no configuration; a change that is no setting.
        """
        if not isinstance(config, Mapping):
            raise SpecError(
                f"Expected a configuration, such as pipe.scheduler.config, got {type(config).__name__}. To read one "
                f"from a folder: {cls.__name__}.from_pretrained(folder)."
            )
        settings = {k: v for k, v in config.items() if not k.startswith("_") and k != "base"}
        base = changes.pop("base", "") or (config.get("base") if config.get("_class_name") == cls.__name__ else "")
        base = check_base(base or find_base(config))
        known = settings.keys() | settings_of(base) | OWN_SETTINGS
        unused = {k: changes.pop(k) for k in list(changes) if k not in known}
        if unused and not return_unused_kwargs:
            raise SpecError(f"{', '.join(unused)} is no setting of it; expected one of {', '.join(sorted(known))}.")
        settings |= changes
        taken = {k: v for k, v in settings.items() if k in settings_of(base) | OWN_SETTINGS | {"prediction_type"}}
        made = cls(base=base, **taken)
        made.register_to_config(**{k: v for k, v in settings.items() if k not in taken})  # for others to read
        return (made, unused) if return_unused_kwargs else made

    # -- what the configuration stands for -----------------------------------------------------------

    @property
    def parts(self) -> SchedulerParts:
        """The base, solver and grid of the configuration as it is now: pipelines change it after it was made."""
        if self._parts is None or self._parts_config is not self._internal_dict:
            self._parts, self._parts_config = make_parts(self.config), self._internal_dict
        return self._parts

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """The table of alpha-bars; AttributeError for a flow that has none."""
        return self.parts.base.alphas_cumprod  # type: ignore[no-any-return]

    @property
    def betas(self) -> torch.Tensor:
        """The table of betas; AttributeError for a flow that has none."""
        return self.parts.base.betas  # type: ignore[no-any-return]

    @property
    def final_alpha_cumprod(self) -> torch.Tensor:
        """Alpha-bar at the end, of those bases that set it; AttributeError for others."""
        return self.parts.base.final_alpha_cumprod  # type: ignore[no-any-return]

    @property
    def init_noise_sigma(self) -> float:
        """Scale of the noise that a run starts from: 1, or as Euler's scheduler has it for samples x0 + s noise."""
        if not self.parts.keeps_unit_signal:
            return 1.0
        largest = float(self.sigmas.max())
        return largest if self.config.timestep_spacing in ("linspace", "trailing") else (largest**2 + 1.0) ** 0.5

    @property
    def step_index(self) -> int | None:
        """Number of the next call; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Number of the call that a run begins with, where a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say with which call the run begins: later than the first one in image to image."""
        self._begin_index = begin_index

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    # -- a run ---------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Numbers | None = None,
        timesteps: Numbers | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run: place its calls, and forget the run before.

        Args:
            num_inference_steps: Number of calls, >= 1; None where a list says it.
            device: Where `timesteps` are to be.
            sigmas: Of a flow: sigma of each call, which is shifted as the configuration says. Of a table: sigma / alpha
                of each call and of the end.
            timesteps: Of each call, falling; beside `sigmas` of a flow, what the network is told there.
            mu: Log of the shift, of flows with use_dynamic_shifting.

        Raises:
            GuestError: neither a number nor a list; a list that this model has no use for.
            SpecError: more steps than the grid can place.
        """
        placed = place_steps(self.parts, num_inference_steps, sigmas, timesteps, mu)
        self.levels, self.timesteps = placed.levels, placed.timesteps.to(device)
        self.sigmas = self._sigmas_of(self.levels)
        self._schedule = HostSchedule({level.t: level for level in self.levels}, self.parts.schedule)
        self.num_inference_steps = len(self.timesteps)
        self._step_index = self._begin_index = None
        self._past = []

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as the network wants it: of variance 1 where it is kept as x0 + s noise, else as it is."""
        if not self.parts.keeps_unit_signal:
            return sample
        return scale_array(sample, self.levels[self._start(timestep)].scale)  # type: ignore[no-any-return]

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        return_dict: bool = True,
        eta: float = 0.0,
        generator: Any = None,
        **ignored: Any,
    ) -> SchedulerStepOutput | tuple[torch.Tensor, torch.Tensor]:
        """Take a step from `sample`, in float32 inside; the result has the dtype of `sample`.

        Args:
            model_output: What the network says of the sample, (batch, channels, ...); a learned variance behind the
                channels of the sample is left out.
            timestep: One of `timesteps`; only the first one of a run is looked at.
            sample: (batch, channels, ...).
            return_dict: Return an object with `prev_sample` and `pred_original_sample`, or a tuple of these.
            eta: Share of noise; only 0, as no noise is drawn.
            generator: Not used.
            ignored: Arguments of other schedulers, at values that ask for nothing.

        Raises:
            GuestError: a step beyond the last one; a batch of another shape than in the step before; an argument that
                asks for noise.
        """
        _check_arguments({"eta": eta, **ignored})
        index = self._start(timestep)
        if index + 1 >= len(self.levels):
            raise GuestError(
                f"Expected at most {len(self.levels) - 1} steps, got one more: set_timesteps begins another run."
            )
        here, after = self.levels[index : index + 2]
        x = scale_array(upcast(sample), here.scale)
        output = _without_variance(upcast(model_output), sample)
        moved, clean = self._step_rows(x, output, here, after)
        self._step_index = index + 1
        if self._step_index + 1 == len(self.levels):
            self._past = []
        previous = cast_like(scale_array(moved, 1.0 / after.scale), sample)
        clean = cast_like(clean, sample)
        return SchedulerStepOutput(previous, clean) if return_dict else (previous, clean)

    def _step_rows(
        self, x: torch.Tensor, output: torch.Tensor, here: NoiseLevel, after: NoiseLevel
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every sample stepped by itself, and the clean estimates."""
        if here.sigma == 0.0:  # the data already
            return x, x
        if not self._past:
            self._past = [[] for _ in x]
        shapes = {past[-1].x.shape for past in self._past if past}
        if len(self._past) != len(x) or shapes - {x.shape[1:]}:
            raise GuestError(
                f"Expected {len(self._past)} samples of one shape, as in the step before, got {tuple(x.shape)}. "
                f"set_timesteps begins another run."
            )
        x0 = self.parts.converter.x0(output, x, here)
        nodes = [Node(here.t, x[s], self._estimate(x0[s], output[s])) for s in range(len(x))]
        moved = [self._step_row(node, after.t, past) for node, past in zip(nodes, self._past, strict=True)]
        self._past = [[*past, node][-HISTORY_LENGTH:] for node, past in zip(nodes, self._past, strict=True)]
        return torch.stack(moved), torch.stack([node.estimate.x0 for node in nodes])

    def _estimate(self, x0: torch.Tensor, output: torch.Tensor) -> Estimate:
        """The estimate of one sample; where it is clipped, the network's output no longer says it."""
        clipped, kind = self.parts.clip(x0[None])[0], self.parts.converter.prediction
        changed = clipped.data_ptr() != x0.data_ptr()
        if changed or kind not in PREDICTION_TYPES:
            return Estimate(clipped)
        return Estimate(x0, output=output, prediction=kind)  # type: ignore[arg-type]  # one of PREDICTION_TYPES

    def _step_row(self, node: Node, t_next: float, past: list[Node]) -> torch.Tensor:
        """Where the solver takes one sample."""
        assert self._schedule is not None
        advance = self.parts.solver.step(node.x, node.t, t_next, self._schedule, past)
        query = next(advance)
        assert isinstance(query, Query)
        try:
            advance.send(node.estimate)
        except StopIteration as end:
            return end.value.x  # type: ignore[no-any-return]
        raise GuestError(f"solver={self.config.solver!r} asked for a second estimate within a step; expected one.")

    def _start(self, timestep: Any) -> int:
        """Number of the call that is about to be made."""
        if not self.levels:
            raise GuestError("No steps are placed yet: call set_timesteps(num_inference_steps) first.")
        if self._step_index is None:
            begin = self._begin_index
            self._step_index = self.index_for_timestep(timestep) if begin is None else begin
        return self._step_index

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        """Number of the call at a timestep; of several at the same one, the first. Raises GuestError for none."""
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        away = [abs(float(k) - float(timestep)) for k in known.tolist()]
        nearest = min(away, default=float("inf"))
        if nearest > TIMESTEP_TOLERANCE:
            raise GuestError(f"Expected one of the timesteps {known.tolist()}, got {float(timestep):g}.")
        return away.index(nearest)

    # -- noise put on pictures -----------------------------------------------------------------------

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """Put noise on clean samples, as much as there is at these timesteps.

        Args:
            original_samples: (batch, ...).
            noise: Standard normal, of the same shape.
            timesteps: One for each sample, or one for all: of this run, or any other of the model.
        """
        alpha, sigma, scale = self._levels_like(timesteps, original_samples)
        clean, normal = upcast(original_samples), upcast(noise)
        return cast_like((alpha * clean + sigma * normal) / scale, original_samples)  # type: ignore[no-any-return]

    def scale_noise(self, sample: torch.Tensor, timestep: Any, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise` by the name and the order of arguments that flow schedulers have."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: Any) -> torch.Tensor:
        """The v prediction, alpha noise - sigma x0, of clean samples and their noise; for training."""
        alpha, sigma, _ = self._levels_like(timesteps, sample)
        return cast_like(alpha * upcast(noise) - sigma * upcast(sample), sample)  # type: ignore[no-any-return]

    def _levels_like(self, timesteps: Any, like: torch.Tensor) -> torch.Tensor:
        """Alpha, sigma and scale at timesteps, shaped to multiply a batch."""
        values = torch.as_tensor(timesteps).flatten().tolist()
        found = [self._level_at(float(k)) for k in values]
        table = torch.tensor([[p.alpha, p.sigma, p.scale] for p in found], dtype=torch.float64)
        return table.T.to(upcast(like[:0]).dtype).to(like.device).reshape(3, -1, *[1] * (like.ndim - 1))

    def _level_at(self, timestep: float) -> NoiseLevel:
        """The noise level at a timestep: of this run where it has it, else of the model."""
        told = self.timesteps.tolist() if self.levels else []
        found = [k for k, own in enumerate(told) if abs(own - timestep) <= 1e-4 * max(1.0, abs(own))]
        if not found:
            return model_level(self.parts, timestep)
        at = self._begin_index if self._step_index is None else self._step_index
        return self.levels[at if at in found else found[0]]

    def _ratio(self, level: NoiseLevel) -> float:
        """What `sigmas` says of a level: sigma of a flow, else sigma / alpha."""
        if self.parts.is_flow:
            return level.sigma
        return level.sigma / level.alpha if level.sigma < MAX_RATIO * level.alpha else MAX_RATIO

    def _sigmas_of(self, levels: Sequence[NoiseLevel]) -> torch.Tensor:
        return torch.tensor([self._ratio(level) for level in levels], dtype=torch.float32)


def _check_arguments(given: Mapping[str, Any]) -> None:
    """Raise GuestError for an argument of `step` that asks for what a deterministic solver does not do."""
    for name, value in given.items():
        neutral = NEUTRAL_ARGUMENTS.get(name, ())
        if name not in IGNORED_ARGUMENTS and not any(value is n or value == n for n in neutral):
            raise GuestError(
                f"Scheduler.step got {name}={value!r}, which asks for noise or for steps of another scheduler; leave "
                f"it out, or use the pipeline's own scheduler."
            )


def _without_variance(output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """The network's output without the learned variance behind it."""
    for axis, size in enumerate(sample.shape):
        output = output.narrow(axis, 0, size) if output.shape[axis] != size else output
    return output
