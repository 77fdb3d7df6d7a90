"""Schedulers by name, each made from the configuration that a pipeline carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import diffusers

Maker = Callable[[Any], diffusers.SchedulerMixin]

SCHEDULERS: dict[str, Maker] = {}


def _maker(cls: str, **options: Any) -> Maker:
    def make(config: Any) -> diffusers.SchedulerMixin:
        return getattr(diffusers, f"{cls}Scheduler").from_config(config, **options)

    return make


_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIM", {"clip_sample": False}),
    "ddim-clip": ("DDIM", {"clip_sample": True}),
    "ddim-trailing": ("DDIM", {"clip_sample": False, "timestep_spacing": "trailing", "set_alpha_to_one": True}),
    "ddpm": ("DDPM", {"clip_sample": False}),
    "pndm": ("PNDM", {"skip_prk_steps": True}),
    "pndm-prk": ("PNDM", {"skip_prk_steps": False}),
    "euler": ("EulerDiscrete", {}),
    "euler-karras": ("EulerDiscrete", {"use_karras_sigmas": True}),
    "euler-trailing": ("EulerDiscrete", {"timestep_spacing": "trailing"}),
    "euler-ancestral": ("EulerAncestralDiscrete", {}),
    "heun": ("HeunDiscrete", {}),
    "kdpm2": ("KDPM2Discrete", {}),
    "kdpm2-ancestral": ("KDPM2AncestralDiscrete", {}),
    "lms": ("LMSDiscrete", {}),
    "dpmpp": ("DPMSolverMultistep", {}),
    "dpmpp-1": ("DPMSolverMultistep", {"solver_order": 1}),
    "dpmpp-3": ("DPMSolverMultistep", {"solver_order": 3}),
    "dpmpp-karras": ("DPMSolverMultistep", {"use_karras_sigmas": True}),
    "dpmpp-sde": ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm-singlestep": ("DPMSolverSinglestep", {"lower_order_final": True}),
    "deis": ("DEISMultistep", {}),
    "unipc": ("UniPCMultistep", {}),
    "sa": ("SASolver", {}),
    "lcm": ("LCM", {}),
    "tcd": ("TCD", {}),
}
if importlib.util.find_spec("torchsde"):
    _BASES["dpm-sde"] = ("DPMSolverSDE", {})
# These refuse networks that predict x0.
_NO_SAMPLE = {"pndm", "pndm-prk", "euler-ancestral", "kdpm2", "kdpm2-ancestral"}

for _name, (_cls, _options) in _BASES.items():
    SCHEDULERS[_name] = _maker(_cls, prediction_type="epsilon", **_options)
    SCHEDULERS[f"{_name}-v"] = _maker(_cls, prediction_type="v_prediction", **_options)
    if _name not in _NO_SAMPLE:
        SCHEDULERS[f"{_name}-sample"] = _maker(_cls, prediction_type="sample", **_options)
ALPHAS = tuple(SCHEDULERS)  # for networks that predict noise, v or x0 (SD, SDXL, PixArt)

_EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
SCHEDULERS["edm-euler"] = _maker("EDMEuler", prediction_type="epsilon", **_EDM)
SCHEDULERS["edm-dpmpp"] = _maker("EDMDPMSolverMultistep", prediction_type="epsilon", **_EDM)

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_FLOW_BASES: dict[str, Maker] = {
    "flow-euler": _maker("FlowMatchEulerDiscrete"),
    "flow-euler-karras": _maker("FlowMatchEulerDiscrete", use_karras_sigmas=True),
    "flow-euler-stochastic": _maker("FlowMatchEulerDiscrete", stochastic_sampling=True),
    "flow-heun": _maker("FlowMatchHeunDiscrete"),
    "flow-lcm": _maker("FlowMatchLCM"),
    "flow-dpmpp": _maker("DPMSolverMultistep", **_FLOW),
    "flow-dpmpp-sde": _maker("DPMSolverMultistep", algorithm_type="sde-dpmsolver++", **_FLOW),
    "flow-dpm-singlestep": _maker("DPMSolverSinglestep", lower_order_final=True, **_FLOW),
    "flow-deis": _maker("DEISMultistep", **_FLOW),
    "flow-unipc": _maker("UniPCMultistep", **_FLOW),
}
SCHEDULERS.update(_FLOW_BASES)
FLOWS = tuple(_FLOW_BASES)  # for networks that predict a velocity (SD3, Flux)
# Where the pipeline hands its own sigmas to the scheduler.
OWN_FLOWS = tuple(name for name in FLOWS if "euler" in name or "lcm" in name)
EDM = ("edm-euler", "edm-dpmpp")  # for SDXL, whose pipelines know of them
