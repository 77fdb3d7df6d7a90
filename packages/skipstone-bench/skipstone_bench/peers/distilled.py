"""Few steps by other weights, and other schedulers: LCM-LoRA, SDXL-Turbo, any scheduler of diffusers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from skipstone.errors import GuestError
from skipstone.evaluation.peers import CallContextFactory, no_context, quiet_logging
from skipstone.registry import register
from skipstone.settings import Ranges, check_settings

from .published import PublishedPeer

ADAPTER = "skipstone"
LORAS = {
    "StableDiffusionXLPipeline": "latent-consistency/lcm-lora-sdxl",
    "StableDiffusionPipeline": "latent-consistency/lcm-lora-sdv1-5",
}
# What was loaded: network of a pipeline -> where from -> the network whose weights take turns with its own.
_OTHER_NETWORKS: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


@register("peer")
@dataclass(frozen=True)
class OtherScheduler(PublishedPeer):
    """Another scheduler of diffusers, as itself, on the settings of the pipeline's own.

    For those that have no counterpart among the solvers. PNDM calls its second timestep twice, 21 calls for 20 steps,
    as Stable Diffusion is published with it (without Runge-Kutta steps).

    Args:
        of: Its class.

    References: Liu et al. 2022, arXiv 2202.09778 (PNDM).
    """

    of: str = "PNDMScheduler"
    name: ClassVar[str] = "scheduler"
    brings_scheduler: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_settings(self)

    def unsupported_reason(self, pipe: Any) -> str | None:
        fitting = [kind.__name__ for kind in pipe.scheduler.compatibles]
        if self.of in fitting:
            return None
        return f"{self.of} cannot be made from {type(pipe.scheduler).__name__}; those that can: {', '.join(fitting)}"

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        import diffusers

        plain = {"skip_prk_steps": True} if self.of == "PNDMScheduler" else {}
        made = getattr(diffusers, self.of).from_config(pipe.scheduler.config, **plain)
        with use_scheduler(pipe, made):
            yield no_context


@dataclass(frozen=True)
class DistilledPeer(PublishedPeer):
    """Base of what makes few steps with weights that were distilled for it."""

    brings_scheduler: ClassVar[bool] = True
    steps: ClassVar[int] = 4
    ranges: ClassVar[Ranges] = {"guidance": (0, 1e3)}

    weights: str = ""
    guidance: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self, pipe: Any, bare: Callable[..., Any], call_arguments: Mapping[str, Any]) -> Any:
        return bare(pipe, **{**call_arguments, "guidance_scale": self.guidance})


@register("peer")
@dataclass(frozen=True)
class LCMLoRA(DistilledPeer):
    """Four steps by latent consistency: LCM's scheduler, and LoRA weights that taught the network to take them.

    One row a step: without guidance, and 4 steps of a pipeline that is guided elsewhere are 2 calls.

    Args:
        weights: A folder, a file or a hub id; "" is latent-consistency's own for SD 1.5 or SDXL, as the pipeline is.
        guidance: Its own weight of guidance, in [0, 1000]: at most 1 makes one row a step, up to 2 is usual.

    Raises:
        SpecError: a setting out of range.

    References: Luo et al. 2023, arXiv 2311.05556 (LCM-LoRA); 2310.04378 (LCM).
    """

    name: ClassVar[str] = "lcm_lora"
    package: ClassVar[str] = "peft"
    module: ClassVar[str] = "peft"

    def unsupported_reason(self, pipe: Any) -> str | None:
        if getattr(pipe, "unet", None) is None or not hasattr(pipe, "load_lora_weights"):
            return f"{type(pipe).__name__} takes no LoRA weights for a UNet"
        if any(pipe.get_list_adapters().values()):
            return "this pipeline has LoRA adapters on already: call pipe.unload_lora_weights() first"
        return None if self._weights(pipe) else "weights of this kind of pipeline are not known: say weights"

    def _weights(self, pipe: Any) -> str:
        kinds = [kind.__name__ for kind in type(pipe).__mro__]
        return self.weights or next((LORAS[name] for name in kinds if name in LORAS), "")

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        from diffusers import LCMScheduler

        try:
            pipe.load_lora_weights(self._weights(pipe), adapter_name=ADAPTER)
        except Exception as e:  # OSError, errors of the hub's client, of safetensors, of shapes that do not fit
            raise GuestError(_describe_load_error(self, "LoRA weights", self._weights(pipe), e)) from e
        try:
            with use_scheduler(pipe, LCMScheduler.from_config(pipe.scheduler.config)):
                yield no_context
        finally:
            pipe.unload_lora_weights()


@register("peer")
@dataclass(frozen=True)
class SDXLTurbo(DistilledPeer):
    """Four steps by SDXL-Turbo's weights in the network of an SDXL pipeline, whose other parts it shares.

    One row a step, by the ancestral Euler scheduler on trailing timesteps. Made for pictures of 512 x 512: say
    `--set height=512 --set width=512`, for all rows.

    Args:
        weights: A folder with `unet` in it, or a hub id; "" is stabilityai/sdxl-turbo.
        guidance: Its own weight of guidance, in [0, 1000]; it was distilled for 0.

    Raises:
        SpecError: a setting out of range.

    References: Sauer et al. 2023, arXiv 2311.17042 (adversarial diffusion distillation).
    """

    name: ClassVar[str] = "sdxl_turbo"

    def unsupported_reason(self, pipe: Any) -> str | None:
        if "StableDiffusionXLPipeline" in [kind.__name__ for kind in type(pipe).__mro__]:
            return None
        return f"its weights fit the network of a StableDiffusionXLPipeline, and this is a {type(pipe).__name__}"

    @contextmanager
    def install(self, pipe: Any) -> Iterator[CallContextFactory]:
        from diffusers import EulerAncestralDiscreteScheduler

        other = self._other(pipe)
        made = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        with swap_weights(pipe.unet, other), use_scheduler(pipe, made):
            yield no_context

    def _other(self, pipe: Any) -> Any:
        """The network with Turbo's weights, loaded once for a pipeline."""
        from diffusers import UNet2DConditionModel

        where = self.weights or "stabilityai/sdxl-turbo"
        known = _OTHER_NETWORKS.setdefault(pipe.unet, {})
        if where not in known:
            try:
                with quiet_logging():
                    other = UNet2DConditionModel.from_pretrained(where, subfolder="unet", torch_dtype=pipe.unet.dtype)
            except Exception as e:  # OSError, errors of the hub's client, of safetensors
                raise GuestError(_describe_load_error(self, "weights", where, e)) from e
            known[where] = other.to(pipe.unet.device)
        return known[where]


@contextmanager
def use_scheduler(pipe: Any, scheduler: Any) -> Iterator[None]:
    """The pipeline under another scheduler."""
    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = own


@contextmanager
def swap_weights(network: Any, other: Any) -> Iterator[None]:
    """A network with another's weights in its own modules, so that hooks on it stay where they are.

    Raises:
        GuestError: the weights of the two are not of the same names and shapes.
    """
    ours, theirs = (dict(n.named_parameters()) | dict(n.named_buffers()) for n in (network, other))
    if {k: v.shape for k, v in ours.items()} != {k: v.shape for k, v in theirs.items()}:
        odd = sorted(ours.keys() ^ theirs.keys()) or sorted(k for k in ours if ours[k].shape != theirs[k].shape)
        raise GuestError(
            f"not applicable: these weights are of another network ({odd[0]}): run them as a model of their own, "
            f"skipstone bench --model ..."
        )

    def exchange() -> None:
        for name, mine in ours.items():
            mine.data, theirs[name].data = theirs[name].data, mine.data

    exchange()
    try:
        yield
    finally:
        exchange()


def _describe_load_error(peer: DistilledPeer, what: str, where: str, e: Exception) -> str:
    reason = (str(e).strip() or type(e).__name__).splitlines()[0].rstrip(".")
    missing = "" if importlib.util.find_spec("huggingface_hub") else " (huggingface_hub is not installed)"
    return (
        f"not applicable: the {what} of {peer.name} cannot be loaded from {where}{missing}: {reason}. Fetch them and "
        f"say {peer.name}(weights='FOLDER')."
    )
