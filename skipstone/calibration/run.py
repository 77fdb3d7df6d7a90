"""`skipstone.calibrate`: from a target in words to the fastest setting that may be promised to meet it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..evaluation.progress import ProgressCallback, no_progress
from ..policies.certified import Certified
from . import cache as caches
from .calibration import FULL, Calibration, CalibrationOptions, warn_user
from .samples import PromptSource
from .subjects import make_subject


def calibrate(
    pipe: Any,
    prompts: PromptSource,
    target: str,
    *,
    confidence: float | None = 0.9,
    settings: Sequence[str] = (),
    samplers: bool = False,
    reference: str = FULL,
    groups: str | None = None,
    metric: Callable[[Any, Any], float] | None = None,
    better: str = "higher",
    steps: int | None = None,
    guidance: float | None = None,
    arguments: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch: int = 8,
    cache: str | os.PathLike[str] | None = None,
    on_progress: ProgressCallback = no_progress,
) -> Certified:
    """The fastest setting that meets a quality target, with a guarantee.

        policy = skipstone.calibrate(pipe, prompts, target="psnr >= 30 @ 90%")
        policy.save_pretrained("out")
        with skipstone.adapt(pipe, policy): ...

    What is promised: with this confidence over the draw of the prompts, at least that share of prompts *exchangeable
    with them*, each with a random seed, meets the level on *this* model in *this* configuration; where the target is a
    mean, that the mean does. Nothing is promised of a single picture, of other prompts, or of another configuration, on
    which `adapt` refuses or warns. A third of the prompts orders the settings by successive halving; on the others they
    are tested one after the other, from the safest on, until one fails (Learn then Test, fixed sequence).

    Full runs and scores are kept in a cache, so that the same call goes on where it was cut off.

    Args:
        pipe: A diffusers pipeline, a `skipstone.Pebble`, or the name, folder or hub id of a model.
        prompts: Texts, a file of them, or a set such as "pebble-tuning"; each counts once. How many it takes:
            `skipstone.calibration.planning.prompts_needed`; a target of 90 % needs 22 in the test at confidence 0.9.
        target: "METRIC >= LEVEL @ PERCENT%" or "@ mean"; see `Target.parse`.
        confidence: In (0.5, 1). None, for means only: the promise then holds in the mean over calibrations (conformal
            risk control).
        settings: Columns to choose from; the ladder of the model's own policy by default.
        samplers: Also try fixed samplers in place of the model's own; see `auto`.
        reference: "full", the model's own run at full steps; "converged", a solver with many steps; or a column.
        groups: "category": the promise is made to every category of prompts, each of which must be proved by itself.
        metric: A function (picture, reference) -> number, pictures being (height, width, 3) in [0, 1]; `target` calls
            it by its name.
        better: "higher" or "lower", of `metric`.
        steps, guidance: Of the full run; the model's own by default.
        arguments: More of a pipeline's call, such as {"height": 512}.
        seed: Of the split, and of the samples' seeds.
        batch: Samples of one call, >= 1.
        cache: Folder of full runs and scores; $SKIPSTONE_CACHE or ~/.cache/skipstone by default.
        tell: Is told of the progress: (what, calls done, calls in all).

    Raises:
        TargetMissed: no setting is accepted; the message names the nearest.
        SpecError: a target, setting or number that cannot be used, or too few prompts: it says how many are needed.
        PromptError, MetricError, ModelError, GuestError: prompts, a metric or a model that cannot be used.

    References: Angelopoulos et al. 2021, arXiv 2110.01052; Angelopoulos et al. 2022, arXiv 2208.02814.
    """
    planned = Calibration.of(
        make_subject(pipe, guidance, arguments),
        prompts,
        target,
        CalibrationOptions(
            confidence, tuple(settings), samplers, reference, groups, steps=steps, seed=seed, batch=batch
        ),
        metric,
        better,
    )
    if planned.samples.num_duplicates:
        warn_user(planned.duplicates_message)
    return planned.run(caches.folder(cache), on_progress, warn_user)
