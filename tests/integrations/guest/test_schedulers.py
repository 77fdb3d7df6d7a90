"""Every scheduler of diffusers against its own arithmetic: where it is, what an output means, where it lands."""

from __future__ import annotations

import copy
import inspect
import itertools
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import diffusers.schedulers as library
import pytest
import torch
from diffusers.utils import is_torchsde_available

from skipstone.errors import GuestError
from skipstone.integrations.diffusers import scheduler_specs as schedulers
from skipstone.integrations.diffusers.noise_levels import flow_converter, flow_levels
from skipstone.integrations.diffusers.scheduler_specs import (
    UNSUPPORTED,
    SchedulerSpec,
    Trajectory,
    check_supported,
    find_scheduler_spec,
    list_scheduler_specs,
    register_scheduler,
    trajectory,
)

SHAPE = (2, 3, 4, 4)
EPS, V, X0, FLOW = "epsilon", "v_prediction", "sample", "flow_prediction"


MADE: dict = {}
AHEAD: dict[str, Trajectory] = {}


@dataclass(frozen=True)
class Case:
    """A scheduler, its settings and what `set_timesteps` is given."""

    name: str
    settings: dict = field(default_factory=dict)
    times: dict = field(default_factory=lambda: {"num_inference_steps": 8})

    def __str__(self) -> str:
        return ",".join([self.name.removesuffix("Scheduler"), *(f"{k}={v}" for k, v in self.settings.items())])

    def make(self):
        """A fresh scheduler with its timesteps set: a copy, since some take long to make."""
        key = str((self.name, self.settings, self.times))
        if key not in MADE:
            MADE[key] = getattr(library, self.name)(**self.settings)
            MADE[key].set_timesteps(**self.times)
        return copy.deepcopy(MADE[key])

    def ahead(self) -> Trajectory:
        """What it is about to do."""
        key = str((self.name, self.settings, self.times))
        if key not in AHEAD:
            scheduler = self.make()
            AHEAD[key] = trajectory(scheduler, clock_of(scheduler, 0))
        return AHEAD[key]


def family(names: str, predictions: tuple[str, ...], *variants: dict, **common) -> list[Case]:
    """Each scheduler with each prediction, and with the last of them each of the variants."""
    made = []
    for name in names.split():
        kinds = [{**common, "prediction_type": p} for p in predictions] if predictions else [common]
        made += [Case(f"{name}Scheduler", settings) for settings in kinds]
        made += [Case(f"{name}Scheduler", {**kinds[-1], **v}) for v in variants]
    return made


SPACINGS = [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")]
SIGMAS = [{f"use_{k}_sigmas": True} for k in ("karras", "exponential", "beta")]
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "beta_schedule": "scaled_linear"}
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PLAIN = {"clip_sample": False}
ON_FLOW = {"use_flow_sigmas": True, "prediction_type": FLOW, "flow_shift": 3.0}
MU = {"num_inference_steps": 8, "mu": 0.8}

TABLE = [
    *family("DDIM DDIMParallel", (EPS, X0, V), *SPACINGS, {"steps_offset": 1}, ZERO_SNR, **PLAIN),
    *family("DDPM DDPMParallel", (EPS, X0, V), *SPACINGS, ZERO_SNR, **PLAIN),
    *family("CogVideoXDDIM CogVideoXDPM", (EPS, X0, V), {"snr_shift_scale": 1.0}),
    *family("LCM TCD", (EPS, X0, V)),
    *family("UnCLIP", (EPS, X0), **PLAIN),
]
CLIPPED = [
    *family(
        "DDIM DDIMParallel DDPM DDPMParallel LCM UnCLIP HeunDiscrete", (EPS,), clip_sample=True, clip_sample_range=0.7
    ),
    *family("DDIM DDPM LCM", (EPS,), thresholding=True, clip_sample=True, sample_max_value=1.5),
    *family(
        "DPMSolverMultistep DPMSolverSinglestep UniPCMultistep SASolver",
        (EPS,),
        thresholding=True,
        sample_max_value=1.5,
    ),
]
PNDM = [
    Case("PNDMScheduler", {"prediction_type": p, "skip_prk_steps": s}, {"num_inference_steps": 10})
    for p in (EPS, V)
    for s in (True, False)
]
DATA = [  # solvers that step by the clean estimate
    *family("DPMSolverMultistep", (EPS, X0, V), *SPACINGS, *SIGMAS, {"use_lu_lambdas": True}, ZERO_SNR, ON_FLOW, **SD),
    *family("DPMSolverMultistep", (EPS, V), solver_order=3, final_sigmas_type="sigma_min"),
    *family("DPMSolverMultistep", (EPS,), ON_FLOW, algorithm_type="sde-dpmsolver++"),
    *family("DPMSolverSinglestep", (EPS, X0, V), *SIGMAS, ON_FLOW, {"final_sigmas_type": "sigma_min"}),
    *family(
        "UniPCMultistep", (EPS, X0, V), *SPACINGS, *SIGMAS, ON_FLOW, {**ON_FLOW, **SIGMAS[0]}, {"solver_order": 3}, **SD
    ),
    *family("SASolver", (EPS, X0, V), *SPACINGS, *SIGMAS, ON_FLOW),
    Case("UniPCMultistepScheduler", {**ON_FLOW, "use_dynamic_shifting": True, "shift_terminal": 0.1}, MU),
]
NOISE = [  # solvers that step by the noise
    *family(
        "DPMSolverMultistep DPMSolverSinglestep",
        (EPS, X0, V),
        algorithm_type="dpmsolver",
        final_sigmas_type="sigma_min",
    ),
    *family("DEISMultistep", (EPS, X0, V), *SPACINGS, *SIGMAS, ON_FLOW),
    Case("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
]
OF_SIGMAS = [
    *family("EulerDiscrete", (EPS, X0, V), *SPACINGS, *SIGMAS, ZERO_SNR, {"final_sigmas_type": "sigma_min"}, **SD),
    *family("EulerDiscrete", (V,), timestep_type="continuous", sigma_min=0.03, sigma_max=14.0, use_karras_sigmas=True),
    *family("EulerAncestralDiscrete", (EPS, V), *SPACINGS, ZERO_SNR, {**ZERO_SNR, "beta_schedule": "linear"}),
    *family("LMSDiscrete", (EPS, X0, V), SIGMAS[0]),
    *family("HeunDiscrete", (EPS, X0, V), *SPACINGS, *SIGMAS),
    *family("KDPM2Discrete KDPM2AncestralDiscrete", (EPS, V), *SPACINGS, *SIGMAS),
]
EDM = family("EDMEuler EDMDPMSolverMultistep", (EPS, V), {"sigma_data": 1.0}, {"sigma_schedule": "exponential"})
FLOWS = [
    *family(
        "FlowMatchEulerDiscrete", (), {"shift": 3.0}, *SIGMAS, {"stochastic_sampling": True}, {"invert_sigmas": True}
    ),
    *family("FlowMatchHeunDiscrete FlowMatchLCM", (), {"shift": 3.0}),
    *family("LTXEulerAncestralRF", (), {"eta": 0.0}),
    *family("MiniMaxH3", ()),
    Case("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, MU),
    Case("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift_terminal": 0.1}, MU),
    Case("LTXEulerAncestralRFScheduler", {}, {"sigmas": [1.0, 0.9, 0.6, 0.3, 0.0]}),  # steps once more at sigma 0
]
OTHER = [*family("DDPMWuerstchen", ()), *family("IPNDM", ())]
SDE = [*family("DPMSolverSDE", (EPS, V), *SIGMAS), *family("CosineDPMSolverMultistep", (EPS, V))]
if not is_torchsde_available():
    SDE = []
ALL = [*TABLE, *CLIPPED, *PNDM, *DATA, *NOISE, *OF_SIGMAS, *EDM, *FLOWS, *OTHER, *SDE]
UNCLIPPED = [c for c in ALL if c not in CLIPPED]
DETERMINISTIC = [c for c in UNCLIPPED if not find_scheduler_spec(c.make()).stochastic(c.make())]
# the last noise level is not clean, or older outputs mix in: a constant clean estimate is not reached exactly
INEXACT = ("TCD", "UnCLIP", "PNDM", "SASolver", "DEIS", "LMS", "IPNDM", "Wuerstchen")
every = pytest.mark.parametrize("case", ALL, ids=str)


def draw(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noisy(place, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """A sample of the pipeline at a place."""
    return (place.alpha * x0 + place.sigma * noise) / place.scale


def close(got: torch.Tensor, expected: torch.Tensor, tol: float, *beside: torch.Tensor) -> None:
    """Equal up to `tol` of the largest number that went into it."""
    size = max(float(v.abs().max()) for v in (expected, *beside))
    error = float((got - expected).abs().max())
    assert error <= tol * max(size, 1.0), f"{error:.3g} where {tol * max(size, 1.0):.3g} is allowed"


def clock_of(scheduler, k: int):
    """What a pipeline gives `step` as its timestep."""
    t = scheduler.timesteps[k]
    return t.expand(SHAPE[0]) if type(scheduler).__name__ == "DDPMWuerstchenScheduler" else t


class Steps:
    """Steps a scheduler as its pipeline does."""

    def __init__(self, scheduler) -> None:
        self.scheduler, self.old, self.generator = scheduler, None, torch.Generator().manual_seed(7)
        self.drawn = (
            {"generator": self.generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        )

    def __call__(self, k: int, output: torch.Tensor, x: torch.Tensor):
        """What step k gives: an output object, or the tuple that CogVideoX has."""
        s, t = self.scheduler, clock_of(self.scheduler, k)
        if type(s).__name__ == "CogVideoXDPMScheduler":
            back = s.timesteps[k - 1] if k else None
            made = s.step(output, self.old, t, back, x, generator=self.generator)
            self.old = made[1]
            return made
        if type(s).__name__ == "UnCLIPScheduler":
            ahead = s.timesteps[k + 1] if k + 1 < len(s.timesteps) else None
            return s.step(output, t, x, prev_timestep=ahead, **self.drawn)
        s.is_scale_input_called = True  # only a warning hangs on it
        return s.step(output, t, x, **self.drawn)


def after(made) -> torch.Tensor:
    return made[0] if isinstance(made, tuple) else made.prev_sample


def ready(case: Case) -> tuple[object, Trajectory, torch.Tensor]:
    ahead = case.ahead()
    return case.make(), ahead, noisy(ahead.calls[0], draw(0), draw(1))


# -- 1. where the sample is ------------------------------------------------------------------------

NO_FORMULA = {"LTXEulerAncestralRFScheduler", "IPNDMScheduler"}  # neither add_noise nor scale_noise


def has_formula(case: Case) -> bool:
    """Whether the scheduler can put noise on a picture, to the levels that its own steps have."""
    off_table = any(
        k in case.settings
        for k in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")
    )
    return case.name not in NO_FORMULA and not (case.name == "SASolverScheduler" and off_table)


def put_noise(scheduler, k: int, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The scheduler's own noising to the level of call k."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(k)
    times = clock_of(scheduler, k).expand(len(x0))
    if hasattr(scheduler, "scale_noise"):
        once = "Heun" in type(scheduler).__name__ or "MiniMax" in type(scheduler).__name__
        return scheduler.scale_noise(x0, times[0] if once else times, noise)
    return scheduler.add_noise(x0, noise, times)


@pytest.mark.parametrize("case", [c for c in ALL if has_formula(c)], ids=str)
def test_the_sample_is_where_the_scheduler_puts_it(case: Case) -> None:
    ahead, x0, noise = case.ahead(), draw(0), draw(1)
    firsts = [sum(ahead.stages[:step]) for step in range(len(ahead.stages))]
    reverse = case.settings.get("invert_sigmas")  # scale_noise does not know that its sigmas are upside down
    for k in firsts:
        expected = put_noise(case.make(), k, *((noise, x0) if reverse else (x0, noise)))
        close(noisy(ahead.calls[k], x0, noise), expected, 1e-5)


# -- 2. what an output means -----------------------------------------------------------------------


RETURNED = [
    c
    for c in [*TABLE, *CLIPPED, *OF_SIGMAS, *EDM, *SDE]
    if not any(n in c.name for n in ("LCM", "TCD", "Multistep", "Singlestep", "SASolver"))
]


@pytest.mark.parametrize("case", RETURNED, ids=str)
def test_x0_is_what_the_step_returns(case: Case) -> None:
    scheduler, ahead, x = ready(case)
    step = Steps(scheduler)
    for k in range(len(ahead.calls)):
        output = draw(k + 2)
        mine, made = ahead.x0(k, output, x), step(k, output, x)
        close(mine, made[1] if isinstance(made, tuple) else made.pred_original_sample, 1e-5, x)
        x = after(made)


CONVERTED = [c for c in [*DATA, *NOISE, *EDM, *CLIPPED, *SDE] if "step" in c.name or "SASolver" in c.name]


@pytest.mark.parametrize("case", CONVERTED, ids=str)
def test_x0_is_what_the_solver_converts_to(case: Case) -> None:
    scheduler, ahead, x = ready(case)
    step, by_noise = Steps(scheduler), case in NOISE
    scheduler._init_step_index(scheduler.timesteps[0])
    for k, place in enumerate(ahead.calls):
        output = draw(k + 2)
        expected, mine = scheduler.convert_model_output(output, sample=x), ahead.x0(k, output, x)
        if by_noise:
            mine = (x - place.alpha * mine) / place.sigma
        close(mine, expected, 1e-5 / place.sigma if by_noise else 1e-5, x)
        x = after(step(k, output, x))


@pytest.mark.parametrize("case", family("LCM", (EPS, X0, V)) + family("LCM", (EPS,), clip_sample=True), ids=str)
def test_x0_behind_the_boundary_of_lcm(case: Case) -> None:
    scheduler, ahead, x = ready(case)
    step = Steps(scheduler)
    for k in range(len(ahead.calls)):
        output = draw(k + 2)
        skip, out = scheduler.get_scalings_for_boundary_condition_discrete(scheduler.timesteps[k])
        mine, made = ahead.x0(k, output, x), step(k, output, x)
        close(out * mine + skip * x, made.denoised, 1e-5, x)
        x = made.prev_sample


@pytest.mark.parametrize("case", family("TCD", (EPS, X0, V)), ids=str)
def test_x0_behind_the_noised_sample_of_tcd(case: Case) -> None:
    scheduler, ahead, x = ready(case)
    for k, place in enumerate(ahead.calls):
        output, last = draw(k + 2), k + 1 == len(ahead.calls)
        to = 0 if last else int(0.7 * float(scheduler.timesteps[k + 1]))  # eta = 0.3
        alpha = float(scheduler.alphas_cumprod[to]) ** 0.5
        x0, made = ahead.x0(k, output, x), scheduler.step(output, scheduler.timesteps[k], x, eta=0.3)
        noise = (x - place.alpha * x0) / place.sigma
        close(alpha * x0 + (1 - alpha**2) ** 0.5 * noise, made.pred_noised_sample, 1e-4, x)
        x = made.prev_sample


# DDIM steps by 1000 / 8 timesteps, also where its linspace timesteps are 999 / 7 apart
STRAIGHT = [c for c in DETERMINISTIC if not ("DDIM" in c.name and "linspace" in c.settings.values())]


@pytest.mark.parametrize("case", STRAIGHT, ids=str)
def test_the_first_step_goes_straight_to_the_next_place(case: Case) -> None:
    """Without memory every deterministic solver makes a DDIM step, to where the next call is."""
    scheduler, ahead, x = ready(case)
    begin = 2 if case.name == "IPNDMScheduler" else 0  # its first call sees noise alone
    if begin:
        scheduler.set_begin_index(begin)
        ahead = trajectory(scheduler, scheduler.timesteps[begin])
    here, there = ahead.calls[:2]
    output = draw(2)
    x0 = ahead.x0(0, output, x)
    noise = (here.scale * x - here.alpha * x0) / here.sigma
    close(after(Steps(scheduler)(begin, output, x)), noisy(there, x0, noise), 1e-4, x, output)


# -- 3. there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("case", UNCLIPPED, ids=str)
def test_output_and_x0_invert_each_other(case: Case) -> None:
    ahead, x0, output = case.ahead(), draw(0), draw(2)
    for k, place in enumerate(ahead.calls):
        x = noisy(place, x0, draw(1))
        if place.alpha > 1e-3 or ahead.prediction != "eps":  # an eps at pure noise says nothing about x0
            close(ahead.x0(k, ahead.output(k, x0, x), x), x0, 1e-4 / max(place.sigma, 1e-6), x / place.alpha)
        if place.sigma > 1e-3:
            close(ahead.output(k, ahead.x0(k, output, x), x), output, 1e-4)


@pytest.mark.parametrize(
    "case", family("DDPM UnCLIP", (EPS,), clip_sample=True, variance_type="learned_range"), ids=str
)
def test_a_learned_variance_is_left_out(case: Case) -> None:
    scheduler, ahead, x = ready(case)
    output = draw(2, (SHAPE[0], 2 * SHAPE[1], *SHAPE[2:]))
    made = Steps(scheduler)(0, output, x).pred_original_sample
    close(ahead.x0(0, output, x), made, 1e-5, x)
    close(ahead.x0(0, output[1], x[1]), made[1], 1e-5, x)  # of one sample, without its batch


@pytest.mark.parametrize(
    "case", family("DDPM DPMSolverMultistep", (EPS,), thresholding=True, sample_max_value=1.5), ids=str
)
def test_one_sample_is_thresholded_by_itself(case: Case) -> None:
    _, ahead, x = ready(case)
    output = draw(2)
    whole = ahead.x0(0, output, x)
    assert float(whole.abs().max()) <= 1.0
    for row in range(SHAPE[0]):
        close(ahead.x0(0, output[row], x[row]), whole[row], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_left_only_at_the_end(dtype: torch.dtype) -> None:
    ahead, x0 = Case("EulerDiscreteScheduler").ahead(), draw(0)
    for k, place in enumerate(ahead.calls):
        x, output = noisy(place, x0, draw(1)).to(dtype), draw(2).to(dtype)
        mine = ahead.x0(k, output, x)
        assert mine.dtype == ahead.output(k, x0.to(dtype), x).dtype == dtype
        close(mine.float(), ahead.x0(k, output.float(), x.float()).to(dtype).float(), 1e-6)


# -- 4. a constant clean estimate --------------------------------------------------------------------


@pytest.mark.parametrize("case", UNCLIPPED, ids=str)
def test_a_constant_clean_estimate_is_where_the_run_ends(case: Case) -> None:
    scheduler, ahead, x = ready(case)
    step, target = Steps(scheduler), 0.5 * draw(5)
    for k in range(len(ahead.calls)):
        x = after(step(k, ahead.output(k, target, x), x))
        assert bool(torch.isfinite(x).all()), f"call {k}"
    if lands(case):
        close(x, target, 1e-5)


def lands(case: Case) -> bool:
    """Whether the scheduler itself arrives at a constant clean estimate."""
    noise_left = "sigma_min" in case.settings.values()
    return not (noise_left or case in NOISE or any(n in case.name for n in INEXACT))


# -- 5. times and stages -----------------------------------------------------------------------------


@every
def test_times_fall_and_stages_add_up(case: Case) -> None:
    ahead = case.ahead()
    firsts = [ahead.calls[sum(ahead.stages[:step])] for step in range(len(ahead.stages))]
    times = [*(p.t for p in firsts), ahead.end.t]
    assert all(a > b for a, b in itertools.pairwise(times))
    assert times[0] <= 1.0
    assert times[-1] == 0.0
    assert sum(ahead.stages) == len(ahead.calls)
    assert ahead.reaches_end
    ratios = [p.sigma / max(p.alpha, 1e-9) for p in firsts]
    assert ratios == sorted(ratios, reverse=True)
    for p in ahead.calls:
        flow = abs(p.alpha + p.sigma - 1.0) < 1e-6
        assert flow or abs(p.alpha**2 + p.sigma**2 - 1.0) < 1e-6


ON_TABLE = [
    c
    for c in [*TABLE, *DATA, *OF_SIGMAS]
    if not any(k.startswith("use_") or v == "linear" for k, v in c.settings.items())
]


@pytest.mark.parametrize("case", ON_TABLE, ids=str)
def test_on_the_table_time_is_the_timestep(case: Case) -> None:
    """Whichever way the time is found: by timestep, or by the sigma that the table has there."""
    scheduler, ahead, _ = ready(case)
    whole = [(float(t), p.t) for t, p in zip(scheduler.timesteps, ahead.calls, strict=True) if float(t) == int(t)]
    assert len(whole) > 1
    for step, t in whole:
        assert t == pytest.approx((step + 1) / len(scheduler.alphas_cumprod), abs=2e-5)


def test_heun_calls_again_where_its_next_step_begins() -> None:
    for case in family("HeunDiscrete", (EPS,), use_karras_sigmas=True) + family("FlowMatchHeunDiscrete", ()):
        ahead = case.ahead()
        assert ahead.stages == (2,) * 7 + (1,)
        assert all(ahead.calls[k] == ahead.calls[k + 1] for k in range(1, 14, 2))


def test_kdpm2_calls_again_half_way_in_log_sigma() -> None:
    for case in family("KDPM2Discrete", (EPS,)) + SDE[:1]:
        ahead = case.ahead()
        assert ahead.stages == (2,) * 7 + (1,)
        sigmas = [p.sigma / p.alpha for p in ahead.calls]
        for k in range(1, 14, 2):
            assert sigmas[k] ** 2 == pytest.approx(sigmas[k - 1] * sigmas[k + 1], rel=1e-4)
            assert ahead.calls[k - 1].t > ahead.calls[k].t > ahead.calls[k + 1].t


def test_pndm_calls_twice_or_four_times_at_first() -> None:
    plms, prk = (
        ready(Case("PNDMScheduler", {"skip_prk_steps": s}, {"num_inference_steps": 10}))[1] for s in (True, False)
    )
    assert plms.stages == (2, *(1,) * 9)
    assert plms.calls[1] == plms.calls[2]
    assert prk.stages == (4, 4, 4, *(1,) * 7)
    assert prk.calls[1] == prk.calls[2]
    assert prk.calls[3] == prk.calls[4]
    assert prk.calls[0].t > prk.calls[1].t > prk.calls[3].t


def test_sigmas_beyond_the_table_still_have_falling_times() -> None:
    scheduler = library.EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(sigmas=[40.0, 30.0, 20.0, 5.0, 1.0, 0.0])
    scheduler.set_begin_index(0)
    ahead = trajectory(scheduler, scheduler.timesteps[0])
    times = [p.t for p in ahead.calls]
    assert times == sorted(set(times), reverse=True)
    assert times[2] > 0.99
    assert ahead.calls[0].sigma / ahead.calls[0].alpha == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("case", "noise"),
    [
        (Case("DDIMScheduler"), False),
        (Case("DDPMScheduler"), True),
        (Case("EulerDiscreteScheduler"), False),
        (Case("EulerAncestralDiscreteScheduler"), True),
        (Case("DPMSolverMultistepScheduler"), False),
        (Case("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}), True),
        (Case("FlowMatchEulerDiscreteScheduler"), False),
        (Case("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}), True),
        (Case("LTXEulerAncestralRFScheduler"), True),
        (Case("LTXEulerAncestralRFScheduler", {"eta": 0.0}), False),
    ],
    ids=str,
)
def test_stochastic_is_said_and_true(case: Case, noise: bool) -> None:
    def stepped(seed: int) -> torch.Tensor:
        scheduler, _, x = ready(case)
        step = Steps(scheduler)
        step.generator.manual_seed(seed)
        return after(step(0, draw(2), x))

    assert case.ahead().stochastic is noise
    assert torch.equal(stepped(1), stepped(2)) is not noise


# -- 6. late starts and early ends ---------------------------------------------------------------------

ONE_EACH = list({c.name: c for c in ALL}.values())
REGULAR = [c for c in ONE_EACH if c.name != "PNDMScheduler"]


@pytest.mark.parametrize("case", REGULAR, ids=str)
def test_a_late_start_is_the_rest_of_the_run(case: Case) -> None:
    whole = case.ahead()
    begin = 2 * max(whole.stages[0], 1) if len(whole.calls) > 5 else 2
    scheduler = case.make()
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    late = trajectory(scheduler, clock_of(scheduler, begin))
    assert late.calls == whole.calls[begin:]
    assert late.end == whole.end
    assert sum(late.stages) == len(late.calls)


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_an_early_end_is_the_place_of_the_next_call(case: Case) -> None:
    whole = case.ahead()
    scheduler = case.make()
    for count in range(1, len(whole.calls) + 2):
        cut = trajectory(scheduler, clock_of(scheduler, 0), count)
        assert cut.calls == whole.calls[:count]
        assert sum(cut.stages) == len(cut.calls)
        assert cut.end == (*whole.calls, *[whole.end] * 2)[count]
        assert cut.reaches_end is (count >= len(whole.calls))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_the_index_found_by_scaling_the_input_is_kept(name: str) -> None:
    scheduler = Case(name).make()
    scheduler.scale_model_input(draw(0), scheduler.timesteps[4])
    assert trajectory(scheduler, scheduler.timesteps[4]).calls == Case(name).ahead().calls[4:]


def test_a_start_in_the_middle_is_found_by_the_timestep() -> None:
    """As the scheduler itself finds it: Heun's second of two equal ones, PNDM's by how many calls are left."""
    heun = Case("HeunDiscreteScheduler").make()
    assert len(trajectory(heun, heun.timesteps[3]).calls) == len(heun.timesteps) - 4
    for begin in (1, 2, 5):
        pndm = Case("PNDMScheduler", {"skip_prk_steps": True}).make()
        rest = trajectory(pndm, pndm.timesteps[begin], len(pndm.timesteps) - begin)
        assert rest.reaches_end
        assert len(rest.calls) == len(pndm.timesteps) - begin
    assert len(trajectory(Case("DDIMScheduler").make(), 500).calls) == 5  # a plain number: 875 750 625 500 ...


# -- what is known, and what is refused ------------------------------------------------------------------


def test_every_scheduler_of_diffusers_is_declared_or_refused() -> None:
    named = {n for n in dir(library) if n.endswith("Scheduler")}
    declared = {n for spec in list_scheduler_specs() for n in spec.schedulers if not spec.package}
    assert named == declared | set(UNSUPPORTED)
    assert not declared & set(UNSUPPORTED)
    assert all(reason.endswith(".") for reason in UNSUPPORTED.values())


@pytest.mark.parametrize("name", sorted(n for n in UNSUPPORTED if "Score" not in n))
def test_refused_by_name(name: str) -> None:
    scheduler = object.__new__(getattr(library, name))
    with pytest.raises(GuestError, match=f"{name} cannot be adapted: it"):
        check_supported(scheduler)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case("UniPCMultistepScheduler", {"solver_type": "bh1"}), "solver_type='bh2'"),
        (Case("UniPCMultistepScheduler", {"predict_x0": False}), "predict_x0=True"),
        (Case("DPMSolverMultistepScheduler", {"prediction_type": FLOW}), "use_flow_sigmas=True"),
        (Case("UniPCMultistepScheduler", {**ON_FLOW, "prediction_type": V}), "flow_prediction"),
        (Case("DDIMScheduler", {"prediction_type": "score"}), "prediction_type='score'; expected one of epsilon"),
    ],
    ids=str,
)
def test_settings_that_are_refused(case: Case, words: str) -> None:
    with pytest.raises(GuestError, match=words):
        check_supported(case.make())


def test_bh1_is_fine_where_the_last_sigma_is_not_zero() -> None:
    check_supported(Case("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}).make())


def test_samples_that_grow_are_refused() -> None:
    with pytest.raises(GuestError, match="scale_factors=None"):
        check_supported(library.FlowMatchLCMScheduler(scale_factors=[0.5]))


def test_sigmas_that_no_flow_has_are_refused() -> None:
    scheduler = Case("DPMSolverMultistepScheduler", {**ON_FLOW, "use_karras_sigmas": True}).make()
    with pytest.raises(GuestError, match="where a flow ends at 1"):
        trajectory(scheduler, scheduler.timesteps[0])


def test_a_timestep_that_is_none_of_the_schedulers() -> None:
    for name, settings in (("DDIMScheduler", {}), ("EulerDiscreteScheduler", {})):
        with pytest.raises(GuestError, match="none of its timesteps"):
            trajectory(Case(name, settings).make(), torch.tensor(333.3))


def test_timesteps_that_turn_back_are_refused() -> None:
    scheduler = Case("DDIMScheduler").make()
    scheduler.timesteps = torch.tensor([900, 500, 700, 100])
    with pytest.raises(GuestError, match=r"turn back from t=0\.501 to t=0\.701"):
        trajectory(scheduler, scheduler.timesteps[0])


def test_a_subclass_is_known_by_the_class_above_it() -> None:
    kind = type("TunedScheduler", (library.EulerDiscreteScheduler,), {})
    assert "EulerDiscreteScheduler" in find_scheduler_spec(kind()).schedulers


def test_a_scheduler_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedulers, "_SPECS", dict(schedulers._SPECS))

    class StraightScheduler:
        config: ClassVar[dict] = {}
        timesteps = torch.tensor([1000.0, 500.0])
        sigmas = torch.tensor([1.0, 0.5, 0.0])

    with pytest.raises(GuestError, match="StraightScheduler is not a scheduler that is known here"):
        find_scheduler_spec(StraightScheduler())
    register_scheduler(SchedulerSpec("straight", ("StraightScheduler",), flow_levels, flow_converter))
    assert [p.sigma for p in trajectory(StraightScheduler(), 1000.0).calls] == [1.0, 0.5]


def test_importing_the_table_loads_no_library() -> None:
    code = (
        "import sys, skipstone.integrations.diffusers.scheduler_specs; print({'torch', 'diffusers'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
