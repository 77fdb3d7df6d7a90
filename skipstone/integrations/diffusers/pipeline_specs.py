"""What has to be known about a diffusers pipeline to be its guest: one small declaration for each family.

`pipeline_catalogue.py` declares those that ship. The guidance branches of any other pipeline, and of a subclass with a
`__call__` of its own, have no names, and its rows are compared before some of them first enter the network apart.
Another package declares its own by `register_pipeline(PipelineSpec(...))` in a module named by an entry point of the
group `skipstone`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ... import registry
from ...errors import GuestError
from .method_swap import original_of

DENOISERS = ("unet", "transformer", "transformer_2", "prior", "decoder")
NESTED_ROWS = frozenset(
    {
        "added_cond_kwargs",
        "controlnet_cond",
        "down_block_additional_residuals",
        "down_intrablock_additional_residuals",
        "block_controlnet_hidden_states",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
    }
)


@dataclass(frozen=True)
class PipelineSpec:
    """Description of how the pipelines of one family call their denoiser.

    Args:
        pipelines: Names of their classes; a subclass is recognised too.
        title: What people call the family.
        denoisers: Attributes that hold the denoiser, or several that take turns.
        companions: Attributes of models called in every step before it, whose only reader it is: ControlNets.
        branches: The guidance branches in the order in which they enter, in one batch or one after another; runs
            with another number of them have no names for theirs, and `guidance_gate` cannot skip one.
        frames: Whether the scheduler steps the frames of a video as rows of their own.
        doubled: Whether the scheduler steps the guidance branches as rows of their own.
        shared: Arguments that are the same for all rows, whatever their first axis: position ids.
        repeated: Arguments that hold each row several times side by side: a video's text, once per frame.
        nested: Arguments that are lists or mappings of tensors with a row each: the residuals of a ControlNet.
        between: What else acts on the sample between two steps, or nothing: it rules `solver=` out.
        acts_between: Whether it does in a given pipeline.
        network_time: Timestep of the scheduler -> what the denoiser is told; None where that is the same, or 1/1000.
        switches: Times (1 noise, 0 data) at which another denoiser takes over.
        is_declared: Whether this was declared; rows of undeclared pipelines are compared before they enter apart.
    """

    pipelines: tuple[str, ...] = ()
    title: str = ""
    denoisers: tuple[str, ...] = DENOISERS
    companions: tuple[str, ...] = ("controlnet",)
    branches: tuple[str, ...] = ("uncond", "cond")
    frames: bool = False
    doubled: bool = False
    shared: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()
    nested: frozenset[str] = NESTED_ROWS
    between: str = ""
    acts_between: Callable[[Any], bool] = lambda pipe: True
    network_time: Callable[[float], float] | None = None
    switches: Callable[[Any], tuple[float, ...]] = lambda pipe: ()
    is_declared: bool = True

    def models(self, pipe: Any, attributes: tuple[str, ...]) -> list[Any]:
        """The models under these attributes that the pipeline has."""
        found = [getattr(pipe, name, None) for name in attributes]
        return [model for model in found if model is not None]


_SPECS: dict[str, PipelineSpec] = {}
_UNSUPPORTED: dict[str, str] = {}


def register_pipeline(spec: PipelineSpec) -> None:
    """Declare a family; a later declaration of a pipeline takes the place of an earlier one."""
    for name in spec.pipelines:
        _SPECS[name] = spec
        _UNSUPPORTED.pop(name, None)


def register_unsupported(pipelines: tuple[str, ...], reason: str) -> None:
    """Declare that pipelines cannot be adapted: why, and what would work instead."""
    for name in pipelines:
        _UNSUPPORTED[name] = reason


def unsupported_pipelines() -> dict[str, str]:
    """Pipelines that cannot be adapted -> why."""
    registry.load_plugins()
    return dict(_UNSUPPORTED)


def list_pipeline_specs() -> tuple[PipelineSpec, ...]:
    """Every declared family."""
    registry.load_plugins()
    return tuple(dict.fromkeys(_SPECS.values()))


def find_pipeline_spec(pipe: Any) -> PipelineSpec:
    """The family of a pipeline.

    Raises:
        GuestError: not a pipeline, or one that cannot be adapted; the message says why.
    """
    registry.load_plugins()
    lineage = [kind.__name__ for kind in type(pipe).__mro__]
    if "ModularPipeline" in lineage:
        raise GuestError(
            f"{lineage[0]} is a modular pipeline of diffusers: its loop is made of blocks, which Skipstone does not "
            f"adapt. Load the same weights as a pipeline, by DiffusionPipeline.from_pretrained(...), or make one of "
            f"the loaded parts, e.g. StableDiffusionXLPipeline(vae=modular.vae, unet=modular.unet, ...): adapt that."
        )
    if "DiffusionPipeline" not in lineage:
        raise GuestError(
            f"Expected a diffusers pipeline, got {type(pipe).__name__}: skipstone.adapt(pipe, 'third_order') with "
            f"pipe = DiffusionPipeline.from_pretrained(...)."
        )
    for name in lineage:
        if name in _UNSUPPORTED:
            raise GuestError(f"{lineage[0]} cannot be adapted: {_UNSUPPORTED[name]}")
        if name in _SPECS:
            spec = _SPECS[name]
            own = not _calls_as_declared(type(pipe), spec)
            return _check_spec(replace(spec, branches=(), is_declared=False) if own else spec, pipe)
    return _check_spec(PipelineSpec((lineage[0],), lineage[0], branches=(), is_declared=False), pipe)


def _calls_as_declared(kind: type, spec: PipelineSpec) -> bool:
    """Whether the `__call__` of a pipeline is that of a declared class, not of a subclass or a namesake."""
    import diffusers

    kind = original_of(kind)
    owner = next((k for k in kind.__mro__ if "__call__" in vars(k)), None)
    if owner is None:
        return False
    namesake = getattr(diffusers, owner.__name__, owner)
    package = vars(owner)["__call__"].__module__.partition(".")[0]
    patched = package not in (owner.__module__.partition(".")[0], "torch")  # torch.no_grad wraps it
    return owner.__name__ in spec.pipelines and namesake is owner and not patched


def _check_spec(spec: PipelineSpec, pipe: Any) -> PipelineSpec:
    import torch

    name = type(pipe).__name__
    if getattr(pipe, "scheduler", None) is None:
        raise GuestError(f"{name} has no scheduler, so there is no denoising loop to adapt.")
    models = spec.models(pipe, spec.denoisers)
    if not models:
        raise GuestError(
            f"{name} has none of {', '.join(spec.denoisers)}. If its denoiser has another name, declare it: "
            f"register_pipeline(PipelineSpec(({name!r},), denoisers=(...))) of "
            f"skipstone.integrations.diffusers.pipeline_specs."
        )
    for model in models:
        if not isinstance(model, torch.nn.Module):
            raise GuestError(
                f"The denoiser of {name} is a {type(model).__name__}, not a torch module (ONNX, Flax and the like are "
                f"not supported). Load the PyTorch weights of the same model."
            )
    if not callable(pipe):
        raise GuestError(
            f"{name} has no __call__, so there is no denoising loop to adapt. Define __call__ in the class, or "
            f"derive it from the pipeline whose loop it runs."
        )
    return spec
