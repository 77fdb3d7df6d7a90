"""Which metrics can be measured of a model on this machine, and why the others cannot."""

from __future__ import annotations

from typing import NamedTuple

from .. import registry
from .base import BaseMetric, Metric, SetMetric

MISSING_REASONS = {"judge": "this model has no judge of its own", "latent": "this model's latents cannot be seen"}


class AvailableMetrics(NamedTuple):
    """What to measure, and what not.

    Args:
        metrics: Of each sample.
        sets: Of all samples of a row.
        absent: (name, why) of the others, for people to read; metrics that are for videos alone are not listed for
            a model of pictures, nor the other way round.
    """

    metrics: tuple[Metric, ...]
    sets: tuple[SetMetric, ...]
    absent: tuple[tuple[str, str], ...]


def metrics_available(
    *, judge: bool = False, latents: bool = True, is_video: bool = False, by_default: bool = False
) -> AvailableMetrics:
    """The registered metrics, divided.

    Args:
        judge: Whether the model has a judge of its own.
        latents: Whether samples come with what the decoder was given.
        is_video: Whether it makes videos.
        by_default: Take only those that `skipstone compare` takes.
    """
    has, kind = {"judge": judge, "latent": latents}, "video" if is_video else "picture"
    found: list[BaseMetric] = []
    absent: list[tuple[str, str]] = []
    for name in registry.names("metric"):
        variants: tuple[BaseMetric, ...] = registry.find_class("metric", name).variants()  # type: ignore[attr-defined]
        if variants[0].of not in ("any", kind) or (by_default and not variants[0].by_default):
            continue
        lacking = next((MISSING_REASONS[want] for want in variants[0].requires if not has[want]), "")
        usable = None if lacking else next((one for one in variants if not one.missing()), None)
        if usable is None:
            absent.append((name, lacking or variants[0].missing()))
        else:
            found.append(usable)
    return AvailableMetrics(
        tuple(m for m in found if isinstance(m, Metric)),
        tuple(m for m in found if isinstance(m, SetMetric)),
        tuple(absent),
    )
