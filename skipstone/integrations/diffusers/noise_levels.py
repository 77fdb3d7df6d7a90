"""Where a diffusers scheduler has its sample at each call, and what it takes the network's output for.

Engine coordinates: scale * x = alpha x0 + sigma noise, with alpha^2 + sigma^2 = 1, or alpha + sigma = 1 for flows.
Schedulers of the sigma kind keep x = x0 + s noise, which is scaled by alpha = 1 / sqrt(1 + s^2). In these coordinates
eps, v, x0 and flow have one formula each, whatever the scheduler.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from ...engine.contracts import PredictionType
from ...errors import GuestError
from ...numerics.parametrize import from_x0, to_x0
from ...numerics.tables import Table

MIN_TIME_GAP = 1e-6  # least difference between the times of two steps
TIMESTEP_TOLERANCE = (
    0.5  # how far from every timestep of a scheduler the one it is given may lie (they are floats in half precision)
)
NonstandardPrediction: TypeAlias = Literal["edm", "reversed flow"]  # outputs that are none of the engine's kinds


@dataclass(frozen=True, slots=True)
class NoiseLevel:
    """Where the sample is at one call of the scheduler: scale * x = alpha x0 + sigma noise."""

    t: float
    scale: float
    alpha: float
    sigma: float


CLEAN_LEVEL = NoiseLevel(0.0, 1.0, 1.0, 0.0)


def scale_array(array: Any, factor: float) -> Any:
    """The array scaled, at no operation where the factor is 1: this is done for every sample and step."""
    return array if factor == 1.0 else array * factor


# -- what an output means ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PredictionConverter:
    """What a network's output means, as a prediction of the standard kinds.

    Args:
        prediction: What to call it.
        kind: The standard kind it is, up to sign and units.
        sign: -1 where the network predicts the negative of it.
        data: Deviation of the pictures that the network was preconditioned for (EDM: Karras et al. 2022,
            arXiv 2206.00364); in units of it, an EDM output is a v prediction.
    """

    prediction: PredictionType | NonstandardPrediction
    kind: PredictionType
    sign: float = 1.0
    data: float = 1.0

    def x0(self, output: Any, x: Any, level: NoiseLevel) -> Any:
        """The clean estimate that `output` means at `x`, which is in engine coordinates."""
        alpha, sigma, unit = self._units(level)
        return scale_array(
            to_x0(self.kind, scale_array(output, self.sign), scale_array(x, unit), alpha, sigma), self.data
        )

    def output(self, x0: Any, x: Any, level: NoiseLevel) -> Any:
        """The output that means `x0` at `x`, which is in engine coordinates."""
        alpha, sigma, unit = self._units(level)
        return scale_array(
            from_x0(self.kind, scale_array(x0, 1.0 / self.data), scale_array(x, unit), alpha, sigma), self.sign
        )

    def _units(self, level: NoiseLevel) -> tuple[float, float, float]:
        """Alpha and sigma for pictures in units of their deviation, and what x is to be multiplied by."""
        if self.data == 1.0:
            return level.alpha, level.sigma, 1.0
        s = level.sigma / (level.alpha * self.data)
        alpha = 1.0 / math.hypot(1.0, s)
        return alpha, s * alpha, alpha / (level.alpha * self.data)


CONVERTERS: dict[str, PredictionConverter] = {
    "epsilon": PredictionConverter("eps", "eps"),
    "sample": PredictionConverter("x0", "x0"),
    "original_sample": PredictionConverter("x0", "x0"),
    "v_prediction": PredictionConverter("v", "v"),
    "flow_prediction": PredictionConverter("flow", "flow"),
}
REVERSED_FLOW = PredictionConverter("reversed flow", "flow", -1.0)


def converter_from_config(scheduler: Any) -> PredictionConverter:
    """Return the converter that the configuration's `prediction_type` names."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in CONVERTERS:
        raise GuestError(
            f"{type(scheduler).__name__} has prediction_type={kind!r}; expected one of {', '.join(CONVERTERS)}."
        )
    return CONVERTERS[kind]


def edm_converter(scheduler: Any) -> PredictionConverter:
    """EDM preconditioning around the output; it is v itself for pictures of unit deviation."""
    data, v = float(scheduler.config.sigma_data), scheduler.config.prediction_type == "v_prediction"
    return (
        CONVERTERS["v_prediction"] if v and data == 1.0 else PredictionConverter("edm", "v", 1.0 if v else -1.0, data)
    )


def flow_converter(scheduler: Any) -> PredictionConverter:
    """noise - data; data - noise where time runs backwards."""
    return REVERSED_FLOW if scheduler.config.get("invert_sigmas", False) else CONVERTERS["flow_prediction"]


# -- what a scheduler does to a clean estimate ------------------------------------------------------


def apply_threshold(scheduler: Any, x0: Any) -> Any:
    """Dynamic thresholding of pictures, where it is on; x0 is one sample (C, H, W) or rows of them."""
    if not scheduler.config.get("thresholding", False) or not getattr(scheduler, "predict_x0", True):
        return x0
    return scheduler._threshold_sample(x0[None])[0] if x0.ndim == 3 else scheduler._threshold_sample(x0)


def apply_clipping(scheduler: Any, x0: Any) -> Any:
    """Thresholded or clipped, where either is on."""
    config = scheduler.config
    if config.get("thresholding", False) or not config.get("clip_sample", False):
        return apply_threshold(scheduler, x0)
    return x0.clamp(-config.clip_sample_range, config.clip_sample_range)


# -- where the sample is: one noise level for each call from index `begin` on ------------------------


def table_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """Noise levels of schedulers that look them up by timestep."""
    bars = scheduler.alphas_cumprod.tolist()
    steps = [int(t) for t in scheduler.timesteps[begin:].tolist()]
    return [NoiseLevel((k + 1) / len(bars), 1.0, math.sqrt(bars[k]), math.sqrt(1.0 - bars[k])) for k in steps]


def variance_preserving_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """Noise levels of schedulers with sigmas whose sample has unit variance, or is a flow's."""
    if scheduler.config.get("use_flow_sigmas", False):
        return flow_levels(scheduler, begin)
    return _levels_from_sigmas(scheduler, _sigmas(scheduler, begin), lambda alpha: 1.0)


def variance_exploding_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """Noise levels of schedulers with x = x0 + s noise."""
    return _levels_from_sigmas(scheduler, _sigmas(scheduler, begin), lambda alpha: alpha)


def interpolated_levels(scheduler: Any, begin: int, earlier: int = 0) -> list[NoiseLevel]:
    """As `variance_exploding_levels`, with a second call half-way in log sigma (KDPM2; listed earlier if ancestral)."""
    middle = scheduler.sigmas_interpol.tolist()
    sigmas = _sigmas(scheduler, begin)
    sigmas = [middle[begin + k - earlier] if k % 2 else s for k, s in enumerate(sigmas)]
    return _levels_from_sigmas(scheduler, sigmas, lambda alpha: alpha)


def midpoint_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """As `interpolated_levels`, for a scheduler that computes the midpoint during the run (DPM-Solver SDE)."""
    s = _sigmas(scheduler, begin)
    sigmas = [math.sqrt(s[k - 1] * s[k]) if k % 2 else s[k] for k in range(len(s))]
    return _levels_from_sigmas(scheduler, sigmas, lambda alpha: alpha)


def flow_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """Noise levels of flows: x = (1 - sigma) x0 + sigma noise."""
    sigmas = _sigmas(scheduler, begin)
    if scheduler.config.get("invert_sigmas", False):
        sigmas = [1.0 - s for s in sigmas]
    if max(sigmas, default=0.0) > 1.0 + MIN_TIME_GAP:
        raise GuestError(
            f"{type(scheduler).__name__} is set to a flow with sigmas up to {max(sigmas):g}, where a flow ends at 1: "
            f"its settings of sigmas contradict each other. Leave use_flow_sigmas alone on."
        )
    return [NoiseLevel(s, 1.0, 1.0 - s, s) for s in sigmas]


def cosine_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """Noise levels of Wuerstchen's scheduler, whose timesteps are times and whose last one is never called."""
    times = scheduler.timesteps[begin:-1]
    bars = scheduler._alpha_cumprod(times.float(), times.device).tolist()
    return [NoiseLevel(t, 1.0, math.sqrt(b), math.sqrt(1.0 - b)) for t, b in zip(times.tolist(), bars, strict=True)]


def angle_levels(scheduler: Any, begin: int) -> list[NoiseLevel]:
    """Noise levels of IPNDM, whose timesteps are angles."""
    rows = zip(scheduler.timesteps.tolist(), scheduler.alphas.tolist(), scheduler.betas.tolist(), strict=False)
    return [NoiseLevel(t, 1.0, alpha, beta) for t, alpha, beta in list(rows)[begin:]]


def _sigmas(scheduler: Any, begin: int) -> list[float]:
    sigmas: list[float] = scheduler.sigmas[begin : len(scheduler.timesteps)].tolist()
    return sigmas


def get_table(scheduler: Any) -> Table:
    """The table of a scheduler that has one.

    Where the betas are rescaled to zero terminal SNR, the sigma kind replaces the last entry, 0, by 2^-24, which may be
    above the one before; it is put below.
    """
    *bars, last = scheduler.alphas_cumprod.tolist()
    return Table(
        (*bars, last if last < bars[-1] else bars[-1] / 2), float(getattr(scheduler, "final_alpha_cumprod", 1.0))
    )


def _levels_from_sigmas(scheduler: Any, sigmas: Sequence[float], scale: Callable[[float], float]) -> list[NoiseLevel]:
    table = get_table(scheduler) if hasattr(scheduler, "alphas_cumprod") else None
    levels = []
    for s in sigmas:
        alpha = 1.0 / math.hypot(1.0, s)
        # without a table, the time that a flow of the same signal-to-noise ratio has
        t = s / (1.0 + s) if table is None or s <= 0.0 else _snap_to_entry(table.time(-math.log(s)), scheduler)
        levels.append(NoiseLevel(t, scale(alpha), alpha, s * alpha))
    return levels


def _snap_to_entry(t: float, scheduler: Any) -> float:
    """The time of a table's entry where rounding has led beside it: policies compare times with their settings."""
    entries = len(scheduler.alphas_cumprod)
    nearest = round(t * entries)
    return nearest / entries if abs(t * entries - nearest) < 1e-3 else t


# -- the order of calls --------------------------------------------------------------------------


def one_call_stages(scheduler: Any, calls: int) -> tuple[int, ...]:
    """One call in each step."""
    return (1,) * calls


def two_call_stages(scheduler: Any, calls: int) -> tuple[int, ...]:
    """Two calls in each step, and one in the last."""
    return (2,) * (calls // 2) + (1,) * (calls % 2)


def pndm_stages(scheduler: Any, calls: int) -> tuple[int, ...]:
    """Four calls in each Runge-Kutta step, if there are any; else two in the first step; then one."""
    if scheduler.config.skip_prk_steps and scheduler.counter > 1:  # asked in mid-run
        return (1,) * calls
    fours = 0 if scheduler.config.skip_prk_steps else min(len(scheduler.prk_timesteps), calls) // 4
    if fours:
        return (4,) * fours + (1,) * (calls - 4 * fours)
    return (1,) * calls if calls < 2 else (2,) + (1,) * (calls - 2)


def first_stages(stages: Sequence[int], calls: int) -> tuple[int, ...]:
    """The stages of the first so many calls; the last step may lose some of its own."""
    ends = itertools.accumulate(stages)
    return tuple(min(n, calls - end + n) for n, end in zip(stages, ends, strict=True) if end - n < calls)


def make_decreasing(levels: Sequence[NoiseLevel], stages: Sequence[int], who: str) -> list[NoiseLevel]:
    """The same noise levels with the times of steps falling strictly: equal ones are set apart by a hair.

    Raises:
        GuestError: they rise.
    """
    settled: list[NoiseLevel] = []
    at, before = 0, math.inf
    for step, n in enumerate(stages):
        t, raw = levels[at].t, levels[at - stages[step - 1]].t if step else math.inf
        if t > raw + MIN_TIME_GAP:
            raise GuestError(
                f"The timesteps of {who} turn back from t={raw:.4g} to t={t:.4g} (1 is noise, 0 data). Only runs "
                f"towards the data can be adapted."
            )
        before = max(min(t, before - MIN_TIME_GAP), MIN_TIME_GAP * (len(stages) - step))
        first = replace(levels[at], t=before)
        # a second call where this step begins is at the same noise level
        settled = [first if level == levels[at] else level for level in settled]
        settled += [first, *levels[at + 1 : at + n]]
        at += n
    return settled


def find_next_call(scheduler: Any, timestep: Any, count: int | None) -> int:
    """Index of the call that is about to be made."""
    for name in ("step_index", "begin_index"):
        if (index := getattr(scheduler, name, None)) is not None:
            return int(index)
    try:
        if hasattr(scheduler, "index_for_timestep"):
            found_index = int(scheduler.index_for_timestep(timestep))
            _check_first_timesteps(scheduler, found_index, count)
            return found_index
    except GuestError:
        raise
    except (IndexError, ValueError) as error:
        raise _unknown_timestep_error(scheduler, timestep) from error
    value = float(timestep.flatten()[0] if hasattr(timestep, "flatten") else timestep)
    away = [abs(float(t) - value) for t in scheduler.timesteps.tolist()]
    if not away or min(away) > TIMESTEP_TOLERANCE:
        raise _unknown_timestep_error(scheduler, timestep)
    found = [k for k, d in enumerate(away) if d == min(away)]  # PNDM has some twice
    return next((k for k in found if len(away) - k == count), found[0])


def _check_first_timesteps(scheduler: Any, index: int, count: int | None) -> None:
    """Raise GuestError where diffusers starts at the second of two equal timesteps and so lacks the last one."""
    times = scheduler.timesteps
    short = count is not None and len(times) - index < count
    if index > 0 and short and float(times[index - 1]) == float(times[index]):
        raise GuestError(
            f"The first timesteps of {type(scheduler).__name__} are equal: it rounds its noise levels to whole "
            f"timesteps of the model's table. diffusers starts at the second of them and lacks a noise level at the "
            f"end, where most of its schedulers stop with an error, without Skipstone, too. Leave out "
            f"use_karras_sigmas and the like; timestep_spacing='trailing' works."
        )


def _unknown_timestep_error(scheduler: Any, timestep: Any) -> GuestError:
    return GuestError(
        f"{type(scheduler).__name__} is stepped from {timestep}, which is none of its timesteps. Set them before the "
        f"loop: scheduler.set_timesteps(...)."
    )
