"""What is asked of the engine, what it tells on the way, and what it gives back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from ..engine.contracts import INFINITY, Policy, Run
from ..engine.requests import Status
from ..errors import SpecError
from ..settings import Ranges, check_settings

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class PictureRequest:
    """One picture.

    Args:
        prompt: What to draw; not empty.
        negative_prompt: What guidance leads away from.
        seed: Of the picture, in 0..2**63 - 1: the same seed is the same picture.
        model: Name of the model; "" is the first that is served.
        policy: A policy, or a spec as `policy @ solver / grid / steps`; "" is the engine's own.
        quality: Name of a certificate, or a target that one must promise, in place of a policy; "" names none.
        guidance: Weight of guidance, in [-1000, 1000]; None is the model's own.
        budget: Calls after which the rest is forecast, >= 1; infinite for none.
        priority: Its class, in 0..2; 0 goes first.
        deadline: Seconds from now in which it must be ready, in [0, 1e6]; infinite for none.

    Raises:
        SpecError: a setting out of range.
    """

    prompt: str
    negative_prompt: str = ""
    seed: int = 0
    model: str = ""
    policy: Policy | str = ""
    quality: str = ""
    guidance: float | None = None
    budget: float = INFINITY
    priority: int = 1
    deadline: float = math.inf
    name: ClassVar[str] = "request"
    ranges: ClassVar[Ranges] = {
        "seed": (0, MAX_SEED),
        "guidance": (-1e3, 1e3),
        "budget": (1, math.inf),
        "priority": (0, 2),
        "deadline": (0, math.inf),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        if self.policy and self.quality:
            raise SpecError("A request has a policy or a quality, not both: leave one out.")


@dataclass(frozen=True)
class Progress:
    """How far a picture is.

    Args:
        share: Of the way from noise to the picture, in [0, 1].
        calls: Made so far.
        latent: The newest clean estimate, which `Engine.decode` makes a picture of; None before the first call.
    """

    share: float
    calls: float
    latent: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class Picture:
    """A finished picture.

    Args:
        pixels: (height, width, 3), 8 bits each.
        request: What was asked for.
        model: Name of the model that has drawn it.
        run: Its decisions.
        status: How the run ended: `done`, or `budget`.
        setting: `policy @ solver / grid / steps` in full, to draw it again.
        full_calls: What the same run costs without a policy.
        certificate: Name of the certificate that covers it; "" where there is none.
        promise: What the certificate promises, or why there is none.
        queued: Seconds before its first call.
        seconds: From its acceptance to the finished picture.
        shed: Whether a faster certificate has drawn it than the engine's own policy, because many waited.
        latent: What was decoded.
        fingerprint: Of the weights that have drawn it.
    """

    pixels: Any = field(repr=False)
    request: PictureRequest
    model: str
    run: Run = field(repr=False)
    status: Status
    setting: str
    full_calls: float
    certificate: str
    promise: str
    queued: float
    seconds: float
    shed: bool = False
    latent: Any = field(default=None, repr=False)
    fingerprint: str = ""

    @property
    def calls(self) -> float:
        """Calls of the network that it took."""
        return self.run.cost

    @property
    def saving(self) -> float:
        """Share of the full run's calls that were saved."""
        return 1.0 - self.calls / self.full_calls


ProgressCallback: TypeAlias = Callable[[Progress], None]
