"""The schedulers of diffusers in the engine's terms: one small declaration for each family.

`trajectory` says what a scheduler is about to do, call by call. Another package declares its own scheduler by
`register_scheduler(SchedulerSpec(...))` in a module named by an entry point of the group `skipstone`; `noise_levels.py`
has the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ... import registry
from ...engine.contracts import PredictionType
from ...errors import GuestError
from ...numerics.array import cast_like, upcast
from . import noise_levels
from .method_swap import original_of
from .noise_levels import CLEAN_LEVEL, NoiseLevel, NonstandardPrediction, PredictionConverter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "UNSUPPORTED",
    "NoiseLevel",
    "SchedulerSpec",
    "Trajectory",
    "check_step_arguments",
    "check_supported",
    "find_scheduler_spec",
    "list_scheduler_specs",
    "register_scheduler",
    "trajectory",
]


# Arguments of `step` that leave the meaning of the network's output as it is: noise, and how the step is integrated.
STEP_ARGUMENTS = frozenset(
    {
        "generator",
        "return_dict",
        "eta",
        "use_clipped_model_output",
        "variance_noise",
        "s_noise",
        "s_tmin",
        "s_tmax",
        "order",
        "prev_timestep",
        "timestep_back",
        "old_pred_original_sample",
    }
)


def always(scheduler: Any) -> bool:
    return True


@dataclass(frozen=True)
class SchedulerSpec:
    """What has to be known about the schedulers of one family. Every function is given the scheduler first.

    Args:
        name: What to call the family.
        schedulers: Names of their classes; a subclass is recognised too.
        levels: (scheduler, index of the next call) -> one noise level for each call from there to the end.
        converter: What the network's output means.
        stages: (scheduler, calls to come) -> calls of each step.
        clean: (scheduler, x0) -> the clean estimate as the scheduler clips it.
        keeps_noise: Whether `step` goes on with the noise of the estimate before it was clipped, unless it is told
            `use_clipped_model_output`.
        stochastic: Whether `step` draws noise unless it is told otherwise.
        unsupported_reason: What in its settings cannot be adapted, and what would work; or nothing.
        step_arguments: Arguments of `step` that may differ from their defaults; all others are refused.
        package: Where the classes are from, if a class of the same name elsewhere is not meant; "" for anywhere.
    """

    name: str
    schedulers: tuple[str, ...]
    levels: Callable[[Any, int], list[NoiseLevel]]
    converter: Callable[[Any], PredictionConverter] = noise_levels.converter_from_config
    stages: Callable[[Any, int], tuple[int, ...]] = noise_levels.one_call_stages
    clean: Callable[[Any, Any], Any] = lambda scheduler, x0: x0
    keeps_noise: bool = False
    stochastic: Callable[[Any], bool] = lambda scheduler: False
    unsupported_reason: Callable[[Any], str] = lambda scheduler: ""
    step_arguments: frozenset[str] = STEP_ARGUMENTS
    package: str = ""


@dataclass(frozen=True)
class Trajectory:
    """What a scheduler is about to do, call by call, in the engine's terms.

    Args:
        calls: One noise level for each call of `step` to come, as the sample is at that call.
        end: Where the last call leaves the sample.
        stages: Calls of each step; they add up to `len(calls)`.
        converter: What the network's output means.
        clean: The scheduler's own clipping of a clean estimate.
        stochastic: Whether `step` draws noise unless it is told otherwise.
        reaches_end: Whether the last call is the scheduler's last.
    """

    calls: tuple[NoiseLevel, ...]
    end: NoiseLevel
    stages: tuple[int, ...]
    converter: PredictionConverter
    clean: Callable[[Any], Any]
    stochastic: bool
    reaches_end: bool

    @property
    def prediction(self) -> PredictionType | NonstandardPrediction:
        """What the network predicts: one of the engine's kinds, or "edm" or "reversed flow", which are none."""
        return self.converter.prediction

    def x0(self, k: int, output: Tensor, x: Tensor) -> Tensor:
        """The clean estimate that `output` means at call k for the sample `x` of the pipeline, clipped as it clips.

        A learned variance behind the first channels of `output` is left out.
        """
        level = self.calls[k]
        if output.shape != x.shape:
            for axis, size in enumerate(x.shape):
                output = output.narrow(axis, 0, size)
        estimate = self.converter.x0(upcast(output), noise_levels.scale_array(upcast(x), level.scale), level)
        return cast_like(self.clean(estimate), x)  # type: ignore[no-any-return]

    def output(self, k: int, x0: Tensor, x: Tensor) -> Tensor:
        """The network output that means `x0` at call k for the pipeline's sample `x`: as many channels as it has."""
        level = self.calls[k]
        return cast_like(self.converter.output(upcast(x0), noise_levels.scale_array(upcast(x), level.scale), level), x)  # type: ignore[no-any-return]


def trajectory(scheduler: Any, timestep: Any, count: int | None = None) -> Trajectory:
    """What a scheduler is about to do, asked within its first `step` of a run and before the real one.

    Args:
        scheduler: With its timesteps set.
        timestep: What `step` was given.
        count: How many calls the pipeline is going to make; None is all to the scheduler's end.

    Raises:
        GuestError: a scheduler that cannot be adapted, or a timestep that is none of its own.
    """
    check_supported(scheduler)
    spec = find_scheduler_spec(scheduler)
    levels = spec.levels(scheduler, noise_levels.find_next_call(scheduler, timestep, count))
    stages = spec.stages(scheduler, len(levels))
    levels = noise_levels.make_decreasing(levels, stages, type(scheduler).__name__)
    calls = len(levels) if count is None else min(count, len(levels))
    return Trajectory(
        calls=tuple(levels[:calls]),
        end=CLEAN_LEVEL if calls == len(levels) else levels[calls],
        stages=noise_levels.first_stages(stages, calls),
        converter=spec.converter(scheduler),
        clean=partial(spec.clean, scheduler),
        stochastic=spec.stochastic(scheduler),
        reaches_end=calls == len(levels),
    )


# -- the registry --------------------------------------------------------------------------------

_SPECS: dict[str, SchedulerSpec] = {}
_DECLARE = "register_scheduler(SchedulerSpec({0!r}, ({0!r},), ...)) of skipstone.integrations.diffusers.scheduler_specs"
UNSUPPORTED: dict[str, str] = {}


def register_scheduler(spec: SchedulerSpec) -> None:
    """Declare a family; a later declaration of a scheduler takes the place of an earlier one."""
    for name in spec.schedulers:
        _SPECS[name] = spec
        UNSUPPORTED.pop(name, None)


def list_scheduler_specs() -> tuple[SchedulerSpec, ...]:
    """Every declared family."""
    registry.load_plugins()
    return tuple(dict.fromkeys(_SPECS.values()))


def find_scheduler_spec(scheduler: Any) -> SchedulerSpec:
    """The family of a scheduler, by the names of its class and of those above it.

    Raises:
        GuestError: unknown, or refused; the message says why and what would work.
    """
    registry.load_plugins()
    lineage = [kind.__name__ for kind in type(scheduler).__mro__]
    for name in lineage:
        if name in UNSUPPORTED:
            raise GuestError(f"{lineage[0]} cannot be adapted: {UNSUPPORTED[name]}")
        if name in _SPECS:
            _check_own_step(type(scheduler), _SPECS[name])
            return _SPECS[name]
    raise GuestError(
        f"{lineage[0]} is not a scheduler that is known here. Use a similar one of diffusers, pipe.scheduler = "
        f"DDIMScheduler.from_config(pipe.scheduler.config), or declare it: {_DECLARE.format(lineage[0])}."
    )


def _check_own_step(kind: type, spec: SchedulerSpec) -> None:
    """Raise GuestError where a class has a `step` of its own, of which the declaration says nothing."""
    import diffusers

    kind = original_of(kind)
    owner = next((k for k in kind.__mro__ if "step" in vars(k)), kind)
    elsewhere = bool(spec.package) and owner.__module__.partition(".")[0] != spec.package
    if elsewhere or owner.__name__ not in spec.schedulers or getattr(diffusers, owner.__name__, owner) is not owner:
        raise GuestError(
            f"{kind.__name__} has a step of its own ({owner.__module__}), and nobody has declared what it does. Use "
            f"the scheduler of diffusers, or declare it under a name of its own: {_DECLARE.format(owner.__name__)}."
        )


def check_step_arguments(scheduler: Any, given: Mapping[str, Any]) -> None:
    """Raise GuestError for an argument of `step` that may change what the network's output means.

    Args:
        scheduler: Whose step is called.
        given: Name -> value, of the arguments that differ from their defaults.
    """
    if unknown := sorted(given.keys() - find_scheduler_spec(scheduler).step_arguments):
        raise GuestError(
            f"The pipeline calls {type(scheduler).__name__}.step with {', '.join(unknown)}, which may change what "
            f"the network's output means, and Skipstone does not know how. This pipeline cannot be adapted as it is "
            f"called; use fewer steps."
        )


def keeps_unclipped_noise(scheduler: Any, given: Mapping[str, Any]) -> bool:
    """Whether a scheduler clips clean estimates, and steps with the noise that they had before.

    Such a run is no differential equation: each step moves the sample, so that pictures of 50 and of 200 steps differ.

    Args:
        scheduler: Whose step is called.
        given: Arguments of `step`, by name.
    """
    clips = bool(scheduler.config.get("clip_sample") or scheduler.config.get("thresholding"))
    return clips and find_scheduler_spec(scheduler).keeps_noise and not given.get("use_clipped_model_output")


def check_supported(scheduler: Any) -> None:
    """Raise GuestError where a scheduler, or a setting of it, cannot be adapted."""
    spec = find_scheduler_spec(scheduler)
    if flaw := spec.unsupported_reason(scheduler):
        raise GuestError(f"{type(scheduler).__name__} cannot be adapted as it is set: {flaw}")
    spec.converter(scheduler)


# -- what differs from one setting to another ------------------------------------------------------


def _is_sde(scheduler: Any) -> bool:
    return str(scheduler.config.get("algorithm_type")).startswith("sde")


def _multistep_flaw(scheduler: Any) -> str:
    config = scheduler.config
    kind, flow = config.prediction_type, config.get("use_flow_sigmas", False)
    if kind == "flow_prediction" and not flow:
        return "prediction_type='flow_prediction' without use_flow_sigmas, which it needs. Set use_flow_sigmas=True."
    if kind == "v_prediction" and flow:
        return "a v prediction on a flow's sigmas means no clean estimate. Set prediction_type='flow_prediction'."
    nan = {"solver_type": ("bh1", "bh2"), "predict_x0": (False, True)}  # diffusers' own doing
    for setting, (bad, good) in nan.items():
        if config.get("final_sigmas_type") == "zero" and config.get(setting) == bad:
            return f"{setting}={bad!r} ends in NaN at a last sigma of 0. Set {setting}={good!r}."
    return ""


def _scale_factors_flaw(scheduler: Any) -> str:
    factors = getattr(scheduler, "_scale_factors", None)
    return "its samples grow as it goes (scale_factors). Set scale_factors=None." if factors else ""


# -- the schedulers of diffusers -------------------------------------------------------------------

for _spec in (
    SchedulerSpec(
        "table, deterministic",
        ("DDIMScheduler", "DDIMParallelScheduler"),
        noise_levels.table_levels,
        clean=noise_levels.apply_clipping,
        keeps_noise=True,
    ),
    SchedulerSpec("table, as it is", ("CogVideoXDDIMScheduler",), noise_levels.table_levels),
    SchedulerSpec(
        "table, ancestral",
        ("DDPMScheduler", "DDPMParallelScheduler", "LCMScheduler", "UnCLIPScheduler"),
        noise_levels.table_levels,
        clean=noise_levels.apply_clipping,
        stochastic=always,
    ),
    SchedulerSpec(
        "table, noisy", ("TCDScheduler", "CogVideoXDPMScheduler"), noise_levels.table_levels, stochastic=always
    ),
    SchedulerSpec("PNDM", ("PNDMScheduler",), noise_levels.table_levels, stages=noise_levels.pndm_stages),
    SchedulerSpec(
        "multistep",
        (
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "DEISMultistepScheduler",
            "UniPCMultistepScheduler",
        ),
        noise_levels.variance_preserving_levels,
        clean=noise_levels.apply_threshold,
        stochastic=_is_sde,
        unsupported_reason=_multistep_flaw,
    ),
    SchedulerSpec(
        "SA-Solver",
        ("SASolverScheduler",),
        noise_levels.variance_preserving_levels,
        clean=noise_levels.apply_threshold,
        stochastic=always,
        unsupported_reason=_multistep_flaw,
    ),
    SchedulerSpec("sigmas", ("EulerDiscreteScheduler", "LMSDiscreteScheduler"), noise_levels.variance_exploding_levels),
    SchedulerSpec(
        "sigmas, ancestral",
        ("EulerAncestralDiscreteScheduler",),
        noise_levels.variance_exploding_levels,
        stochastic=always,
    ),
    SchedulerSpec(
        "Heun",
        ("HeunDiscreteScheduler",),
        noise_levels.variance_exploding_levels,
        stages=noise_levels.two_call_stages,
        clean=noise_levels.apply_clipping,
    ),
    SchedulerSpec(
        "KDPM2", ("KDPM2DiscreteScheduler",), noise_levels.interpolated_levels, stages=noise_levels.two_call_stages
    ),
    SchedulerSpec(
        "KDPM2, ancestral",
        ("KDPM2AncestralDiscreteScheduler",),
        partial(noise_levels.interpolated_levels, earlier=1),
        stages=noise_levels.two_call_stages,
        stochastic=always,
    ),
    SchedulerSpec(
        "DPM-Solver SDE",
        ("DPMSolverSDEScheduler",),
        noise_levels.midpoint_levels,
        stages=noise_levels.two_call_stages,
        stochastic=always,
    ),
    SchedulerSpec("EDM", ("EDMEulerScheduler",), noise_levels.variance_exploding_levels, noise_levels.edm_converter),
    SchedulerSpec(
        "EDM, multistep",
        ("EDMDPMSolverMultistepScheduler",),
        noise_levels.variance_exploding_levels,
        noise_levels.edm_converter,
        clean=noise_levels.apply_threshold,
        stochastic=_is_sde,
    ),
    SchedulerSpec(
        "EDM, SDE",
        ("CosineDPMSolverMultistepScheduler",),
        noise_levels.variance_exploding_levels,
        noise_levels.edm_converter,
        stochastic=always,
    ),
    SchedulerSpec(
        "flow",
        ("FlowMatchEulerDiscreteScheduler",),
        noise_levels.flow_levels,
        noise_levels.flow_converter,
        stochastic=lambda s: bool(s.config.stochastic_sampling),
    ),
    SchedulerSpec(
        "flow, Heun",
        ("FlowMatchHeunDiscreteScheduler",),
        noise_levels.flow_levels,
        noise_levels.flow_converter,
        stages=noise_levels.two_call_stages,
    ),
    SchedulerSpec(
        "flow, LCM",
        ("FlowMatchLCMScheduler",),
        noise_levels.flow_levels,
        noise_levels.flow_converter,
        stochastic=always,
        unsupported_reason=_scale_factors_flaw,
    ),
    SchedulerSpec(
        "flow, ancestral",
        ("LTXEulerAncestralRFScheduler",),
        noise_levels.flow_levels,
        noise_levels.flow_converter,
        stochastic=lambda s: s.config.eta > 0 and s.config.s_noise > 0,
    ),
    SchedulerSpec(
        "flow, reversed", ("MiniMaxH3Scheduler",), noise_levels.flow_levels, lambda s: noise_levels.REVERSED_FLOW
    ),
    SchedulerSpec(
        "Wuerstchen",
        ("DDPMWuerstchenScheduler",),
        noise_levels.cosine_levels,
        lambda s: noise_levels.CONVERTERS["epsilon"],
        stochastic=always,
    ),
    SchedulerSpec(
        "Skipstone's own",
        ("Scheduler",),
        lambda s, begin: list(s.levels[begin:-1]),
        lambda s: s.parts.converter,
        clean=lambda s, x0: s.parts.clip(x0),
        package="skipstone",
    ),
    SchedulerSpec(
        "IPNDM", ("IPNDMScheduler",), noise_levels.angle_levels, lambda s: noise_levels.CONVERTERS["v_prediction"]
    ),
):
    register_scheduler(_spec)

_REASONS = {
    "it steps discrete tokens, which have no clean estimate to freeze or to forecast. There is no substitute.": (
        "Amused VQDiffusion DiscreteDDIM BlockRefinement EntropyBound"
    ),
    "it walks from data to noise. Invert with the bare pipeline, and adapt the sampling that follows.": (
        "DDIMInverse DPMSolverMultistepInverse"
    ),
    "its model is distilled to one to four calls, so nothing is left to save. Adapt the model it was distilled from.": (
        "CMStochasticIterative SCM Piflow FlowMapEulerDiscrete"
    ),
    "it changes the resolution of the sample as it goes. Adapt a model that keeps to one.": "Helios HeliosDMD",
    "it decodes latents in two calls, inside a VAE. Adapt the pipeline around it.": "ConsistencyDecoder",
    "it jumps back in time again and again. Use an inpainting pipeline with DDIMScheduler.": "RePaint",
    "its steps are those of a flow of proteins, with a mask. There is no substitute.": "RFD4Proteina",
    "its step takes two noise levels and no timestep. Use EDMEulerScheduler.": "KarrasVe",
    "it moves the sample by step_pred and step_correct. Use EulerDiscreteScheduler.": "ScoreSdeVe ScoreSdeVp",
}
UNSUPPORTED.update({f"{name}Scheduler": why for why, names in _REASONS.items() for name in names.split()})
